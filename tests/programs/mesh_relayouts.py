"""Moves a mesh dimension from each axis to each other axis of tensors of some ranks: `... RANK ...`, at most 5.

Checks values and gradients, and prints how many moves were right.
"""

import itertools
import sys

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from switch_tf.partitioning.axes import Axes
from switch_tf.partitioning.dtensor_engine import resharded


def check(mesh: dtensor.Mesh, array: np.ndarray, source: Axes, target: Axes) -> None:
    """Fails if the move changes a value, or the gradient of the sum of cubes behind it."""

    def layout_of(split: Axes) -> dtensor.Layout:
        return dtensor.Layout([name or dtensor.UNSHARDED for name in split], mesh)

    @tf.function
    def move(tensor: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(tensor)
            out = resharded(tensor, source, target, layout_of)
            total = tf.reduce_sum(out * tf.square(out))
        return out, tape.gradient(total, tensor)

    results = move(dtensor.relayout(tf.constant(array), layout_of(source)))
    out, gradient = (dtensor.relayout(result, layout_of((None,) * array.ndim)).numpy() for result in results)
    np.testing.assert_array_equal(out, array, err_msg=f"{source} {target}")
    np.testing.assert_allclose(gradient, 3 * array**2, rtol=1e-5, err_msg=f"{source} {target}")


def main(*ranks: str) -> None:
    """Checks all pairs of axes of tensors of the ranks."""
    dtensor.initialize_accelerator_system("CPU", num_logical_cpu_devices=2)
    mesh = dtensor.create_distributed_mesh([("data", 2)], device_type="CPU")
    moves = 0
    for rank in map(int, ranks):
        array = np.random.default_rng(rank).normal(size=[2, 4, 6, 8, 2][:rank]).astype(np.float32)
        for source, target in itertools.permutations(range(rank), 2):
            axes = [tuple("data" if axis == split else None for axis in range(rank)) for split in (source, target)]
            check(mesh, array, *axes)
            moves += 1
    print(moves)


if __name__ == "__main__":
    main(*sys.argv[1:])
