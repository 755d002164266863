"""Initial values of weights, each a function of (shard, seed), so that a device makes only the shard that it holds."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import tensorflow as tf

from switch_tf.layers import randomness
from switch_tf.partitioning.axes import ShardIndex

# (a shard of the weight, seed) -> its float32 values.
Initializer = Callable[[ShardIndex, int | tf.Tensor], tf.Tensor]

_weight_seed: contextvars.ContextVar[int] = contextvars.ContextVar("weight_seed")


@contextlib.contextmanager
def weights_from_seed(seed: int) -> Iterator[None]:
    """Makes the weights of all layers that are built inside the block a function of `seed` and of their paths."""
    token = _weight_seed.set(seed)
    try:
        yield
    finally:
        _weight_seed.reset(token)


def weight_seed(path: str) -> int:
    """Returns the seed that `weights_from_seed` set, for the weight at `path`.

    Raises:
      RuntimeError: outside of `weights_from_seed`. With a default seed, two models would get equal weights unnoticed.
    """
    try:
        return _weight_seed.get()
    except LookupError:
        raise RuntimeError(f"{path} has no seed: build the layer inside `with weights_from_seed(seed):`.") from None


def variance_scaling(scale: float, fan_in: int) -> Initializer:
    """Truncated normal with sigma = sqrt(scale / fan_in), the paper's initialization (Sec. 2.4, "Smaller init").

    `fan_in` is an argument rather than read from the shape because the first dimension of an expert weight [E, in, out]
    is not fan-in. (Keras's VarianceScaling counts it, which makes sigma too small by sqrt(E).)
    """
    stddev = (scale / fan_in) ** 0.5
    return lambda shard, seed: randomness.truncated_normal(shard.shape, stddev, seed, shard.start)


def unit_normal(shard: ShardIndex, seed: int | tf.Tensor) -> tf.Tensor:
    """N(0, 1), T5's token embedding."""
    return randomness.normal(shard.shape, 1.0, seed, shard.start)


def zeros(shard: ShardIndex, seed: int | tf.Tensor) -> tf.Tensor:
    """All zeros, for a bias."""
    del seed
    return tf.zeros(shard.shape)


def ones(shard: ShardIndex, seed: int | tf.Tensor) -> tf.Tensor:
    """All ones, for the scale of a norm."""
    del seed
    return tf.ones(shard.shape)
