"""TensorFlow Datasets as a source: data are prepared before a run, never in it, and what is missing is told."""

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from switch_tf.errors import SettingError


def open_builder(tfds_name: str, data_dir: str | None = None) -> tfds.core.DatasetBuilder:
    """Finds a data set of TensorFlow Datasets, prepared or not; nothing is downloaded.

    Args:
      tfds_name: name, configuration and version, "glue/cola:2.0.0".
      data_dir: where prepared data sets lie; None for TFDS_DATA_DIR.

    Returns:
      Its builder.

    Raises:
      SettingError: if TensorFlow Datasets knows no such name or version, or `data_dir` cannot be read.
    """
    try:
        return tfds.builder(tfds_name, data_dir=data_dir)
    except (tfds.core.DatasetNotFoundError, AssertionError, ValueError) as error:
        # The other lines list every data set that there is.
        reason = str(error).splitlines()[0]
        raise SettingError(f"tensorflow-datasets {tfds.__version__} has no {tfds_name}: {reason}") from error
    except (tf.errors.OpError, OSError) as error:
        raise SettingError(
            f"{tfds_name} cannot be looked up in {data_dir or tfds.core.constants.DATA_DIR}, is the network there? Set "
            f"TFDS_DATA_DIR to a folder that can be read ({type(error).__name__})."
        ) from error


class _PreparedLoader(seqio.LazyTfdsLoader):
    """All that seqio asks of TensorFlow Datasets comes through `_get_builder`."""

    @property
    def data_dir(self) -> str | None:
        # seqio's loader keeps the first override that it sees, whatever is set later.
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
                    f"The data set {name} is not prepared in {builder.data_dir}: run `python -m tasks.prepare {name}`, "
                    "or set TFDS_DATA_DIR to the folder or bucket that holds it."
                )
            self._MEMOIZED_BUILDERS[key] = builder
        return self._MEMOIZED_BUILDERS[key]


class PreparedTfds(seqio.TfdsDataSource):
    """A data set that TensorFlow Datasets has prepared in TFDS_DATA_DIR (or in seqio's override of it).

    A run that finds its data missing says so and stops; seqio's own source would download them in every process of
    the run, or fail with a KeyError.
    """

    def __init__(self, tfds_name: str, splits: dict[str, str]):
        """Names the data set; nothing is looked up yet.

        Args:
          tfds_name: name, configuration and version, "glue/cola:2.0.0".
          splits: the split or slice of the data set behind each split of the task, {"train": "train[:90%]", ...};
            kept as `slices`.
        """
        super().__init__(tfds_name, splits=splits, read_only=True)
        self._tfds_dataset = _PreparedLoader(tfds_name, split_map=dict(splits), read_only=True)
        self.slices = splits


def same_splits(*names: str) -> dict[str, str]:
    """Returns splits that have the names which they have in TensorFlow Datasets."""
    return {name: name for name in names}
