"""Text of the user's own, named in gin: `files_span_corruption` reads what `TRAIN_FILES` and `VALIDATION_FILES` say."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool

import gin
import seqio
import tensorflow as tf

from switch_tf.data.text_files import Patterns, matching_files, read_documents
from tasks.pretraining import add_span_corruption_task

SPLITS = ("train", "validation")
# Without files for validation, one document in so many is held out of training.
HELD_OUT_EVERY = 100
# A bucket answers after tens of milliseconds, and C4 has a thousand files.
_NUM_LOOKUPS = 32


@gin.configurable
def own_files(train: Patterns = gin.REQUIRED, validation: Patterns | None = None) -> dict[str, Patterns]:
    """Names the files of each split.

    Args:
      train: names or patterns, such as "text/*.jsonl.gz".
      validation: others; None to hold out one document in a hundred.

    Returns:
      The patterns of each split; of one alone where nothing is to be held out in files of its own.
    """
    return {"train": train} | ({} if validation is None else {"validation": validation})


def fingerprint(files: Sequence[str]) -> str:
    """Tells files from others, by their whole names and their sizes; none is read.

    Args:
      files: their names, in order; local or in a bucket.

    Returns:
      A phrase with the beginning of a digest. The whole names count because a position in the data holds them.
    """
    with ThreadPool(_NUM_LOOKUPS) as threads:
        sizes = threads.map(lambda file: tf.io.gfile.stat(file).length, files)
    digest = hashlib.sha256("".join(f"{file} {size}\n" for file, size in zip(files, sizes)).encode()).hexdigest()
    return f"{files[0]} and {len(files) - 1:,} more, {sum(sizes):,} bytes ({digest[:12]})"


class ConfiguredFiles(seqio.FileDataSource):
    """Text files whose names are asked for when they are needed: gin is read after the tasks are registered."""

    def __init__(self, find: Callable[[], Mapping[str, Patterns]], macros: Mapping[str, str]):
        """Asks nothing yet.

        Args:
          find: returns names or patterns of "train", and of "validation" if it has files of its own.
          macros: what the user sets each of them by.
        """
        super().__init__(read_documents, dict.fromkeys(SPLITS, ""))
        self._find = find
        self._macros = macros

    def settings(self) -> dict[str, object]:
        """Returns which files the examples come from, by macro: they must stay as they were when a run resumes.

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

    def get_dataset(self, split: str = "train", *args, **options) -> tf.data.Dataset:
        """Reads a split; arguments and result are those of `seqio.DataSource`.

        Raises:
          SettingError: if there are no files.
        """
        dataset = super().get_dataset(split, *args, **options)
        if "validation" in self._find():
            return dataset

        def belongs(example: dict[str, tf.Tensor]) -> tf.Tensor:
            # By the text itself, so that no other document and no order matters.
            held_out = tf.strings.to_hash_bucket_fast(example["text"], HELD_OUT_EVERY) == 0
            return held_out == (split == "validation")

        return dataset.filter(belongs)


add_span_corruption_task(
    "files_span_corruption",
    ConfiguredFiles(own_files, {"train": "TRAIN_FILES", "validation": "VALIDATION_FILES"}),
)
