"""Reads CSV records of any size: a small file whole, of a large one blocks that are spread evenly over it."""

import csv
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from switch_tf import storage

_MAX_BYTES = 32 * 2**20
_NUM_BLOCKS = 256


class Rows(NamedTuple):
    """Rows of a CSV file in order, all of them or a sample: the column names, and text values [rows, columns]."""

    columns: list[str]
    values: list[list[str]]


def _blocks(path: str, max_bytes: int) -> Iterator[str]:
    """Yields the complete lines of evenly spread blocks; the first block begins with the header."""
    size = tf.io.gfile.stat(path).length
    with tf.io.gfile.GFile(path, "rb") as file:
        if size <= max_bytes:
            # A file that grows meanwhile is read up to the size that it had.
            yield _complete(file.read(size), is_start=True)
            return
        block = max_bytes // _NUM_BLOCKS
        for start in np.linspace(0, size - block, _NUM_BLOCKS).astype(int):
            file.seek(int(start))
            yield _complete(file.read(block), is_start=start == 0)


def _complete(data: bytes, is_start: bool) -> str:
    """Drops what precedes the first line break (except at the file's start) and follows the last."""
    begin = 0 if is_start else data.find(b"\n") + 1
    return data[begin : data.rfind(b"\n") + 1].decode(errors="replace")


def read_evenly(path: str, max_bytes: int = _MAX_BYTES) -> Rows:
    """Reads a CSV file with a header.

    Rows that are cut off are left out: the last one of a file that is being written, those at the edges of blocks.

    Args:
      path: local or in a bucket.
      max_bytes: how much to read at most.

    Returns:
      The rows; without columns if there is no file, or no complete line in it.
    """
    columns: list[str] = []
    values: list[list[str]] = []
    if storage.exists(path):
        for text in _blocks(path, max_bytes):
            rows = csv.reader(text.splitlines())
            columns = columns or next(rows, [])
            values.extend(row for row in rows if len(row) == len(columns))
    return Rows(columns, values)


def numbers(values: list[list[str]]) -> np.ndarray:
    """Converts text values to float64 [rows, columns]; an empty one becomes NaN, a row with other text is left out."""
    converted = []
    for row in values:
        try:
            converted.append([float(value) if value else np.nan for value in row])
        except ValueError:
            continue
    return np.array(converted)
