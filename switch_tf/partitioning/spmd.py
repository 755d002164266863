"""Programs that XLA partitions over a mesh (GSPMD), by annotations from the layout rules.

One program computes on whole tensors. Where layers constrain a tensor, an annotation tells XLA its sharding; XLA
propagates the shardings and inserts the collectives. On one device the annotations do nothing.
"""

import numpy as np
import tensorflow as tf

from switch_tf import compat
from switch_tf.partitioning.axes import Axes, Placement, check_axes
from switch_tf.partitioning.layout import Layout


class Partitioned(Placement):
    """Annotates the tensors that layers constrain with the shardings of a layout."""

    is_partitioned = True

    def __init__(self, layout: Layout):
        """Numbers the devices of the mesh in row-major order.

        Args:
          layout: the mesh and the rules.
        """
        self.layout = layout
        self._dimensions = list(layout.mesh)
        self._devices = np.arange(layout.num_devices).reshape(list(layout.mesh.values()))

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        check_axes("A tensor", tuple(tensor.shape), axes)
        splits = [-1 if name is None else self._dimensions.index(name) for name in self.layout.split(axes)]
        return compat.annotate_sharding(tensor, self._devices, splits)

    def global_indices(self, axes: Axes, dimension: int, size: int) -> tf.Tensor:
        # Each device computes its own part of a range; it would hold the whole of a constant.
        del axes, dimension
        return tf.range(size)

    # XLA removes optimization barriers before it moves code out of loops, and before it decides on an order. It leaves
    # the sum with a 0 alone, as it does not know that it is one.

    def reread(self, tensors: list[tf.Tensor], index: tf.Tensor) -> list[tf.Tensor]:
        zero = tf.minimum(index, 0)
        return [tensor + tf.cast(zero, tensor.dtype) for tensor in tensors]

    def after(self, tensor: tf.Tensor, others: list[tf.Tensor]) -> tf.Tensor:
        zeros = [tf.reduce_max(tf.minimum(tf.abs(other), 0)) for other in others]
        return tensor + tf.cast(tf.add_n(zeros), tensor.dtype) if zeros else tensor

    def num_shards(self, axis: str) -> int:
        return self.layout.num_shards(axis)
