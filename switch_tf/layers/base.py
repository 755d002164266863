"""The base class of all layers: weights with axis names, and explicit casts."""

from typing import Any

import keras
import tensorflow as tf

from switch_tf import compat
from switch_tf.layers import initializers, randomness
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import ShardIndex


class Layer(keras.layers.Layer):
    """A Keras layer whose weights have axis names.

    Autocasting is off. A layer casts to `compute_dtype` explicitly, because selective precision (Sec. 2.4) computes
    parts of one layer in different dtypes.
    """

    def __init__(self, *, dtype: str | keras.DTypePolicy | None = None, name: str | None = None):
        super().__init__(dtype=dtype, autocast=False, name=name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Keras ignores autocast=False of an outermost layer (decoding calls layers directly) and would cast weights.
        with compat.without_autocast():
            return super().__call__(*args, **kwargs)

    def weight(
        self, name: str, shape: tuple[int, ...], axes: axis_names.Axes, initializer: initializers.Initializer
    ) -> keras.Variable:
        """Makes a trainable float32 weight. Layers make all their weights with this method.

        Args:
          name: the weight's name in this layer.
          shape: static shape.
          axes: one axis name for each dimension; layout rules and the optimizer read them.
          initializer: (shard, seed) -> values; a device that holds a shard of the weight makes only that shard.

        Returns:
          The `keras.Variable`, with `axes` as an attribute.

        Raises:
          ValueError: if `axes` does not fit `shape`.
          RuntimeError: outside of `initializers.weights_from_seed`.
        """
        path = f"{self.path}/{name}"
        axis_names.check_axes(path, shape, axes)
        seed = initializers.weight_seed(path)

        def initial_values(shard: ShardIndex) -> tf.Tensor:
            return initializer(shard, randomness.fold_in(seed, path))

        def whole(shape: tuple[int, ...], dtype: str | None = None) -> tf.Tensor:
            return tf.cast(initial_values(ShardIndex((0,) * len(shape), tuple(shape))), dtype or tf.float32)

        with axis_names.making_weight(shape, axes, initial_values):
            variable = self.add_weight(name=name, shape=shape, initializer=whole, dtype=self.variable_dtype)
        variable.axes = axes
        return variable

    def cast(self, tensor: tf.Tensor | keras.Variable | float) -> tf.Tensor:
        """Returns a weight or an activation in the layer's compute dtype."""
        return tf.cast(tensor, self.compute_dtype)

    def noise_seed(self, seed: int | tf.Tensor) -> int | tf.Tensor:
        """Returns this layer's own noise seed: a function of `seed` and of the layer's path."""
        return randomness.fold_in(seed, self.path)
