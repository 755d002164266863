"""T5X's checkpoints: a tree in msgpack, whose leaves are arrays or say where TensorStore finds one (zarr).

Read and written as t5x/checkpoints.py does it (version 3, and earlier ones), without flax or JAX.
"""

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]  # it has no stubs
import numpy as np
import tensorstore as ts

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.interop import binary_files
from switch_tf.interop.lazy_tensors import BFLOAT16, LazyTensor, LazyTensors, in_memory, numpy_dtype, read_ahead

INDEX = "checkpoint"
_FOLDER = re.compile(r"checkpoint_(\d+)")
_ARRAY, _SCALAR = 1, 3
_CHUNKED = "__msgpack_chunked_array__"
_PLACEHOLDER = "PLACEHOLDER://"
_VERSION = 3
# Adafactor's, beside each other under a weight's name.
_SLOTS = ("v_row", "v_col", "v", "m")
_COMPRESSOR = {"id": "gzip", "level": 1}
# Of a table's decoded chunks, which hold several experts, while its experts are read one after the other.
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 1 << 27}})
_LARGEST_CHUNK = 1 << 26


class Tree(NamedTuple):
    """What a checkpoint holds, by names with "/": the model's weights, its optimizer's slots; and the step."""

    weights: dict[str, LazyTensor]
    slots: dict[str, LazyTensor]
    step: int


def find_folder(path: str) -> str | None:
    """Returns the folder of a checkpoint: `path`, or the newest `checkpoint_N` in it; None where there is none."""
    names = storage.list_folder(path)
    if INDEX in names and not storage.is_folder(os.path.join(path, INDEX)):
        return path if _starts_like_a_tree(os.path.join(path, INDEX)) else None
    steps = [int(match[1]) for match in map(_FOLDER.fullmatch, names) if match]
    return find_folder(os.path.join(path, f"checkpoint_{max(steps)}")) if steps else None


def _starts_like_a_tree(path: str) -> bool:
    """Whether a file named `checkpoint` is msgpack's: TensorFlow has a text file of that name."""
    first = binary_files.read_range(path, 0, 1)[0] if binary_files.size_of(path) else 0
    return first & 0xF0 == 0x80 or first in (0xDE, 0xDF)  # A map.


def _extension(code: int, data: bytes) -> Any:
    if code not in (_ARRAY, _SCALAR):
        raise ValueError(f"an entry of the type {code} is no array")
    shape, name, values = msgpack.unpackb(data, raw=True)
    dtype = BFLOAT16 if name == b"bfloat16" else np.dtype(name.decode())
    return np.frombuffer(values, dtype).reshape(shape)


def _leaves(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Walks a tree to its leaves: arrays, TensorStore's specs, or what is no array at all."""
    if not isinstance(tree, dict) or "driver" in tree:
        yield name, tree
    elif _CHUNKED in tree:
        shape, chunks = tree["shape"], tree["chunks"]
        parts = [chunks[str(index)] for index in range(len(chunks))]
        yield name, np.concatenate(parts).reshape([shape[str(axis)] for axis in range(len(shape))])
    else:
        for key, value in tree.items():
            yield from _leaves(value, f"{name}/{key}" if name else key)


def read_tree(folder: str) -> Tree:
    """Opens a checkpoint.

    Args:
      folder: `checkpoint_N`, local or in a bucket.

    Returns:
      Its tensors. Arrays inside of the index are in memory, those of TensorStore are not.

    Raises:
      SettingError: if it is damaged, or Orbax wrote it.
    """
    path = os.path.join(folder, INDEX)
    try:
        index = binary_files.read_range(path, 0, binary_files.size_of(path))
        tree = msgpack.unpackb(index.data, ext_hook=_extension, strict_map_key=False, raw=False)
        if any(isinstance(leaf, str) and leaf.startswith(_PLACEHOLDER) for _, leaf in _leaves(tree)):
            raise SettingError(
                f"{folder} was written by Orbax, whose arrays are elsewhere: write it again with T5X's own "
                "CheckpointManager (checkpoint_N with a version in its index)."
            )
        tree = tree.get("optimizer", tree)  # Version 0 has no such level.
        target, state = tree["target"], tree.get("state", {})
        weights = {name: _tensor(folder, name, leaf) for name, leaf in _leaves(target)}
        slots = {
            name: _tensor(folder, name, leaf, may_lack_zeros=True)
            for name, leaf in _leaves(state.get("param_states", {}))
            if name.rpartition("/")[2] in _SLOTS
        }
        return Tree(weights, slots, int(np.asarray(state.get("step", 0)).item()))
    except SettingError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SettingError(f"{path} is truncated or damaged ({reason}); copy or download it again.") from error


def _tensor(folder: str, name: str, leaf: Any, may_lack_zeros: bool = False) -> LazyTensor:
    if isinstance(leaf, np.ndarray):
        return in_memory(leaf.view(BFLOAT16) if leaf.dtype == np.uint16 else leaf)
    if not isinstance(leaf, dict):
        raise ValueError(f"{name} is {type(leaf).__name__}, not an array")
    return _stored(folder, name, leaf, may_lack_zeros)


def _stored(folder: str, name: str, spec: Mapping[str, Any], may_lack_zeros: bool) -> LazyTensor:
    """Opens what a spec of T5X's says, wherever the checkpoint has been moved since."""
    kvstore = spec.get("kvstore", spec)  # TensorStore before 0.1.14 had the path a level higher.
    place = os.path.join(folder, os.path.basename(kvstore["path"].rstrip("/")))
    metadata = dict(spec.get("metadata", {}))
    dtype = spec.get("dtype") or metadata.pop("dtype", None)
    opened: dict[str, Any] = {"driver": "zarr", "kvstore": _kvstore(place)}
    if storage.exists(os.path.join(place, ".zarray")):
        opened["fill_missing_data_reads"] = may_lack_zeros
    else:
        # So the released mixtures of experts are (t5x issue 644).
        if not storage.is_folder(place):
            raise SettingError(f"{folder} lacks {os.path.basename(place)}: download it again.")
        known = {"shape", "chunks", "compressor", "fill_value", "order", "dimension_separator"}
        zarr = {key: value for key, value in metadata.items() if key in known}
        opened |= {
            "metadata": {
                "fill_value": None,
                "order": "C",
                "filters": None,
                "zarr_format": 2,
                **zarr,
                "dtype": _zarr_dtype(dtype),
            },
            "assume_metadata": True,
            "fill_missing_data_reads": may_lack_zeros,
        }

    def open_array() -> ts.TensorStore:
        try:
            return ts.open(opened, context=_CONTEXT).result()
        except (ValueError, OSError, RuntimeError) as error:
            raise _unreadable(place, error) from error

    array = open_array()
    shape, is_uint16 = tuple(array.shape), array.dtype.name == "uint16"
    kind = BFLOAT16 if is_uint16 else numpy_dtype(array.dtype.name, place)

    def read(index: Any = ...) -> np.ndarray:
        try:
            values = np.asarray(array[index].read().result())
        except (ValueError, OSError, RuntimeError) as error:
            raise _unreadable(place, error) from error
        return values.view(BFLOAT16) if is_uint16 else values

    if len(shape) < 3:
        return LazyTensor(shape, kind, read)
    rows = [LazyTensor(shape[1:], kind, functools.partial(read, index)) for index in range(shape[0])]
    return LazyTensor(shape, kind, read, tuple(rows))


def _zarr_dtype(name: str | None) -> str:
    return {"float32": "<f4", "float16": "<f2", "float64": "<f8", "uint16": "<u2"}.get(name or "<f4", name or "<f4")


def _kvstore(path: str) -> dict[str, str]:
    if path.startswith("gs://"):
        bucket, _, rest = path.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": rest + "/"}
    return {"driver": "file", "path": os.path.abspath(path) + "/"}


def _unreadable(path: str, error: Exception) -> SettingError:
    # TensorStore puts where in its own source the error arose into brackets.
    reason = " ".join(str(error).partition(" [")[0].split())
    return SettingError(f"{path} is incomplete or damaged ({reason}); copy or download it again.")


def chunks(shape: tuple[int, ...], itemsize: int, is_table: bool) -> tuple[int, ...]:
    """Chooses a chunk's shape: an expert at most, halved along its largest side until it holds 64 MB or less."""
    sides = [1, *shape[1:]] if is_table else list(shape)
    while np.prod(sides) * itemsize > _LARGEST_CHUNK:
        largest = int(np.argmax(sides))
        sides[largest] = -(-sides[largest] // 2)
    return tuple(sides)


def write_tree(
    folder: str,
    weights: LazyTensors,
    slots: LazyTensors,
    step: int,
    written: Callable[[int], None] = lambda _: None,
) -> None:
    """Writes a checkpoint that T5X reads: vectors inside of the index, the rest through TensorStore.

    Args:
      folder: `checkpoint_N`, there and empty.
      weights: by their names.
      slots: of Adafactor, by their names; empty to write weights alone.
      step: N.
      written: called with the bytes of what has been written.

    Raises:
      SettingError, OSError: if it cannot be written.
    """
    state: dict[str, Any] = {"step": np.asarray(step, np.int32)}
    if slots:
        state["param_states"] = _nested(_write(folder, "state.param_states", slots, written))
    target = _nested(_write(folder, "target", weights, written))
    tree = {"version": _VERSION, "optimizer": {"target": target, "state": state}}
    with binary_files.create(os.path.join(folder, INDEX)) as file:
        file.write(msgpack.packb(tree, default=_packed, strict_types=True))


def _packed(value: Any) -> msgpack.ExtType:
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{type(value).__name__} in a tree of arrays")
    content = (list(value.shape), value.dtype.name, np.ascontiguousarray(value).tobytes())
    return msgpack.ExtType(_ARRAY, msgpack.packb(content, use_bin_type=True))


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        *path, last = name.split("/")
        node = tree
        for key in path:
            node = node.setdefault(key, {})
        node[last] = value
    return tree


def _write(folder: str, prefix: str, tensors: LazyTensors, written: Callable[[int], None]) -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    arrays = read_ahead(row for tensor in tensors.values() for row in tensor.rows or (tensor,))
    for name, tensor in tensors.items():
        if len(tensor.shape) < 2:
            leaves[name] = next(arrays)
            written(tensor.nbytes)
            continue
        path = f"{prefix}.{name.replace('/', '.')}"
        metadata = {
            "shape": list(tensor.shape),
            "chunks": list(chunks(tensor.shape, tensor.dtype.itemsize, tensor.rows is not None)),
            "compressor": _COMPRESSOR,
            "dtype": "bfloat16" if tensor.dtype == BFLOAT16 else tensor.dtype.str,
        }
        leaves[name] = {"driver": "zarr", "kvstore": {"driver": "file", "path": path}, "metadata": metadata}
        spec = {
            "driver": "zarr",
            "kvstore": _kvstore(os.path.join(folder, path)),
            "metadata": metadata,
            "store_data_equal_to_fill_value": True,
        }
        try:
            array = ts.open(spec, create=True, write=True).result()
            for place in range(tensor.shape[0]) if tensor.rows is not None else (...,):
                values = next(arrays)
                array[place].write(values).result()
                written(values.nbytes)
        except SettingError:  # Of what is read.
            raise
        except (ValueError, RuntimeError) as error:
            raise SettingError(f"{path} cannot be written: {storage.reason_of(error)}.") from error
    return leaves
