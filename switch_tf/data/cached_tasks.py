"""Tasks that are tokenized already, in the files that seqio caches: `USE_CACHED = True` reads them from `CACHE_DIR`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator

import gin
import seqio
import tensorflow as tf

from switch_tf import compat, storage
from switch_tf.data.task_lookup import tasks_of
from switch_tf.errors import SettingError

# The file that marks a task's folder as complete, for seqio too.
COMPLETED = "COMPLETED"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Cache:
    """Where cached tokens are, and whether to read them.

    Attributes:
      folder: which `switch-tf cache`, or seqio's Beam job, wrote to; local or in a bucket.
      use: whether tasks are read from there, instead of tokenizing their text again.
    """

    folder: str | None = None
    use: bool = False


def file_digest(path: str) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def task_folder(folder: str, task: seqio.Task) -> str:
    """Returns where the folder of all cached tasks keeps one of them."""
    return os.path.join(folder, seqio.get_task_dir_from_name(task.name))


def digests_file(task_folder: str) -> str:
    """Returns where a cached task keeps the digests of its vocabularies."""
    return os.path.join(task_folder, "vocabularies.json")


def digests(task: seqio.Task) -> dict[str, str]:
    """Returns what a task's token ids mean, by feature: the SHA-256 of the vocabulary and the number of extra ids."""
    found = {}
    for name, feature in task.output_features.items():
        vocabulary = feature.vocabulary
        if isinstance(vocabulary, seqio.SentencePieceVocabulary):
            vocabulary.load_model()
            kind = file_digest(vocabulary.sentencepiece_model_file)
        else:
            kind = type(vocabulary).__name__
        found[name] = f"{kind}+{vocabulary.extra_ids}"
    return found


def check_digests(task: seqio.Task, task_folder: str) -> None:
    """Checks that a cached task has the tokens that it would have now; a cache of seqio's Beam job is not checked.

    Raises:
      SettingError: if it was tokenized with another vocabulary.
    """
    if not storage.exists(digests_file(task_folder)):
        return
    with tf.io.gfile.GFile(digests_file(task_folder)) as file:
        if json.load(file) != digests(task):
            raise SettingError(
                f"{task_folder} was cached with another vocabulary than this run's: take the vocabulary of the cache "
                "(VOCABULARY, VocabularyFile.path), another CACHE_DIR, or USE_CACHED = False."
            )


@contextlib.contextmanager
def open_cache(cache: Cache | None, provider: seqio.Task | seqio.Mixture, split: str) -> Iterator[bool]:
    """Lets seqio find the cache while a dataset is built; its global list of folders is as before afterwards.

    Args:
      cache: where tokens are cached; None if nowhere.
      provider: the task or mixture that will be read.
      split: which split of it.

    Yields:
      Whether to read from the cache, for `use_cached` of `seqio.get_dataset`.

    Raises:
      SettingError: if it is to be read from there and is not there, or with other tokens.
    """
    if cache is None or not cache.use:
        yield False
        return
    folder = _checked_folder(cache, provider, split)
    before = list(seqio.get_global_cache_dirs())
    seqio.set_global_cache_dirs([folder])
    tasks = tasks_of(provider)
    for task in tasks:
        compat.forget_cache_folder(task)
    try:
        yield True
    finally:
        seqio.set_global_cache_dirs(before)
        for task in tasks:
            compat.forget_cache_folder(task)


def _checked_folder(cache: Cache, provider: seqio.Task | seqio.Mixture, split: str) -> str:
    if cache.folder is None:
        raise SettingError("USE_CACHED = True needs CACHE_DIR, the folder that `switch-tf cache` wrote to.")
    if storage.has_glob_characters(cache.folder):
        raise SettingError(
            f"CACHE_DIR = '{cache.folder}' has one of * ? [ \\ in its name, a pattern to seqio: rename it."
        )
    # Of a mixture's tasks, seqio reads those that have the split.
    for task in (task for task in tasks_of(provider) if split in task.splits):
        if not task.supports_caching:
            raise SettingError(f"USE_CACHED = True, but {task.name} cannot be cached: set it to False.")
        folder = task_folder(cache.folder, task)
        needed = (os.path.join(folder, COMPLETED), seqio.get_cached_info_path(folder, split))
        if not all(map(storage.exists, needed)):
            raise SettingError(
                f"USE_CACHED = True, but CACHE_DIR = '{cache.folder}' lacks {task.name}, split '{split}', or a part of "
                "it: run `switch-tf cache` with the gin files and bindings of this run first."
            )
        check_digests(task, folder)
    return cache.folder


def cached_settings(provider: seqio.Task | seqio.Mixture, cache: Cache) -> dict[str, object]:
    """Identifies the cached tokens that are trained on: a run that resumes must find them unchanged.

    Args:
      provider: the task or mixture.
      cache: which has its training split.

    Returns:
      A phrase for each task.

    Raises:
      SettingError: if the cache lacks it.
    """
    folder = _checked_folder(cache, provider, "train")
    return {
        f"the cache of {task.name}": _phrase(task_folder(folder, task))
        for task in tasks_of(provider)
        if "train" in task.splits
    }


def _phrase(task_folder: str) -> str:
    with tf.io.gfile.GFile(seqio.get_cached_info_path(task_folder, "train")) as file:
        num_files = json.load(file)["num_shards"]
    with tf.io.gfile.GFile(seqio.get_cached_stats_path(task_folder, "train")) as file:
        stats = json.load(file)
    return f"{stats['examples']:,} examples, {stats['targets_tokens']:,} tokens, {num_files} files in {task_folder}"
