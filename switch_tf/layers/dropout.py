"""Dropout whose mask is a function of (seed, position)."""

from typing import Any

import tensorflow as tf

from switch_tf.layers import randomness
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.partitioning.axes import Axes


class Dropout(Layer):
    """Zeroes each element with probability `rate` in training and scales the others by 1 / (1 - rate)."""

    def __init__(
        self, rate: float, *, broadcast_axes: tuple[int, ...] = (), dtype: Any = None, name: str | None = None
    ):
        """Makes the layer.

        Args:
          rate: the probability of a zero, in [0, 1).
          broadcast_axes: axes along which all elements share one mask (T5: the length).
          dtype: Keras dtype policy.
          name: Keras name.

        Raises:
          ValueError: if the rate is outside of [0, 1).
        """
        super().__init__(dtype=dtype, name=name)
        if not 0.0 <= rate < 1.0:
            raise ValueError(f"A dropout rate must be in [0, 1), this one is {rate}.")
        self.rate = rate
        self.broadcast_axes = broadcast_axes

    def build(self, input_shape: Any = None) -> None:
        self.built = True

    def call(self, x: tf.Tensor, context: ForwardContext = INFERENCE, *, axes: Axes) -> tf.Tensor:
        """Drops elements.

        Args:
          x: any shape and float dtype.
          context: of the forward pass; outside of training nothing is dropped.
          axes: the axis names of `x`, by which each device or replica draws only its shard of the mask.

        Returns:
          Same shape and dtype; `x` itself outside of training.
        """
        if not context.training or self.rate == 0.0:
            return x
        shape, names = list(x.shape), list(axes)
        for dimension in self.broadcast_axes:
            shape[dimension], names[dimension] = 1, None
        kept = randomness.uniform(tuple(shape), self.noise_seed(context.seed), tuple(names)) >= self.rate
        return x * tf.cast(kept, x.dtype) * tf.cast(1.0 / (1.0 - self.rate), x.dtype)
