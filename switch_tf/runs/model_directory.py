"""What describes a model directory: `config.gin`, from which every command reads its experiment, and `versions.txt`."""

import importlib.metadata
import os
import platform

import gin
import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints.folder import checkpoints_of, write_error
from switch_tf.errors import SettingError

# In which a run writes; "plugins" is the profiler's.
_FOLDERS = ("checkpoints", "vocabulary", "plugins")
_PACKAGES = ("tensorflow-text", "keras", "seqio", "t5", "tensorflow-datasets", "gin-config", "numpy")


def versions() -> dict[str, str]:
    """Returns the versions that a run depends on."""
    # On a TPU it is the distribution tensorflow-tpu that brings TensorFlow.
    basis = {"python": platform.python_version(), "tensorflow": tf.__version__}
    return basis | {name: importlib.metadata.version(name) for name in _PACKAGES}


def check_links(model_dir: str) -> None:
    """Checks that no folder in which a run writes leads out of the model directory, which may itself be a link.

    Raises:
      SettingError: with one that does.
    """
    if storage.in_bucket(model_dir):
        return
    root = os.path.realpath(model_dir)
    for name in _FOLDERS:
        target = os.path.realpath(os.path.join(root, name))
        if os.path.commonpath((root, target)) != root:
            raise SettingError(
                f"MODEL_DIR = '{model_dir}': {name} is a link to {target}, out of the model directory: move the whole "
                "directory there, and make MODEL_DIR a link to it."
            )


def write_description(model_dir: str) -> None:
    """Writes `config.gin` (the operative config) and `versions.txt` into the model directory.

    Raises:
      SettingError: if it cannot be written.
    """
    files = {
        "config.gin": gin.operative_config_str(),
        "versions.txt": "".join(f"{name}=={version}\n" for name, version in versions().items()),
    }
    try:
        storage.make_folder(model_dir)
        for name, text in files.items():
            storage.write_atomically(os.path.join(model_dir, name), text)
    except (OSError, tf.errors.OpError) as error:
        raise write_error(model_dir, error, checkpoints_of(model_dir)) from error


def read_description(model_dir: str) -> str:
    """Returns the operative config of a model directory.

    Raises:
      SettingError: if there is none, or it cannot be read.
    """
    try:
        with tf.io.gfile.GFile(os.path.join(model_dir, "config.gin")) as file:
            return file.read()
    except tf.errors.OpError as error:
        refusal = storage.refusal(error)
        if refusal is not None:
            raise SettingError(f"MODEL_DIR = '{model_dir}': {refusal}.") from error
        if not isinstance(error, tf.errors.NotFoundError):
            raise
        raise SettingError(
            f"MODEL_DIR = '{model_dir}' holds no config.gin: it is not a model directory, or not yet."
        ) from error
