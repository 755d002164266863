"""Downloads and prepares the data of tasks, once, before runs: `python -m tasks.prepare glue super_glue squad`.

Takes names of tasks and mixtures of this package, and of data sets (`glue/cola:2.0.0`). They go to TFDS_DATA_DIR, a
folder or a bucket that all processes of a run can read.
"""

import argparse
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

import tasks.all  # noqa: F401
from switch_tf.errors import SettingError, nearest
from tasks.tfds_source import data_set_of, open_builder

# Any response, even an error, shows that there is a network.
_PROBE = "https://www.tensorflow.org/datasets"


def data_sets_of(name: str) -> list[str]:
    """Returns the data sets of TensorFlow Datasets that a task or mixture reads, or the one of this name.

    Raises:
      SettingError: if `name` is neither a task, a mixture nor a data set with a version, or reads no such data set.
    """
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if name not in known:
        if ":" in name:
            return [name]
        raise SettingError(
            f"{name} is not a task or mixture{nearest(name, known)}; a data set is named with its version, as in "
            "glue/cola:2.0.0."
        )
    found = map(data_set_of, seqio.get_subtasks(seqio.get_mixture_or_task(name)))
    names = list(dict.fromkeys(data_set for data_set in found if data_set is not None))
    if not names:
        raise SettingError(f"{name} reads no data set of TensorFlow Datasets: there is nothing to prepare.")
    return names


def prepare(tfds_name: str) -> str:
    """Downloads and prepares one data set, unless it is prepared already.

    Args:
      tfds_name: name, configuration and version, "glue/cola:2.0.0".

    Returns:
      Its folder.

    Raises:
      SettingError: without a network, without Apache Beam if it is needed, if files must be downloaded by hand, or if
        the folder cannot be written.
    """
    builder = open_builder(tfds_name)
    if builder.info.splits:
        return str(builder.data_dir)
    try:
        # TensorFlow Datasets itself would retry for minutes.
        urllib.request.urlopen(_PROBE, timeout=10).close()
    except urllib.error.HTTPError:
        pass
    except OSError as error:
        raise SettingError(
            f"{tfds_name} cannot be downloaded without a network ({error}): prepare it on a machine that has one, and "
            f"copy it to {builder.data_dir} or set TFDS_DATA_DIR to its folder."
        ) from error
    try:
        builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise SettingError(f"{tfds_name} is prepared by {error.name}, which is missing: pip install it.") from error
    except (AssertionError, OSError, tfds.download.DownloadError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(f"{tfds_name} could not be prepared in {builder.data_dir}: {reason}") from error
    return str(builder.data_dir)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepares what the command line names; returns the exit status, 2 after an error."""
    parser = argparse.ArgumentParser(prog="python -m tasks.prepare", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="+", metavar="NAME", help="task, mixture, or data set with its version")
    try:
        for name in parser.parse_args(arguments).names:
            for data_set in data_sets_of(name):
                print(f"{data_set}: {prepare(data_set)}", flush=True)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
