"""Parts of large files, on a disk of this machine or in a bucket: read by their offset, written from front to back."""

import os
from typing import BinaryIO

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.errors import SettingError


def size_of(path: str) -> int:
    """Bytes in a file.

    Raises:
      SettingError: if it is not there or cannot be read.
    """
    try:
        return tf.io.gfile.stat(path).length if storage.in_bucket(path) else os.stat(path).st_size
    except (OSError, tf.errors.OpError) as error:
        raise SettingError(f"{path} cannot be read: {_reason(error)}.") from error


def read_range(path: str, offset: int, size: int) -> np.ndarray:
    """Reads `size` bytes from `offset` on.

    Nothing is mapped into memory: a page of a map counts as memory of the process until the system needs it.

    Returns:
      uint8 [size].

    Raises:
      SettingError: if the file is shorter, or cannot be read.
    """
    try:
        if storage.in_bucket(path):
            with open_to_read(path) as file:
                file.seek(offset)
                values = np.frombuffer(file.read(size), np.uint8)
        else:
            values = np.fromfile(path, np.uint8, size, offset=offset)
    except (OSError, tf.errors.OpError) as error:
        raise SettingError(f"{path} cannot be read: {_reason(error)}.") from error
    if len(values) != size:
        raise SettingError(f"{path} is truncated: it ends before byte {offset + size}; copy or download it again.")
    return values


def read_text(path: str) -> str:
    """Reads a whole text file.

    Raises:
      SettingError: if it cannot be read or is no text.
    """
    try:
        return read_range(path, 0, size_of(path)).tobytes().decode()
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is damaged: it is no text ({error.reason}); copy or download it again.") from error


def write_text(path: str, text: str) -> None:
    """Writes a whole text file.

    Raises:
      OSError, tf.errors.OpError: if it cannot be written.
    """
    with create(path) as file:
        file.write(text.encode())


def open_to_read(path: str) -> BinaryIO:
    """Opens a file to read."""
    return tf.io.gfile.GFile(path, "rb") if storage.in_bucket(path) else open(path, "rb")


def create(path: str) -> BinaryIO:
    """Opens a file to write."""
    return tf.io.gfile.GFile(path, "wb") if storage.in_bucket(path) else open(path, "wb")


def write(file: BinaryIO, array: np.ndarray) -> None:
    """Writes an array's elements in C order."""
    values = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    file.write(values.tobytes() if isinstance(file, tf.io.gfile.GFile) else values.data)


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
