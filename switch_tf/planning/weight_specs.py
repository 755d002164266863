"""The weights of a model of any size, listed without allocating them."""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf

from switch_tf import compat
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.partitioning import axes

BYTES_PER_WEIGHT = 4


class Weight(NamedTuple):
    """A weight that may not be allocated: its name, shape and axis names."""

    name: str
    shape: tuple[int, ...]
    axes: axes.Axes

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@contextlib.contextmanager
def without_allocation() -> Iterator[None]:
    """Inside of it, variables have a shape and a dtype but no value and no memory."""

    def creator(next_creator: Callable, **kwargs: Any) -> tf.Variable:
        del next_creator
        weight = axes.weight_being_made()
        assert weight is not None, "Layers make every weight inside of `making_weight`."
        return compat.variable_without_memory(weight.shape, kwargs["dtype"], kwargs["trainable"])

    with tf.variable_creator_scope(creator):
        yield


@functools.lru_cache(maxsize=4)
def weights_of(config: ModelConfig) -> tuple[Weight, ...]:
    """Lists the weights of a model of any size, in the order in which it makes them.

    Building the Keras layers of a large model takes seconds, and one command asks several times.
    """
    with without_allocation():
        model = EncoderDecoder(config)
        model.build()
    return tuple(Weight(weight_name(weight), tuple(weight.shape), weight.axes) for weight in model.weights)
