"""Programs that XLA splits over a mesh (GSPMD): the annotations by which layout rules reach it.

One program computes on whole tensors. Where layers place a tensor, XLA is told how it is split; it works out the rest
and puts in the collectives. On one device the annotations do nothing.
"""

import numpy as np
import tensorflow as tf

# The only way to XLA's annotations in TensorFlow 2.20; a private path, which is why it is taken here alone.
from tensorflow.python.compiler.xla.experimental import xla_sharding

from switch_tf.partitioning.axes import Axes, Placement, check_axes
from switch_tf.partitioning.layout import Layout


class Partitioned(Placement):
    """Annotates what layers place, as a layout says."""

    is_partitioned = True

    def __init__(self, layout: Layout):
        """Numbers the mesh's devices: the last of its dimensions counts fastest.

        Args:
          layout: the mesh, and what is split over it.
        """
        self.layout = layout
        self._dimensions = list(layout.mesh)
        self._devices = np.arange(layout.num_devices).reshape(list(layout.mesh.values()))

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        check_axes("A tensor", tuple(tensor.shape), axes)
        splits = [-1 if name is None else self._dimensions.index(name) for name in self.layout.split(axes)]
        # As an op of its own, not an attribute of the tensor's: it outlives TensorFlow's optimizer, and the gradient
        # passes through it and is annotated alike.
        return xla_sharding.mesh_split(tensor, self._devices, splits, use_sharding_op=True)

    def num_shards(self, axis: str) -> int:
        return self.layout.num_shards(axis)
