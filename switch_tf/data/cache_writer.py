"""Writes what seqio's Beam job writes, without Beam: a task's tokens in shards, ready to be read; `switch-tf cache`.

Each file of the task's source is a part: it makes shards of its own, and a record once they are whole. A command that
is cut off goes on after the last whole part.
"""

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
from switch_tf.data.batches import check_split, find_task
from switch_tf.data.cached_tasks import Cache, check_digests, digests, digests_file, tasks_of
from switch_tf.data.sentencepiece import Vocabulary
from switch_tf.errors import SettingError

# As many as seqio's job makes at least: training shuffles the shards.
MIN_SHARDS = 64

_UNWRITABLE = (tf.errors.PermissionDeniedError, tf.errors.ResourceExhaustedError, tf.errors.FailedPreconditionError)


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


def _serialise(example: dict[str, np.ndarray]) -> bytes:
    features = tf.train.Features(feature={name: _feature(value) for name, value in example.items()})
    return tf.train.Example(features=features).SerializeToString()


class _Counts:
    """The numbers that seqio keeps beside a cached split: examples, and tokens of each feature in all and at most."""

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
                self._take(f"{name}_tokens", count)
                self._take(f"{name}_max_tokens", count)

    def merge(self, other: dict[str, int]) -> None:
        """Counts another part."""
        for name, count in other.items():
            self._take(name, count)

    def _take(self, name: str, count: int) -> None:
        before = self.values.get(name, 0)
        self.values[name] = max(before, count) if name.endswith("_max_tokens") else before + count


def _described(dataset: tf.data.Dataset) -> dict[str, dict]:
    """Describes an example as seqio's info file does; the first dimension of what is no scalar is free."""
    described = {}
    for name, spec in dataset.element_spec.items():
        shape = [None, *spec.shape.as_list()[1:]] if spec.shape.rank else []
        described[name] = {"shape": shape, "dtype": spec.dtype.name}
    return described


def _write_part(
    dataset: tf.data.Dataset, shards: Sequence[str], features: dict[str, seqio.Feature], bar: tqdm.tqdm
) -> dict[str, int]:
    """Writes one part's examples to its shards in turn; they get their names when all are whole."""
    counts = _Counts(features)
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(storage.replacing(shard)) for shard in shards]
        writers = [stack.enter_context(tf.io.TFRecordWriter(path)) for path in paths]
        for index, example in enumerate(dataset.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()):
            writers[index % len(writers)].write(_serialise(example))
            counts.add(example)
            bar.update()
    return counts.values


def cache_split(task: seqio.Task, task_folder: str, split: str, min_shards: int) -> None:
    """Caches a split of a task, unless it is there.

    Args:
      task: which must have a `seqio.CacheDatasetPlaceholder`.
      task_folder: where.
      split: which split.
      min_shards: how many files to write at least.

    Raises:
      SettingError: if the split has no example.
    """
    info_path = seqio.get_cached_info_path(task_folder, split)
    if storage.exists(info_path):
        print(f"{task.name}, {split}: is there.")
        return
    parts = len(task.source.list_shards(split))
    per_part = max(1, -(-min_shards // parts))
    num_shards = parts * per_part
    prefix = seqio.get_cached_tfrecord_prefix(task_folder, split)
    counts, records = _Counts(task.output_features), []
    described = None
    with tqdm.tqdm(desc=f"{task.name}, {split}", unit="example", total=task.source.num_input_examples(split)) as bar:
        for part in range(parts):
            record = f"{prefix}.part-{part:05d}-of-{parts:05d}.into-{num_shards}.json"
            records.append(record)
            info = seqio.ShardInfo(part, parts)
            source = task.source.get_dataset(split=split, shard_info=info, shuffle=False)
            dataset = task.preprocess_precache(source, seed=part)
            described = _described(dataset)
            if storage.exists(record):
                written = _read_json(record)
                bar.update(written["examples"])
            else:
                numbers = range(part * per_part, (part + 1) * per_part)
                shards = [f"{prefix}-{number:05d}-of-{num_shards:05d}" for number in numbers]
                written = _write_part(dataset, shards, task.output_features, bar)
                storage.write_atomically(record, json.dumps(written))
            counts.merge(written)
    if not counts.values["examples"]:
        raise SettingError(f"{task.name} yields no example in its split '{split}': there is nothing to cache.")
    info = {"features": described, "num_shards": num_shards, "seqio_version": seqio.__version__}
    storage.write_atomically(
        seqio.get_cached_stats_path(task_folder, split), json.dumps(counts.values, sort_keys=True, indent=2)
    )
    storage.write_atomically(info_path, json.dumps(info, sort_keys=True, indent=2))
    for record in records:
        tf.io.gfile.remove(record)
    tokens = ", ".join(f"{n:,} {name}" for name, n in counts.values.items() if not name.endswith("_max_tokens"))
    print(f"{task.name}, {split}: {tokens} in {num_shards} files.")


def cache_task(task: seqio.Task, folder: str, splits: Iterable[str] | None, min_shards: int) -> str:
    """Caches a task; goes on where an earlier command was cut off.

    Args:
      task: which task.
      folder: of all cached tasks.
      splits: which of its splits; None for all.
      min_shards: how many files of each split to write at least.

    Returns:
      The task's folder, as seqio looks for it.

    Raises:
      SettingError: if the task cannot be cached, a split is not there or empty, or the folder holds tokens of another
        vocabulary.
    """
    if not task.supports_caching:
        raise SettingError(f"{task.name} cannot be cached: its preprocessors or its source do not allow it.")
    splits = list(task.splits if splits is None else splits)
    task_folder = os.path.join(folder, seqio.get_task_dir_from_name(task.name))
    storage.make_folder(task_folder)
    check_digests(task, task_folder)
    storage.write_atomically(digests_file(task_folder), json.dumps(digests(task), sort_keys=True, indent=2))
    for split in splits:
        cache_split(task, task_folder, split, min_shards)
    storage.write_atomically(os.path.join(task_folder, "COMPLETED"), "")
    return task_folder


@gin.configurable
def cache(
    mixture_or_task: str = gin.REQUIRED,
    vocabulary: Vocabulary | None = None,
    splits: Sequence[str] | None = None,
    min_shards: int = MIN_SHARDS,
) -> None:
    """Caches a task, or every task of a mixture, in `Cache.folder`: the command `switch-tf cache`.

    Args:
      mixture_or_task: a seqio name.
      vocabulary: gives the tokens their vocabulary, and the folder a copy; None where the tasks have one of their own.
      splits: which splits; None for all.
      min_shards: how many files of each split to write at least.

    Raises:
      SettingError: if there is no folder, or a task cannot be cached.
    """
    folder = Cache().folder
    if folder is None:
        raise SettingError("switch-tf cache needs --gin.CACHE_DIR, the folder to write to.")
    if min_shards < 1:
        raise SettingError(f"--min_shards={min_shards} must be at least 1.")
    provider = find_task(mixture_or_task)
    for split in splits or ():
        check_split(provider, split)
    tasks = tasks_of(provider)
    try:
        if vocabulary is not None:
            vocabulary.install(folder)
        for task in tasks:
            of_task = None if splits is None else [split for split in splits if split in task.splits]
            print(f"{cache_task(task, folder, of_task, min_shards)} is complete.", flush=True)
    except (OSError, *_UNWRITABLE) as error:
        reason = storage.refusal(error) or " ".join(str(error).split())
        raise SettingError(f"CACHE_DIR = '{folder}' cannot be written: {reason}") from error
