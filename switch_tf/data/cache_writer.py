"""Writes a task's tokens in the files that seqio's Beam job writes, without Beam: the command `switch-tf cache`.

Each file of the task's source becomes several shards, and a record that they are complete. A command that was
interrupted continues after the last complete source file.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Sequence

import gin
import numpy as np
import seqio
import tensorflow as tf
import tqdm

from switch_tf import storage
from switch_tf.data.autotuning import without_autotuning
from switch_tf.data.cached_tasks import COMPLETED, check_digests, digests, digests_file, task_folder
from switch_tf.data.sentencepiece import Vocabulary
from switch_tf.data.task_lookup import check_split, find_task, tasks_of
from switch_tf.errors import SettingError

# seqio's job writes at least as many. More shards mean a better shuffle in training.
MIN_SHARDS = 64

_UNWRITABLE = (tf.errors.PermissionDeniedError, tf.errors.ResourceExhaustedError, tf.errors.FailedPreconditionError)


def _write_json(path: str, values: dict) -> None:
    storage.write_atomically(path, json.dumps(values, sort_keys=True, indent=2))


def _read_json(path: str) -> dict:
    with tf.io.gfile.GFile(path) as file:
        return json.load(file)


def _feature(value: np.ndarray | bytes) -> tf.train.Feature:
    values = np.ravel(value)
    if values.dtype == object or values.dtype.kind == "S":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values.tolist()))
    if values.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values.tolist()))


def _serialize(example: dict[str, np.ndarray]) -> bytes:
    features = tf.train.Features(feature={name: _feature(value) for name, value in example.items()})
    return tf.train.Example(features=features).SerializeToString()


class _Counts:
    """The numbers that seqio keeps beside a cached split: examples, and each feature's tokens, in total and at most."""

    def __init__(self, features: dict[str, seqio.Feature]):
        self.values: dict[str, int] = {"examples": 0}
        self._ids = {
            name: (feature.vocabulary.pad_id, feature.vocabulary.eos_id or feature.vocabulary.pad_id)
            for name, feature in features.items()
        }

    def add(self, example: dict[str, np.ndarray]) -> None:
        """Counts one example."""
        self.values["examples"] += 1
        for name, (pad, end) in self._ids.items():
            tokens = example.get(name)
            if isinstance(tokens, np.ndarray) and tokens.dtype in (np.int32, np.int64):
                count = int(np.sum((tokens != pad) & (tokens != end)))
                self._add(f"{name}_tokens", count)
                self._add(f"{name}_max_tokens", count)

    def merge(self, other: dict[str, int]) -> None:
        """Adds the counts of other examples."""
        for name, count in other.items():
            self._add(name, count)

    def _add(self, name: str, count: int) -> None:
        before = self.values.get(name, 0)
        self.values[name] = max(before, count) if name.endswith("_max_tokens") else before + count


def _element_description(dataset: tf.data.Dataset) -> dict[str, dict]:
    """Describes an example as seqio's info file does: the first dimension of what is not a scalar is unknown."""
    described = {}
    for name, spec in dataset.element_spec.items():
        shape = [None, *spec.shape.as_list()[1:]] if spec.shape.rank else []
        described[name] = {"shape": shape, "dtype": spec.dtype.name}
    return described


def _write_shards(
    dataset: tf.data.Dataset, shards: Sequence[str], features: dict[str, seqio.Feature], bar: tqdm.tqdm
) -> dict[str, int]:
    """Writes the examples of one source file to its shards in turn; these appear when all are complete."""
    counts = _Counts(features)
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(storage.replacing(shard)) for shard in shards]
        writers = [stack.enter_context(tf.io.TFRecordWriter(path)) for path in paths]
        examples = without_autotuning(dataset.prefetch(tf.data.AUTOTUNE)).as_numpy_iterator()
        for index, example in enumerate(examples):
            writers[index % len(writers)].write(_serialize(example))
            counts.add(example)
            bar.update()
    return counts.values


def cache_split(task: seqio.Task, folder: str, split: str, min_shards: int) -> None:
    """Caches a split of a task, unless it is complete already.

    Args:
      task: which must have a `seqio.CacheDatasetPlaceholder`.
      folder: of the task.
      split: which split.
      min_shards: how many files to write at least.

    Raises:
      SettingError: if the split has no example.
    """
    info_path = seqio.get_cached_info_path(folder, split)
    if storage.exists(info_path):
        print(f"{task.name}, {split}: cached already.")
        return
    num_files = len(task.source.list_shards(split))
    shards_per_file = max(1, -(-min_shards // num_files))
    num_shards = num_files * shards_per_file
    prefix = seqio.get_cached_tfrecord_prefix(folder, split)
    counts, records, description = _Counts(task.output_features), [], {}
    with tqdm.tqdm(desc=f"{task.name}, {split}", unit="example", total=task.source.num_input_examples(split)) as bar:
        for file in range(num_files):
            record = f"{prefix}.part-{file:05d}-of-{num_files:05d}.into-{num_shards}.json"
            records.append(record)
            source = task.source.get_dataset(split=split, shard_info=seqio.ShardInfo(file, num_files), shuffle=False)
            dataset = task.preprocess_precache(source, seed=file)
            description = _element_description(dataset)
            if storage.exists(record):
                written = _read_json(record)
                bar.update(written["examples"])
            else:
                numbers = range(file * shards_per_file, (file + 1) * shards_per_file)
                shards = [f"{prefix}-{number:05d}-of-{num_shards:05d}" for number in numbers]
                written = _write_shards(dataset, shards, task.output_features, bar)
                _write_json(record, written)
            counts.merge(written)
    if not counts.values["examples"]:
        raise SettingError(f"{task.name} yields no example in its split '{split}': there is nothing to cache.")
    _write_json(seqio.get_cached_stats_path(folder, split), counts.values)
    _write_json(info_path, {"features": description, "num_shards": num_shards, "seqio_version": seqio.__version__})
    for record in records:
        tf.io.gfile.remove(record)
    tokens = ", ".join(f"{n:,} {name}" for name, n in counts.values.items() if not name.endswith("_max_tokens"))
    print(f"{task.name}, {split}: {tokens} in {num_shards} files.")


def cache_task(task: seqio.Task, folder: str, splits: Iterable[str] | None, min_shards: int) -> str:
    """Caches a task; continues where an earlier command was interrupted.

    Args:
      task: which task.
      folder: of all cached tasks.
      splits: which of its splits; None for all.
      min_shards: how many files of each split to write at least.

    Returns:
      The task's folder, as seqio looks for it.

    Raises:
      SettingError: if the task cannot be cached, a split does not exist or is empty, or the folder holds tokens of
        another vocabulary.
    """
    if not task.supports_caching:
        raise SettingError(f"{task.name} cannot be cached: its preprocessors or its source do not allow it.")
    of_task = task_folder(folder, task)
    storage.make_folder(of_task)
    check_digests(task, of_task)
    _write_json(digests_file(of_task), digests(task))
    for split in task.splits if splits is None else splits:
        cache_split(task, of_task, split, min_shards)
    storage.write_atomically(os.path.join(of_task, COMPLETED), "")
    return of_task


@gin.configurable
def write_cache(
    mixture_or_task: str = gin.REQUIRED,
    folder: str | None = None,
    vocabulary: Vocabulary | None = None,
    splits: Sequence[str] | None = None,
    min_shards: int = MIN_SHARDS,
) -> None:
    """Caches a task, or every task of a mixture: the command `switch-tf cache`.

    Args:
      mixture_or_task: a seqio name.
      folder: to write to, CACHE_DIR; local or in a bucket.
      vocabulary: sets the vocabulary of the tasks, and is copied to the folder; None if they have one of their own.
      splits: which splits; None for all.
      min_shards: how many files of each split to write at least.

    Raises:
      SettingError: if there is no folder, or a task cannot be cached.
    """
    if folder is None:
        raise SettingError("switch-tf cache needs --gin.CACHE_DIR, the folder to write to.")
    if storage.has_glob_characters(folder):
        raise SettingError(
            f"CACHE_DIR = '{folder}' has one of * ? [ \\ in its name, a pattern to seqio: choose another."
        )
    if min_shards < 1:
        raise SettingError(f"--min_shards={min_shards} must be at least 1.")
    provider = find_task(mixture_or_task)
    for split in splits or ():
        check_split(provider, split)
    try:
        if vocabulary is not None:
            vocabulary.install(folder)
        for task in tasks_of(provider):
            of_task = None if splits is None else [split for split in splits if split in task.splits]
            print(f"{cache_task(task, folder, of_task, min_shards)} is complete.", flush=True)
    except (OSError, *_UNWRITABLE) as error:
        reason = storage.refusal(error) or storage.reason_of(error)
        raise SettingError(f"CACHE_DIR = '{folder}' cannot be written: {reason}.") from error
