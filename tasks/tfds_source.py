"""TensorFlow Datasets as a source: data are prepared before a run, never in it, and missing data are an error."""

from collections.abc import Mapping

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from switch_tf.errors import SettingError


def open_builder(tfds_name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Looks up a data set of TensorFlow Datasets, prepared or not; nothing is downloaded.

    Args:
      tfds_name: name, configuration and version, "glue/cola:2.0.0".
      data_dir: of prepared data sets; None for TFDS_DATA_DIR.

    Returns:
      Its builder.

    Raises:
      SettingError: if TensorFlow Datasets knows no such name or version, or `data_dir` cannot be read.
    """
    try:
        return tfds.builder(tfds_name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        # The other lines list every known data set.
        reason = str(error).splitlines()[0]
        raise SettingError(f"tensorflow-datasets {tfds.__version__} has no {tfds_name}: {reason}") from error
    except (tf.errors.OpError, OSError) as error:
        raise SettingError(
            f"{tfds_name} cannot be looked up in {data_dir or tfds.core.constants.DATA_DIR}, is the network there? Set "
            f"TFDS_DATA_DIR to a folder that can be read ({type(error).__name__})."
        ) from error


class _PreparedLoader(seqio.LazyTfdsLoader):
    """A loader that never downloads: seqio reaches TensorFlow Datasets only through `_get_builder`."""

    def __init__(self, tfds_name: str, splits: Mapping[str, str], otherwise: str):
        super().__init__(tfds_name, split_map=dict(splits), read_only=True)
        self._otherwise = otherwise

    @property
    def data_dir(self) -> str | None:
        # seqio's loader would keep the first override that it sees.
        self._data_dir_override = None
        return super().data_dir

    def _get_builder(self, split: str | None = None) -> tfds.core.DatasetBuilder:
        name, data_dir = self.get_split_params(split)
        key = self._get_builder_key(name, data_dir)
        if key not in self._MEMOIZED_BUILDERS:
            builder = open_builder(name, data_dir)
            if not builder.info.splits:
                # Not memoized: it may be prepared by the next time.
                raise SettingError(
                    f"The data set {name} is not prepared in {builder.data_dir}: set TFDS_DATA_DIR to the folder or "
                    f"bucket that holds it, or run `python -m tasks.prepare {name}`{self._otherwise}."
                )
            self._MEMOIZED_BUILDERS[key] = builder
        return self._MEMOIZED_BUILDERS[key]


class PreparedTfds(seqio.TfdsDataSource):
    """A data set that TensorFlow Datasets has prepared in TFDS_DATA_DIR (or in seqio's override of it).

    Missing data are an error; seqio's own source would download them in every process of the run, or fail with a
    KeyError.
    """

    def __init__(self, tfds_name: str, splits: Mapping[str, str], otherwise: str = ""):
        """Names the data set; nothing is looked up yet.

        Args:
          tfds_name: name, configuration and version, "glue/cola:2.0.0".
          splits: the split or slice of the data set behind each split of the task, {"train": "train[:90%]", ...};
            kept as `slices`.
          otherwise: what the error for missing data adds after the command that prepares them.
        """
        super().__init__(tfds_name, splits=dict(splits), read_only=True)
        self._tfds_dataset = _PreparedLoader(tfds_name, splits, otherwise)
        self.slices = splits

    def records(
        self, split: str, shuffle: bool, seed: int | None, shard_info: seqio.ShardInfo | None
    ) -> tf.data.Dataset:
        """Reads the serialized records of a split, one file after the other.

        Such a dataset is small, in memory and in checkpoints, and takes milliseconds to build, a tenth of TFDS's own
        reader; 107 languages at once need that.

        Args:
          split: which split; a whole one of the data set.
          shuffle: whether the files come in another order each time.
          seed: of that order.
          shard_info: which shard of the files (of the records, if there are fewer files than shards); None for all.

        Returns:
          Dataset of serialized `tf.train.Example`s, string scalars.

        Raises:
          SettingError: if the data set is not prepared.
        """
        names = [str(path) for path in self.tfds_dataset.info.splits[self.slices[split]].filepaths]
        files = tf.data.Dataset.from_tensor_slices(names)
        num_shards, index = (shard_info.num_shards, shard_info.index) if shard_info is not None else (1, 0)
        is_sharded_by_file = len(names) >= num_shards
        if num_shards > 1 and is_sharded_by_file:
            files = files.shard(num_shards, index)
        if shuffle:
            files = files.shuffle(len(names), seed=seed)
        records = tf.data.TFRecordDataset(files)
        return records if is_sharded_by_file else records.shard(num_shards, index)


def data_set_of(task: seqio.Task) -> str | None:
    """Returns the name, with configuration and version, of the data set that a task reads; None for other sources."""
    loader = getattr(task.source, "tfds_dataset", None)
    return loader and loader.name


def same_splits(*names: str) -> dict[str, str]:
    """Returns splits under the names that they have in TensorFlow Datasets."""
    return {name: name for name in names}
