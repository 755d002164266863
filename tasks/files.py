"""Text files of your own: `files_span_corruption` reads those that `TRAIN_FILES` and `VALIDATION_FILES` name."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any

import gin
import seqio
import tensorflow as tf

from switch_tf.data.text_files import Patterns, matching_files, read_documents
from tasks.pretraining import add_span_corruption_task

SPLITS = ("train", "validation")
# Without validation files, one document in this many is held out of training.
HELD_OUT_EVERY = 100
# A bucket answers after tens of milliseconds, and C4 has a thousand files.
_NUM_LOOKUPS = 32


@gin.configurable
def own_files(train: Patterns = gin.REQUIRED, validation: Patterns | None = None) -> dict[str, Patterns]:
    """Names the files of each split.

    Args:
      train: names or patterns, such as "text/*.jsonl.gz".
      validation: likewise; None to hold out one document in a hundred.

    Returns:
      The patterns of each split; of "train" alone if documents of the training files are held out.
    """
    return {"train": train} | ({} if validation is None else {"validation": validation})


def fingerprint(files: Sequence[str]) -> str:
    """Identifies files by their full names and sizes, without reading them.

    Args:
      files: their names, in order; local or in a bucket.

    Returns:
      A phrase with the first digits of a digest. Full names count because a position in the data holds them.
    """
    with ThreadPool(_NUM_LOOKUPS) as threads:
        sizes = threads.map(lambda file: tf.io.gfile.stat(file).length, files)
    digest = hashlib.sha256("".join(f"{file} {size}\n" for file, size in zip(files, sizes)).encode()).hexdigest()
    return f"{files[0]} and {len(files) - 1:,} more, {sum(sizes):,} bytes ({digest[:12]})"


class ConfiguredFiles(seqio.FileDataSource):
    """Text files whose names are looked up when they are needed: gin is read after the tasks are registered."""

    def __init__(self, find: Callable[[], Mapping[str, Patterns]], macros: Mapping[str, str]):
        """Looks nothing up yet.

        Args:
          find: returns names or patterns of "train", and of "validation" if it has files of its own.
          macros: the gin macro of each split.
        """
        super().__init__(read_documents, dict.fromkeys(SPLITS, ""))
        self._find = find
        self._macros = macros

    def settings(self) -> dict[str, object]:
        """Returns which files the examples come from, by macro: a run that resumes must find them unchanged.

        Raises:
          SettingError: if there are none.
        """
        files: dict[str, list[str]] = {}
        for split in self._find():
            files.setdefault(self._macros[split], []).extend(self.list_shards(split))
        return {macro: fingerprint(found) for macro, found in files.items()}

    def list_shards(self, split: str) -> list[str]:
        """Lists the files of a split.

        Raises:
          SettingError: if there are none.
        """
        patterns = self._find()
        split = split if split in patterns else "train"
        return matching_files(patterns[split], self._macros[split])

    def get_dataset(self, split: str = "train", *args: Any, **options: Any) -> tf.data.Dataset:
        """Reads a split; arguments and result are those of `seqio.DataSource`.

        Raises:
          SettingError: if there are no files.
        """
        dataset = super().get_dataset(split, *args, **options)
        if "validation" in self._find():
            return dataset

        def belongs(example: dict[str, tf.Tensor]) -> tf.Tensor:
            # By the text itself, independent of other documents and of the order.
            held_out = tf.strings.to_hash_bucket_fast(example["text"], HELD_OUT_EVERY) == 0
            return held_out == (split == "validation")

        return dataset.filter(belongs)


add_span_corruption_task(
    "files_span_corruption",
    ConfiguredFiles(own_files, {"train": "TRAIN_FILES", "validation": "VALIDATION_FILES"}),
)
