"""Tensors that are read when they are needed: what the readers of all formats return, and what the writers take."""

import collections
import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import ml_dtypes
import numpy as np

from switch_tf.errors import SettingError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": BFLOAT16}

_COLUMNS_AT_ONCE = 64
_BYTES_AHEAD = 1 << 27
# More than cores: a disk or a bucket that is read by one or two of them is not busy.
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class LazyTensor:
    """A tensor that is somewhere on a disk.

    Attributes:
      shape: of the array that `read` returns.
      dtype: of that array.
      read: reads it; the caller may keep it, and nothing else does.
      rows: where the leading axis can be read one index at a time (the experts of a table), a tensor for each.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    rows: tuple["LazyTensor", ...] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read_block(self, start: Sequence[int], shape: Sequence[int]) -> np.ndarray:
        """Reads a block of the tensor; of a tensor with rows, no other rows.

        Args:
          start: index of the block's first element.
          shape: of the block.
        """
        place = tuple(slice(first, first + size) for first, size in zip(start, shape))
        if self.rows is None:
            return self.read()[place]
        return np.stack([row.read()[place[1:]] for row in self.rows[place[0]]])

    def mapped(self, function: Callable[[np.ndarray], np.ndarray], shape: Sequence[int]) -> "LazyTensor":
        """Returns the tensor, without rows, that `function` makes of this one; it has `shape` and the same dtype."""
        return LazyTensor(tuple(shape), self.dtype, lambda: function(self.read()))

    def cast(self, dtype: np.dtype) -> "LazyTensor":
        """Returns this tensor in another dtype."""
        if dtype == self.dtype:
            return self
        rows = None if self.rows is None else tuple(row.cast(dtype) for row in self.rows)

        def read() -> np.ndarray:
            array = self.read()
            if self.dtype == BFLOAT16 and dtype == np.dtype(np.float32):
                return widened(array)
            # What jumps through memory is to jump through the smaller of the two.
            return (contiguous(array) if self.dtype.itemsize < dtype.itemsize else array).astype(dtype)

        return LazyTensor(self.shape, dtype, read, rows)


LazyTensors = Mapping[str, LazyTensor]


def in_memory(array: np.ndarray) -> LazyTensor:
    """Returns an array as a lazy tensor."""
    return LazyTensor(array.shape, array.dtype, lambda: array)


def stacked(rows: Sequence[LazyTensor]) -> LazyTensor:
    """Returns the table of equally shaped rows, such as experts, in the dtype that holds them all."""
    dtype = functools.reduce(np.promote_types, {row.dtype for row in rows})
    rows = tuple(row.cast(dtype) for row in rows)

    def read() -> np.ndarray:
        table = np.empty(shape, dtype)
        for index, row in enumerate(rows):
            table[index] = row.read()
        return table

    shape = (len(rows), *rows[0].shape)
    return LazyTensor(shape, dtype, read, rows)


def rows_of(tensor: LazyTensor) -> tuple[LazyTensor, ...]:
    """Returns the rows of a table; of one that can only be read whole, each row reads all of it."""
    if tensor.rows is not None:
        return tensor.rows

    def row(index: int) -> LazyTensor:
        return LazyTensor(tensor.shape[1:], tensor.dtype, lambda: tensor.read()[index])

    return tuple(row(index) for index in range(tensor.shape[0]))


def numpy_dtype(name: str, source: str) -> np.dtype:
    """Returns the dtype of weights by its name.

    Args:
      name: "float32", "bfloat16", "float16" or "float64".
      source: what has it, for the error.

    Raises:
      SettingError: for any other dtype.
    """
    if name not in ("float32", "bfloat16", "float16", "float64"):
        raise SettingError(f"{source} has the dtype '{name}': weights must be float32, bfloat16, float16 or float64.")
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def contiguous(array: np.ndarray) -> np.ndarray:
    """Returns the array in C order; of matrices, faster than numpy, which jumps from row to row for each number."""
    if array.flags.c_contiguous or array.ndim != 2:
        return np.ascontiguousarray(array)
    copy = np.empty(array.shape, array.dtype)
    _copy_columns(array, copy)
    return copy


def widened(array: np.ndarray) -> np.ndarray:
    """Returns bfloat16 as float32, in C order: its bits are the upper half of theirs.

    numpy casts types of its own alone without holding Python's lock.
    """
    halves = np.zeros((*array.shape, 2), np.uint16)
    upper = halves[..., 1 if sys.byteorder == "little" else 0]
    if array.ndim == 2 and not array.flags.c_contiguous:
        _copy_columns(array.view(np.uint16), upper)
    else:
        upper[...] = array.view(np.uint16)
    return halves.view(np.float32)[..., 0]


def _copy_columns(source: np.ndarray, target: np.ndarray) -> None:
    for start in range(0, source.shape[1], _COLUMNS_AT_ONCE):
        target[:, start : start + _COLUMNS_AT_ONCE] = source[:, start : start + _COLUMNS_AT_ONCE]


def _read_contiguous(tensor: LazyTensor) -> np.ndarray:
    return contiguous(tensor.read())


def read_ahead(tensors: Iterable[LazyTensor]) -> Iterator[np.ndarray]:
    """Reads tensors in their order, some of them before they are asked for.

    Args:
      tensors: any number.

    Yields:
      Their arrays in C order. Those that wait are no more than 128 MB together, or one tensor.
    """
    waiting: collections.deque[tuple[int, Future[np.ndarray]]] = collections.deque()
    with ThreadPoolExecutor(_THREADS) as threads:
        for tensor in tensors:
            while waiting and sum(size for size, _ in waiting) + tensor.nbytes > _BYTES_AHEAD:
                yield waiting.popleft()[1].result()
            waiting.append((tensor.nbytes, threads.submit(_read_contiguous, tensor)))
        while waiting:
            yield waiting.popleft()[1].result()
