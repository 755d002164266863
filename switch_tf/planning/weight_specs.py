"""The weights of a model of any size, listed without making them."""

import contextlib
import math
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.partitioning import axes

BYTES_PER_WEIGHT = 4


class Weight(NamedTuple):
    """A weight that need not exist: its name, shape and axis names."""

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

    def creator(next_creator, **kwargs):
        del next_creator
        shape = axes.weight_being_made().shape
        return UninitializedVariable(shape=shape, dtype=kwargs["dtype"], trainable=kwargs["trainable"])

    with tf.variable_creator_scope(creator):
        yield


def weights_of(config: ModelConfig) -> list[Weight]:
    """Lists the weights of a model of any size, in the order in which it makes them."""
    with without_allocation():
        model = EncoderDecoder(config)
        model.build()
    return [Weight(weight_name(weight), tuple(weight.shape), weight.axes) for weight in model.weights]
