"""Text of the user's own, named in gin: `files_span_corruption` reads what `TRAIN_FILES` and `VALIDATION_FILES` say."""

from collections.abc import Callable, Mapping

import gin
import seqio
import tensorflow as tf

from switch_tf.text_files import Patterns, matching_files, read_documents
from tasks.pretraining import add_span_corruption_task

SPLITS = ("train", "validation")
# Without files for validation, one document in so many is held out of training.
HELD_OUT_EVERY = 100


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


class ConfiguredFiles(seqio.FileDataSource):
    """Text files whose names are asked for when they are needed: gin is read after the tasks are registered."""

    def __init__(self, find: Callable[[], Mapping[str, Patterns]], setting: str):
        """Asks nothing yet.

        Args:
          find: returns names or patterns of "train", and of "validation" if it has files of its own.
          setting: what the user sets them by, for errors.
        """
        super().__init__(read_documents, dict.fromkeys(SPLITS, ""))
        self._find = find
        self._setting = setting

    def list_shards(self, split: str) -> list[str]:
        """Lists the files of a split.

        Raises:
          SettingError: if there are none.
        """
        patterns = self._find()
        return matching_files(patterns.get(split, patterns["train"]), self._setting)

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


add_span_corruption_task("files_span_corruption", ConfiguredFiles(own_files, "TRAIN_FILES or VALIDATION_FILES"))
