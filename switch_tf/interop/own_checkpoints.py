"""Checkpoints of our own as a source and as a target, one tensor (of experts: one expert) at a time."""

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder, checkpoints_of, find_checkpoint
from switch_tf.checkpoints.manifest import SLOTS, Manifest
from switch_tf.checkpoints.tensor_bundle import Shard
from switch_tf.interop import binary_files
from switch_tf.interop.lazy_tensors import LazyTensor, LazyTensors, read_ahead, stacked
from switch_tf.interop.sources import Source
from switch_tf.models.config import ModelConfig
from switch_tf.partitioning.axes import ShardIndex

_FLOAT32 = np.dtype(np.float32)
# A bundle's file holds so much; one is written while the next is read.
_BYTES_AT_ONCE = 1 << 27


def _lazy(checkpoints: CheckpointFolder, step: int, name: str, shape: tuple[int, ...]) -> LazyTensor:
    prefix = checkpoints.prefix(step)

    def read(place: str) -> np.ndarray:
        try:
            return tensor_bundle.read(prefix, name, tf.float32, place).numpy()
        except tf.errors.OpError as error:
            raise checkpoints.unreadable(step, error) from error

    def row(index: int) -> LazyTensor:
        place = tensor_bundle.slice_spec(_row(index, shape), shape)
        return LazyTensor(shape[1:], _FLOAT32, lambda: read(place).reshape(shape[1:]))

    if "/experts/" in name and SLOTS not in name:
        return stacked([row(index) for index in range(shape[0])])
    return LazyTensor(shape, _FLOAT32, lambda: read(""))


def _row(index: int, shape: tuple[int, ...]) -> ShardIndex:
    return ShardIndex((index, *(0 for _ in shape[1:])), (1, *shape[1:]))


def read_own(path: str) -> Source:
    """Opens a checkpoint of ours.

    Args:
      path: a model directory, for its newest checkpoint, or one of its checkpoints; local or in a bucket.

    Returns:
      Weights and slots.

    Raises:
      SettingError: if there is none, or it is damaged.
    """
    checkpoints, step = find_checkpoint(path)
    manifest = checkpoints.manifest(step)
    model_dir = os.path.dirname(checkpoints.folder)
    tensors = {
        name: _lazy(checkpoints, step, name, tuple(shape)) for name, shape in manifest.shapes.items() if name != "step"
    }
    gin_file = os.path.join(model_dir, "config.gin")
    return Source(
        kind="switch_tf",
        path=path,
        config=ModelConfig(**dict[str, Any](manifest.model)),
        weights={name: tensor for name, tensor in tensors.items() if SLOTS not in name},
        step=step,
        slots={name: tensor for name, tensor in tensors.items() if SLOTS in name},
        slots_since=manifest.slots_since,
        gin=binary_files.read_text(gin_file) if storage.exists(gin_file) else None,
    )


def _pieces(tensors: LazyTensors) -> Iterator[tuple[str, str, LazyTensor]]:
    """Lists what is read at once: (name, place in the tensor, values), with the leading axis where it is a row."""
    for name, tensor in tensors.items():
        if tensor.rows is None:
            yield name, "", tensor.cast(_FLOAT32)
            continue
        for index, row in enumerate(tensor.rows):
            shape = (1, *row.shape)
            place = tensor_bundle.slice_spec(_row(index, tensor.shape), tensor.shape)
            yield name, place, row.cast(_FLOAT32).mapped(functools.partial(np.reshape, shape=shape), shape)


def _files(tensors: LazyTensors, step: int, written: Callable[[int], None]) -> Iterator[list[Shard]]:
    """Reads all tensors; yields what goes into each file of the bundle."""
    shards, size = [Shard("step", "", np.asarray(step, np.int64))], 0
    names_and_places = ((name, place) for name, place, _ in _pieces(tensors))
    arrays = read_ahead(piece for _, _, piece in _pieces(tensors))
    for (name, place), array in zip(names_and_places, arrays):
        shards.append(Shard(name, place, array))
        size += array.nbytes
        written(array.nbytes)
        if size >= _BYTES_AT_ONCE:
            yield shards
            shards, size = [], 0
    if shards:
        yield shards


def write_own(
    model_dir: str, tensors: LazyTensors, manifest: Manifest, written: Callable[[int], None] = lambda _: None
) -> None:
    """Writes a checkpoint, in float32.

    Args:
      model_dir: local or in a bucket.
      tensors: weights and slots by name.
      manifest: of all but the shapes, which are taken from `tensors`.
      written: called with the bytes of what has been written.

    Raises:
      SettingError, OSError, tf.errors.OpError: if it cannot be written.
    """
    checkpoints = checkpoints_of(model_dir)
    checkpoints.prepare(manifest.step)
    prefix = checkpoints.prefix(manifest.step)
    num_files = 0
    writing: list[Future[None]] = []
    with ThreadPoolExecutor(1) as thread:
        for shards in _files(tensors, manifest.step, written):
            while writing:
                writing.pop().result()
            writing.append(thread.submit(tensor_bundle.write_shards, prefix, num_files, shards))
            num_files += 1
        writing.pop().result()
    tensor_bundle.merge_shards(prefix, num_files)
    checkpoints.complete(manifest.step, manifest)
