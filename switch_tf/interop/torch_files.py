"""Files that `torch.save` writes (`pytorch_model.bin`), read without torch.

They are zip archives: a pickle that describes the tensors, and the bytes of each storage, uncompressed. A pickle can
run any code, so only the names that a dict of tensors needs are looked up, and none of them leads to torch.
"""

import collections
import io
import pickle
import threading
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from switch_tf.errors import SettingError
from switch_tf.interop import binary_files
from switch_tf.interop.lazy_tensors import BFLOAT16, LazyTensor

_STORAGES = {
    "FloatStorage": np.dtype(np.float32),
    "BFloat16Storage": BFLOAT16,
    "HalfStorage": np.dtype(np.float16),
    "DoubleStorage": np.dtype(np.float64),
}
_ZIP = b"PK\x03\x04"
# Of a member's own header: its fixed part, and where in it the lengths of the name and of the extra field are.
_LOCAL_HEADER, _LENGTHS_AT = 30, 26
_BYTES_AT_ONCE = 1 << 26


class _Storage:
    """The bytes of one storage, in which several tensors may have their elements."""

    def __init__(self, path: str, member: zipfile.ZipInfo, dtype: np.dtype):
        if member.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{member.filename} is compressed")
        lengths = binary_files.read_range(path, member.header_offset + _LENGTHS_AT, 4).view("<u2")
        self.path = path
        self.name = member.filename
        self.first = member.header_offset + _LOCAL_HEADER + int(lengths.sum(dtype=np.int64))
        self.size = member.file_size
        self.checksum = member.CRC
        self.dtype = dtype
        self._lock = threading.Lock()
        self._is_checked = not self.checksum  # torch can be told to write none.

    def read(self, start: int, size: int) -> np.ndarray:
        """Reads elements; the checksum of the whole storage is checked before the first ones are returned."""
        whole = size * self.dtype.itemsize == self.size
        values = binary_files.read_range(
            self.path, self.first + start * self.dtype.itemsize, size * self.dtype.itemsize
        )
        with self._lock:
            if not self._is_checked:
                self._check(zlib.crc32(values.data) if whole else self._checksum_of_all())
        return values.view(self.dtype)

    def _checksum_of_all(self) -> int:
        checksum = 0
        for start in range(0, self.size, _BYTES_AT_ONCE):
            size = min(_BYTES_AT_ONCE, self.size - start)
            checksum = zlib.crc32(binary_files.read_range(self.path, self.first + start, size).data, checksum)
        return checksum

    def _check(self, checksum: int) -> None:
        if checksum != self.checksum:
            raise SettingError(
                f"{self.path} is damaged: the checksum of {self.name} is not the one recorded; copy or download it "
                "again."
            )
        self._is_checked = True


def _view(storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *unused: object) -> LazyTensor:
    """What the pickle calls to make a tensor: `torch._utils._rebuild_tensor_v2`."""
    del unused  # Whether it needs a gradient, hooks.
    if len(shape) != len(strides) or offset < 0 or min((*shape, *strides), default=0) < 0:
        raise ValueError(f"a tensor of {storage.name} has the shape {shape} and the strides {strides}")
    # What the tensor covers of its storage, not more, is read.
    size = 0 if 0 in shape else 1 + sum((length - 1) * stride for length, stride in zip(shape, strides))
    if (offset + size) * storage.dtype.itemsize > storage.size:
        raise ValueError(f"a tensor ends beyond {storage.name}")

    def read() -> np.ndarray:
        values = storage.read(offset, size)
        steps = [stride * storage.dtype.itemsize for stride in strides]
        return np.lib.stride_tricks.as_strided(values, shape, steps)

    return LazyTensor(tuple(shape), storage.dtype, read)


class _Unpickler(pickle.Unpickler):
    """Looks up nothing but what a dict of tensors is made of."""

    def __init__(self, text: bytes, path: str, members: dict[str, zipfile.ZipInfo]):
        super().__init__(io.BytesIO(text))
        self._path = path
        self._members = members
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise SettingError(
            f"{self._path} was not read: its pickle asks for {module}.{name}, which no file of weights needs and which "
            "may run code; take the weights from a source that you trust, as .safetensors."
        )

    def persistent_load(self, entry: Any) -> _Storage:
        kind, dtype, key = entry[:3]
        if kind != "storage" or not isinstance(dtype, np.dtype):
            raise ValueError(f"an entry {kind!r} is no storage of weights")
        if key not in self._storages:
            self._storages[key] = _Storage(self._path, self._members[f"data/{key}"], dtype)
        return self._storages[key]


def read_torch(path: str) -> dict[str, LazyTensor]:
    """Opens a file of weights.

    Args:
      path: local or in a bucket.

    Returns:
      Its tensors by name: views into their storages with any offset and strides.

    Raises:
      SettingError: if it is damaged or truncated, older than torch 1.6, or its pickle asks for anything else.
    """
    if binary_files.read_range(path, 0, len(_ZIP)).tobytes() != _ZIP:
        raise SettingError(
            f"{path} is no zip archive: torch before 1.6 wrote it, or it is damaged; load it with "
            "torch.load(path, weights_only=True) and save it again."
        )
    try:
        with binary_files.open_to_read(path) as file, zipfile.ZipFile(file) as archive:
            # All members are in one folder, whose name is up to the writer.
            members = {member.filename.partition("/")[2]: member for member in archive.infolist()}
            text = archive.read(members["data.pkl"])
            order = archive.read(members["byteorder"]) if "byteorder" in members else b"little"
        if order != b"little":
            raise ValueError("its numbers are big-endian")
        tensors = _Unpickler(text, path, members).load()
        return {name: tensor for name, tensor in tensors.items() if isinstance(tensor, LazyTensor)}
    except SettingError:
        raise
    except Exception as error:  # A damaged pickle raises anything.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingError(f"{path} is truncated or damaged ({reason}); copy or download it again.") from error
