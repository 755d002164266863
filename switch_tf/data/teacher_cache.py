"""Examples with a teacher's most probable ids of every target, as `switch-tf predict --probabilities` writes them.

A folder has `examples-00000-of-00064.tfrecord` and so on, the vocabulary, and `teacher.json`, which is written last: a
folder without it is an interrupted write. An example is a `tf.train.Example` with the bytes of each feature.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from switch_tf import storage
from switch_tf.data.autotuning import without_autotuning
from switch_tf.data.sentencepiece import path_in
from switch_tf.errors import SettingError

_DESCRIPTION = "teacher.json"
_FORMAT = 1
_MAX_FILES = 64
# Of the examples: as many as seqio keeps when it shuffles.
_SHUFFLE_BUFFER = 1000
_FILES_AT_ONCE = 16


@dataclasses.dataclass(frozen=True)
class TeacherCache:
    """What a cache is of.

    Attributes:
      teacher: the checkpoint that made the predictions.
      mixture_or_task: the seqio name of the examples.
      split: which split of it.
      lengths: tokens of each task feature.
      vocab_size: V of the teacher.
      vocabulary: SHA-256 of the vocabulary; None where it keeps none.
      num_choices: K, ids of each position.
      temperature: of their probabilities.
      num_examples: in all files.
      num_files: how many there are.
      tail: mean mass of the other V - K ids, over the real target tokens.
      neg_log_perplexity: of the teacher on these examples.
      features: dtype and length of each feature.
    """

    teacher: str
    mixture_or_task: str
    split: str
    lengths: Mapping[str, int]
    vocab_size: int
    vocabulary: str | None
    num_choices: int
    temperature: float
    num_examples: int = 0
    num_files: int = 0
    tail: float = 0.0
    neg_log_perplexity: float = 0.0
    features: Mapping[str, tuple[str, int]] = dataclasses.field(default_factory=dict)

    def phrase(self) -> str:
        """Identifies the cache: a run that resumes must find it unchanged."""
        return (
            f"{self.num_examples:,} examples of {self.mixture_or_task}, {self.num_choices} ids of each position, by "
            f"{self.teacher}"
        )


def is_complete(folder: str) -> bool:
    """Whether a folder holds a cache that was written to its end."""
    return storage.exists(os.path.join(folder, _DESCRIPTION))


def read_description(folder: str) -> TeacherCache:
    """Reads what a cache is of.

    Args:
      folder: local or in a bucket.

    Raises:
      SettingError: if it is no complete cache.
    """
    path = os.path.join(folder, _DESCRIPTION)
    if not is_complete(folder):
        raise SettingError(
            f"TEACHER_CACHE = '{folder}' holds no complete cache (no teacher.json): write one with `switch-tf predict "
            f"--probabilities=16 --output={folder}`."
        )
    try:
        with tf.io.gfile.GFile(path) as file:
            values: dict[str, Any] = json.load(file)
        if values.pop("format") != _FORMAT:
            raise ValueError("another format")
        return TeacherCache(**values)
    except (ValueError, KeyError, TypeError) as error:
        raise SettingError(f"{path} is damaged or of another version ({error}): write the cache again.") from error


def _file(folder: str, index: int, num_files: int) -> str:
    return os.path.join(folder, f"examples-{index:05d}-of-{num_files:05d}.tfrecord")


def _serialize(example: Mapping[str, np.ndarray]) -> bytes:
    features = {
        name: tf.train.Feature(bytes_list=tf.train.BytesList(value=[np.ascontiguousarray(array).tobytes()]))
        for name, array in example.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def write_examples(
    folder: str, examples: Iterable[Mapping[str, np.ndarray]], description: TeacherCache, vocabulary: str | None
) -> TeacherCache:
    """Writes the examples of a cache, which `complete` completes.

    Args:
      folder: local or in a bucket; must not hold a complete cache.
      examples: int32 and float32 [length] of each feature, generated while they are written.
      description: of everything but the examples.
      vocabulary: path of the vocabulary, to be copied; None for none.

    Returns:
      The description with the numbers of examples and files, and the features.

    Raises:
      OSError, tf.errors.OpError: if it cannot be written.
    """
    storage.make_folder(folder)
    features: dict[str, tuple[str, int]] = {}
    number = 0
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(storage.replacing(_file(folder, i, _MAX_FILES))) for i in range(_MAX_FILES)]
        writers = [stack.enter_context(tf.io.TFRecordWriter(path)) for path in paths]
        for example in examples:
            features = features or {name: (array.dtype.name, len(array)) for name, array in example.items()}
            writers[number % _MAX_FILES].write(_serialize(example))
            number += 1
    if vocabulary is not None:
        storage.make_folder(os.path.dirname(path_in(folder)))
        tf.io.gfile.copy(vocabulary, path_in(folder), overwrite=True)
    return dataclasses.replace(description, num_examples=number, num_files=_MAX_FILES, features=features)


def complete(folder: str, description: TeacherCache) -> None:
    """Writes the description, which makes a cache complete.

    Raises:
      OSError, tf.errors.OpError: if it cannot be written.
    """
    text = json.dumps({"format": _FORMAT} | dataclasses.asdict(description), indent=2)
    storage.write_atomically(os.path.join(folder, _DESCRIPTION), text + "\n")


def cached_examples(folder: str, seed: int, shard: seqio.ShardInfo | None = None) -> tf.data.Dataset:
    """Reads a cache endlessly, shuffled; the same for the same seed.

    Args:
      folder: of a complete cache.
      seed: of the order.
      shard: which shard of it; None for all of it.

    Returns:
      Dataset of dicts of int32 or float32 [length].
    """
    description = read_description(folder)
    # Where there are fewer examples than files, the last files are empty.
    files = [_file(folder, index, description.num_files) for index in range(description.num_files)]
    if shard is not None:
        files = files[shard.index :: shard.num_shards]
    dataset = tf.data.Dataset.from_tensor_slices(files).shuffle(len(files), seed=seed)
    dataset = dataset.interleave(tf.data.TFRecordDataset, cycle_length=_FILES_AT_ONCE)
    dataset = dataset.shuffle(_SHUFFLE_BUFFER, seed=seed).repeat()

    def parsed(record: tf.Tensor) -> dict[str, tf.Tensor]:
        specs = {name: tf.io.FixedLenFeature([], tf.string) for name in description.features}
        values = tf.io.parse_single_example(record, specs)
        return {
            name: tf.ensure_shape(tf.io.decode_raw(values[name], tf.as_dtype(dtype)), [length])
            for name, (dtype, length) in description.features.items()
        }

    return without_autotuning(dataset.map(parsed))
