"""TFDS data sets that must have been prepared: nobody wants Common Crawl to be downloaded without being asked."""

import functools
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from switch_tf.errors import SettingError


@functools.cache
def _is_there(path: str) -> bool:
    # mC4 asks 107 times for the same file, which takes its time in a bucket.
    return tf.io.gfile.exists(path)


class PreparedTfds(seqio.TfdsDataSource):
    """A TFDS data set that is read and never made; where it is not there, one sentence says how to make it."""

    def __init__(self, tfds_name: str, splits: Mapping[str, str], otherwise: str = ""):
        """Looks nothing up yet.

        Args:
          tfds_name: with its configuration and version, "c4/en:3.1.0".
          splits: the name of each split in the data set, {"train": "af", "validation": "af-validation"}.
          otherwise: where else the user may get it from, for the error.
        """
        super().__init__(tfds_name, splits=dict(splits), read_only=True)
        self._split_names = dict(splits)
        self._otherwise = otherwise

    def _check(self) -> None:
        builder = self.tfds_dataset.builder
        if not _is_there(str(builder.data_path / "dataset_info.json")):
            folder = str(builder.data_path).removesuffix("/" + self.tfds_dataset.name.replace(":", "/"))
            raise SettingError(
                f"The data set {self.tfds_dataset.name} is not in {folder}: set TFDS_DATA_DIR to the folder that has "
                f"it, or make it with `tfds build {self.tfds_dataset.name} --data_dir={folder}`{self._otherwise}."
            )

    def list_shards(self, split: str) -> Sequence[str]:
        """Lists the files of a split.

        Raises:
          SettingError: if the data set is not there.
        """
        self._check()
        return super().list_shards(split)

    def num_input_examples(self, split: str) -> int:
        """Counts the examples of a split.

        Raises:
          SettingError: if the data set is not there.
        """
        self._check()
        return super().num_input_examples(split)

    def get_dataset(self, split: str = "train", *args, **options) -> tf.data.Dataset:
        """Reads a split, many files in turn; arguments and result are those of `seqio.DataSource`.

        Raises:
          SettingError: if the data set is not there.
        """
        self._check()
        return super().get_dataset(split, *args, **options)

    def records(
        self, split: str, shuffle: bool, seed: int | None, shard_info: seqio.ShardInfo | None
    ) -> tf.data.Dataset:
        """Reads a split as it lies on the disk, one file after the other.

        It holds little, in memory and in checkpoints, and is made in milliseconds, where the reader of TFDS takes tens
        of them: what 107 languages at once need.

        Args:
          split: which split; a whole one of the data set.
          shuffle: whether the files come in another order each time.
          seed: of that order.
          shard_info: which part of the files (of the records, where there are fewer files); None for all.

        Returns:
          Dataset of serialised `tf.train.Example`s, string scalars.

        Raises:
          SettingError: if the data set is not there.
        """
        self._check()
        info = self.tfds_dataset.builder.info.splits[self._split_names[split]]
        names = [str(path) for path in info.filepaths]
        files = tf.data.Dataset.from_tensor_slices(names)
        is_cut_by_file = shard_info is not None and len(names) >= shard_info.num_shards
        if is_cut_by_file:
            files = files.shard(shard_info.num_shards, shard_info.index)
        if shuffle:
            files = files.shuffle(len(names), seed=seed)
        records = tf.data.TFRecordDataset(files)
        if shard_info is not None and not is_cut_by_file:
            records = records.shard(shard_info.num_shards, shard_info.index)
        return records
