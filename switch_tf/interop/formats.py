"""Checkpoints of any format in, of any other out: which is which, and folders that are there whole or not at all."""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator

import tensorflow as tf

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.interop import binary_files, huggingface_directory, mesh_tensorflow, t5x, t5x_files
from switch_tf.interop.huggingface_json import json_files
from switch_tf.interop.lazy_tensors import DTYPES, LazyTensors
from switch_tf.interop.own_checkpoints import read_own
from switch_tf.interop.sources import Source
from switch_tf.models.config import ModelConfig

READERS: dict[str, Callable[[str], Source]] = {
    "huggingface": huggingface_directory.read_directory,
    "t5x": t5x.read_t5x,
    "mesh_tensorflow": mesh_tensorflow.read_mesh_tensorflow,
    "switch_tf": read_own,
}
_OWN = re.compile(r"step_\d{8,}")


def kind_of(path: str, setting: str = "FROM") -> str:
    """Recognizes a checkpoint by what is in it.

    Args:
      path: a folder, or the prefix of a bundle; local or in a bucket.
      setting: the setting that holds it, for the error.

    Returns:
      One of `READERS`.

    Raises:
      SettingError: if it is none of them.
    """
    names = storage.list_folder(path)
    if "checkpoints" in names or _OWN.fullmatch(os.path.basename(path.rstrip("/"))):
        return "switch_tf"
    if huggingface_directory.weight_file(path):
        return "huggingface"
    if t5x_files.find_folder(path):
        return "t5x"
    if mesh_tensorflow.find_bundle(path):
        return "mesh_tensorflow"
    if not names:
        raise SettingError(f"{setting} = '{path}' is not there, or empty.")
    raise SettingError(
        f"{setting} = '{path}' is no checkpoint: name a Hugging Face directory, a checkpoint_N of T5X, a folder with "
        "model.ckpt-N of Mesh TensorFlow, or a model directory."
    )


def open_source(path: str, kind: str | None = None) -> Source:
    """Opens a checkpoint; reads no large tensor.

    Args:
      path: a folder, or the prefix of a bundle; local or in a bucket.
      kind: one of `READERS`; None to recognize it.

    Raises:
      SettingError: if it is not there, is damaged, or our model has no counterpart.
    """
    return READERS[kind or kind_of(path)](path.rstrip("/"))


@contextlib.contextmanager
def new_folder(path: str, setting: str = "TO") -> Iterator[str]:
    """Makes a folder that is there once everything in it is.

    On a disk it is filled under another name, `PATH.unfinished`, which is removed when something fails, and by the
    next attempt after a kill. In a bucket, where a folder cannot be renamed, what was written is removed again.

    Args:
      path: of the folder; must not be there, or be empty.
      setting: what named the folder, for errors.

    Yields:
      The folder to fill.

    Raises:
      SettingError: if it is there, or cannot be written.
    """
    path = path.rstrip("/")
    filled = path if storage.in_bucket(path) else f"{path}.unfinished"
    if storage.list_folder(path) or (storage.exists(path) and not storage.is_folder(path)):
        raise SettingError(f"{setting} = '{path}' is there already: name a new folder.")
    try:
        if filled != path:
            _remove(filled)
        storage.make_folder(filled)
        yield filled
        if filled != path:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(path)
            os.rename(filled, path)
    except BaseException as error:
        with contextlib.suppress(OSError, tf.errors.OpError):
            _remove(filled)
        if isinstance(error, OSError | tf.errors.OpError):
            refusal = storage.refusal(error) or getattr(error, "strerror", None) or storage.reason_of(error)
            raise SettingError(f"{setting} = '{path}' cannot be written: {refusal}; nothing was left there.") from error
        raise


def _remove(path: str) -> None:
    if storage.in_bucket(path):
        if storage.is_folder(path):
            tf.io.gfile.rmtree(path)
    else:
        shutil.rmtree(path, ignore_errors=True)


def write_huggingface(
    folder: str,
    config: ModelConfig,
    weights: LazyTensors,
    vocabulary: bytes | None,
    family: str | None = None,
    dtype: str = "float32",
    shard_bytes: int = huggingface_directory.SHARD_BYTES,
    written: Callable[[int], None] = lambda _: None,
) -> None:
    """Fills a directory that `from_pretrained` of transformers reads.

    Args:
      folder: there, and empty.
      config: ours.
      weights: ours, by name.
      vocabulary: the serialized SentencePiece model; None for none.
      family: "switch_transformers", "t5" or "mt5"; None: the first with experts, else "t5".
      dtype: "float32" or "bfloat16".
      shard_bytes: the most that a file of weights holds.
      written: called with the bytes of what has been written.

    Raises:
      SettingError: if theirs has no counterpart of a setting or a weight.
      OSError, tf.errors.OpError: if it cannot be written.
    """
    for name, values in json_files(config, family, dtype, vocabulary is not None).items():
        binary_files.write_text(os.path.join(folder, name), json.dumps(values, indent=2, sort_keys=True) + "\n")
    if vocabulary is not None:
        with binary_files.create(os.path.join(folder, huggingface_directory.VOCABULARY)) as file:
            file.write(vocabulary)
    theirs = huggingface_directory.their_weights(config, weights)
    tensors = {name: tensor.cast(DTYPES[dtype]) for name, tensor in theirs.items()}
    huggingface_directory.write_weights(folder, tensors, shard_bytes, written)
