"""State on disk: TensorFlow's tensor bundles, written in blocks by many processes and read in whatever blocks.

A bundle knows tensors by their names and whole shapes and finds any block of one, however it was sharded when
it was written: the files say nothing of engines, meshes or processes. `tf.train.load_checkpoint` reads them.
"""

import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.partitioning.axes import ShardIndex

# Where a GPU is visible, TensorFlow would take host arrays there first.
_HOST = "CPU:0"


class Shard(NamedTuple):
    """A tensor, or a block of one, that a process writes.

    Attributes:
      name: of the whole tensor.
      place: which block of it this is, as `slice_spec` says it; "" for all of it.
      values: the block's elements.
    """

    name: str
    place: str
    values: np.ndarray | tf.Tensor


def slice_spec(block: ShardIndex, shape: Sequence[int]) -> str:
    """Says where a block is in a tensor of `shape`, in the notation of `SaveV2`: "4 6 0,2:3,3"; "" for all of it."""
    if tuple(block.shape) == tuple(shape):
        return ""
    ranges = ":".join(f"{start},{size}" for start, size in zip(block.start, block.shape))
    return " ".join(map(str, (*shape, ranges)))


def _part(prefix: str, process: int) -> str:
    return f"{prefix}.part_{process:05d}"


def _mark(prefix: str, process: int) -> str:
    return f"{_part(prefix, process)}.written"


def processes_written(prefix: str) -> set[int]:
    """Lists the processes that have written all that they have of the bundle `prefix`.

    Raises:
      tf.errors.OpError: if its folder cannot be looked up.
    """
    folder, name = os.path.split(prefix)
    mark = re.compile(re.escape(name) + r"\.part_(\d+)\.written")
    # One listing, however many processes there are: in a bucket each look costs.
    found = (mark.fullmatch(file) for file in storage.list_folder(folder))
    return {int(match[1]) for match in found if match}


def _without_copy(values: np.ndarray | tf.Tensor) -> tf.Tensor:
    """Returns a tensor; an array's shares its memory, which may be aligned too loosely for anything but `SaveV2`."""
    if isinstance(values, np.ndarray) and values.flags.c_contiguous and values.flags.writeable:
        return tf.experimental.dlpack.from_dlpack(values.__dlpack__())
    return tf.convert_to_tensor(values)


def write_shards(prefix: str, process: int, shards: list[Shard]) -> None:
    """Writes what one process has of the bundle `prefix`.

    Args:
      prefix: of the bundle.
      process: index of the process.
      shards: its shards. The list is emptied on the way, and arrays are not copied.

    Raises:
      tf.errors.OpError: if the files cannot be written.
    """
    names, places, tensors = [], [], []
    with tf.device(_HOST):
        while shards:
            name, place, values = shards.pop()
            names.append(name)
            places.append(place)
            tensors.append(_without_copy(values))
        if tensors:  # A process may hold nothing but what another one saves.
            tf.raw_ops.SaveV2(
                prefix=_part(prefix, process), tensor_names=names, shape_and_slices=places, tensors=tensors
            )
    with tf.io.gfile.GFile(_mark(prefix, process), "w") as file:
        file.write("")


def merge_shards(prefix: str, num_processes: int) -> None:
    """Makes the bundle `prefix` of the parts of all processes, by renaming their files, once all have been written.

    Raises:
      tf.errors.OpError: if the files cannot be written.
    """
    parts = [_part(prefix, process) for process in range(num_processes)]
    parts = [part for part in parts if tf.io.gfile.exists(part + ".index")]
    with tf.device(_HOST):
        tf.raw_ops.MergeV2Checkpoints(checkpoint_prefixes=parts, destination_prefix=prefix, delete_old_dirs=False)
    for process in range(num_processes):
        tf.io.gfile.remove(_mark(prefix, process))


def read(prefix: str, name: str, dtype: tf.DType, place: str = "") -> tf.Tensor:
    """Reads a tensor, or a block of one, from the bundle `prefix`.

    Args:
      prefix: of the bundle.
      name: of the tensor.
      dtype: of the tensor.
      place: which block, as `slice_spec` says it; it need not be one that was written as such.

    Returns:
      The values, in the host's memory.

    Raises:
      tf.errors.OpError: if the files are damaged, or have no such tensor.
    """
    with tf.device(_HOST):
        # RestoreV2 looks its prefix up as a pattern, and takes what it does not find for TensorFlow's first format.
        prefix = storage.literal(prefix)
        (values,) = tf.raw_ops.RestoreV2(prefix=prefix, tensor_names=[name], shape_and_slices=[place], dtypes=[dtype])
    return values
