"""What every layer here shares: weights with axis names, and casts that are written where they happen."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf
from keras.src.backend import AutocastScope  # Not public, and nothing public does what it does.

from switch_tf.layers import randomness
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import ShardIndex

# (a block of the weight, seed) -> its float32 values.
Initializer = Callable[[ShardIndex, tf.Tensor], tf.Tensor]

_weight_seed: contextvars.ContextVar[int] = contextvars.ContextVar("weight_seed", default=0)


@contextlib.contextmanager
def weights_from_seed(seed: int) -> Iterator[None]:
    """Makes the weights of all layers that are built inside the block a function of `seed` and of their paths."""
    token = _weight_seed.set(seed)
    try:
        yield
    finally:
        _weight_seed.reset(token)


def variance_scaling(scale: float, fan_in: int) -> Initializer:
    """Truncated normal with sigma = sqrt(scale / fan_in), the paper's initialisation (Sec. 2.4, "Smaller init").

    `fan_in` is given, not read from the shape: an expert table's first dimension is no fan-in (Keras's own
    VarianceScaling counts it as one and comes out sqrt(E) too small).
    """
    stddev = (scale / fan_in) ** 0.5
    return lambda block, seed: randomness.truncated_normal(block.shape, stddev, seed, block.start)


def unit_normal(block: ShardIndex, seed: tf.Tensor) -> tf.Tensor:
    """N(0, 1), T5's token embedding."""
    return randomness.normal(block.shape, 1.0, seed, block.start)


def zeros(block: ShardIndex, seed: tf.Tensor) -> tf.Tensor:
    """All zeros, a bias."""
    del seed
    return tf.zeros(block.shape)


def ones(block: ShardIndex, seed: tf.Tensor) -> tf.Tensor:
    """All ones, a norm's scale."""
    del seed
    return tf.ones(block.shape)


class Layer(keras.layers.Layer):
    """A Keras layer whose weights have axis names.

    Autocasting is off: a layer casts to `compute_dtype` where its mathematics says so, which is what "selective
    precision" (Sec. 2.4) is about.
    """

    def __init__(self, *, dtype: str | keras.DTypePolicy | None = None, name: str | None = None):
        super().__init__(dtype=dtype, autocast=False, name=name)

    def __call__(self, *args, **kwargs):
        # Keras overlooks autocast=False in a layer that no other one calls, as in decoding: its weights would be cast.
        with AutocastScope(None):
            return super().__call__(*args, **kwargs)

    def weight(self, name: str, shape: tuple[int, ...], axes: axis_names.Axes, initializer: Initializer):
        """Makes a trainable float32 weight: the one way in which layers make weights.

        Args:
          name: the weight's name in this layer.
          shape: its static shape.
          axes: its axis names, one for each dimension; layout rules and the optimizer read them.
          initializer: (block, seed) -> values; a device that holds a part of the weight makes that part alone.

        Returns:
          The `keras.Variable`, with `axes` as an attribute.

        Raises:
          ValueError: if `axes` does not fit `shape`.
        """
        axis_names.check_axes(f"{self.path}/{name}", shape, axes)
        seed, path = _weight_seed.get(), f"{self.path}/{name}"

        def initial_values(block: ShardIndex) -> tf.Tensor:
            return initializer(block, randomness.fold_in(seed, path))

        def whole(shape, dtype=None):
            return tf.cast(initial_values(ShardIndex((0,) * len(shape), tuple(shape))), dtype or tf.float32)

        with axis_names.making_weight(shape, axes, initial_values):
            variable = self.add_weight(name=name, shape=shape, initializer=whole, dtype=self.variable_dtype)
        variable.axes = axes
        return variable

    def cast(self, tensor) -> tf.Tensor:
        """Returns a weight or an activation in the layer's compute dtype."""
        return tf.cast(tensor, self.compute_dtype)

    def noise_seed(self, seed: int | tf.Tensor) -> tf.Tensor:
        """Returns the seed of this layer's noise: no two layers draw the same."""
        return randomness.fold_in(seed, self.path)
