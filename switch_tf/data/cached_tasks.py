"""Tasks whose tokens lie ready in files, as seqio caches them: `USE_CACHED = True` reads them from `CACHE_DIR`."""

import dataclasses
import hashlib
import json
import os

import gin
import seqio
import tensorflow as tf

from switch_tf import storage
from switch_tf.errors import SettingError


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Cache:
    """Where tokens lie ready, and whether to take them.

    Attributes:
      folder: which `switch-tf cache` writes to, or seqio's Beam job; local or in a bucket.
      use: whether tasks are read from there, instead of their text being tokenised again.
    """

    folder: str | None = None
    use: bool = False


def file_digest(path: str) -> str:
    """Returns the SHA-256 of a file, in hexadecimal."""
    with tf.io.gfile.GFile(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def tasks_of(provider: seqio.Task | seqio.Mixture) -> list[seqio.Task]:
    """Returns a mixture's tasks, or the task alone."""
    return list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]


def digests_file(task_folder: str) -> str:
    """Returns where a cached task keeps the digests of its vocabularies."""
    return os.path.join(task_folder, "vocabularies.json")


def digests(task: seqio.Task) -> dict[str, str]:
    """Returns, for each feature of a task, what its tokens mean: the SHA-256 of its vocabulary and its extra ids."""
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
    """Checks that a cached task was tokenised as it would be now; a cache of seqio's Beam job says nothing of that.

    Raises:
      SettingError: if it was made with another vocabulary.
    """
    if not storage.exists(digests_file(task_folder)):
        return
    with tf.io.gfile.GFile(digests_file(task_folder)) as file:
        if json.load(file) != digests(task):
            raise SettingError(
                f"{task_folder} was cached with another vocabulary than this run's: take the vocabulary of the cache "
                "(VOCABULARY, VocabularyFile.path), another CACHE_DIR, or USE_CACHED = False."
            )


def use_cached(provider: seqio.Task | seqio.Mixture, split: str) -> bool:
    """Whether to read a task or mixture from the cache; seqio is told where that is.

    Args:
      provider: the task or mixture.
      split: which split will be read.

    Raises:
      SettingError: if it is to be read from there and is not there, or with other tokens.
    """
    cache = Cache()
    if not cache.use:
        return False
    if cache.folder is None:
        raise SettingError("USE_CACHED = True needs CACHE_DIR, the folder that `switch-tf cache` wrote to.")
    seqio.set_global_cache_dirs([cache.folder])
    # Of a mixture's tasks, seqio reads those that have the split.
    for task in (task for task in tasks_of(provider) if split in task.splits):
        if not task.supports_caching:
            raise SettingError(f"USE_CACHED = True, but {task.name} cannot be cached: set it to False.")
        if task.cache_dir is None or not storage.exists(seqio.get_cached_info_path(task.cache_dir, split)):
            raise SettingError(
                f"USE_CACHED = True, but CACHE_DIR = '{cache.folder}' has not all of {task.name}, split '{split}': run "
                "`switch-tf cache` with the gin files and bindings of this run first."
            )
        check_digests(task, task.cache_dir)
    return True


def cached_settings(provider: seqio.Task | seqio.Mixture) -> dict[str, object]:
    """Returns which cached tokens are trained on: they must stay as they were when a run resumes.

    Args:
      provider: the task or mixture; it must be in the cache.

    Returns:
      A phrase for each task, as JSON can hold it.
    """
    use_cached(provider, "train")
    return {
        f"the cache of {task.name}": _phrase(task.cache_dir) for task in tasks_of(provider) if "train" in task.splits
    }


def _phrase(task_folder: str) -> str:
    with tf.io.gfile.GFile(seqio.get_cached_info_path(task_folder, "train")) as file:
        num_files = json.load(file)["num_shards"]
    with tf.io.gfile.GFile(seqio.get_cached_stats_path(task_folder, "train")) as file:
        stats = json.load(file)
    return f"{stats['examples']:,} examples, {stats['targets_tokens']:,} tokens, {num_files} files in {task_folder}"
