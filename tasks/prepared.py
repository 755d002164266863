"""TFDS data sets that must have been prepared: nobody wants Common Crawl to be downloaded without being asked."""

from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from switch_tf.errors import SettingError


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
        if not tf.io.gfile.exists(str(builder.data_path / "dataset_info.json")):
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

    def read_in_sequence(
        self, split: str, shuffle: bool, seed: int | None, shard_info: seqio.ShardInfo | None
    ) -> tf.data.Dataset:
        """Reads a split one file after the other, so that neither it nor a checkpoint of it holds much.

        Args:
          split: which split.
          shuffle: whether files come in another order each time.
          seed: of that order.
          shard_info: which part of the files; None for all.

        Returns:
          Dataset of the examples.

        Raises:
          SettingError: if the data set is not there.
        """
        self._check()
        if shard_info is not None and len(self.list_shards(split)) < shard_info.num_shards:
            whole = self.read_in_sequence(split, shuffle, seed, None)
            return whole.shard(shard_info.num_shards, shard_info.index)
        config = tfds.ReadConfig(
            shuffle_seed=seed,
            skip_prefetch=True,
            try_autocache=False,
            interleave_cycle_length=1,
            num_parallel_calls_for_interleave_files=1,
            num_parallel_calls_for_decode=1,
        )
        if shard_info is not None:
            config.input_context = tf.distribute.InputContext(shard_info.num_shards, shard_info.index)
        return self.tfds_dataset.builder.as_dataset(
            split=self._split_names[split], shuffle_files=shuffle, read_config=config
        )
