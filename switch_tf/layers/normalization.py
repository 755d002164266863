"""T5's layer norm: a root-mean-square norm with a scale, without mean subtraction and bias."""

from typing import Any

import tensorflow as tf

from switch_tf.layers import initializers
from switch_tf.layers.base import Layer
from switch_tf.partitioning import axes


class RMSNorm(Layer):
    """y = scale * x / sqrt(mean(x^2) + epsilon), with statistics in float32."""

    def __init__(self, d_model: int, *, epsilon: float = 1e-6, dtype: Any = None, name: str | None = None):
        super().__init__(dtype=dtype, name=name)
        self.d_model = d_model
        self.epsilon = epsilon

    def build(self, input_shape: Any = None) -> None:
        self.scale = self.weight("scale", (self.d_model,), (axes.EMBED,), initializers.ones)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """Normalizes the last axis.

        Args:
          x: [..., M], any float dtype.

        Returns:
          [..., M] in the compute dtype.
        """
        x = tf.cast(x, tf.float32)
        mean_square = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        return self.cast(x * tf.math.rsqrt(mean_square + self.epsilon)) * self.cast(self.scale)
