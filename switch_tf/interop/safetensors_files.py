"""Files of the safetensors format: the length of a JSON header, the header, the tensors in C order.

Read and written here one tensor at a time; the package `safetensors` wants all tensors of a file in memory to write it.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from switch_tf.errors import SettingError
from switch_tf.interop import binary_files
from switch_tf.interop.lazy_tensors import BFLOAT16, LazyTensor, LazyTensors, read_ahead

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": BFLOAT16,
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_METADATA = "__metadata__"
_LARGEST_HEADER = 100_000_000


def read_safetensors(path: str) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """Opens a file.

    Args:
      path: local or in a bucket.

    Returns:
      (its tensors by name, the metadata of its header).

    Raises:
      SettingError: if it is damaged or truncated.
    """
    size = binary_files.size_of(path)
    try:
        length = int.from_bytes(binary_files.read_range(path, 0, 8).tobytes(), "little")
        if length > min(size - 8, _LARGEST_HEADER):
            raise ValueError(f"its header would have {length} bytes")
        header = json.loads(binary_files.read_range(path, 8, length).tobytes())
        metadata = header.pop(_METADATA, {})
        tensors = {name: _tensor(path, 8 + length, **entry) for name, entry in header.items()}
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(
            f"{path} is damaged: it is no safetensors file ({error}); copy or download it again."
        ) from error
    if end != size:
        raise SettingError(
            f"{path} is {'truncated' if end > size else 'damaged'}: it has {size} bytes and its header says {end}; "
            "copy or download it again."
        )
    return tensors, metadata


def _tensor(path: str, first: int, dtype: str, shape: list[int], data_offsets: list[int]) -> LazyTensor:
    start, end = data_offsets
    kind = _DTYPES[dtype]
    if end - start != math.prod(shape) * kind.itemsize:
        raise ValueError(f"a tensor of shape {shape} has {end - start} bytes")
    return LazyTensor(
        tuple(shape),
        kind,
        lambda: binary_files.read_range(path, first + start, end - start).view(kind).reshape(shape),
    )


def write_safetensors(path: str, tensors: LazyTensors, written: Callable[[int], None] = lambda _: None) -> None:
    """Writes a file, one tensor after the other.

    Args:
      path: of the file.
      tensors: by name.
      written: called with the bytes of each tensor that has been written.

    Raises:
      OSError, tf.errors.OpError: if it cannot be written.
    """
    header: dict[str, dict[str, Any]] = {_METADATA: {"format": "pt"}}
    position = 0
    for name, tensor in tensors.items():
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with binary_files.create(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in read_ahead(tensors.values()):
            binary_files.write(file, array)
            written(array.nbytes)
