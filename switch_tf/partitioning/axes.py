"""Axis names of weights and activations, and the interface through which an engine shards them.

Layers name the axes of their tensors and know nothing else about devices; layout rules map names to mesh dimensions.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf

BATCH = "batch"
LENGTH = "length"
EMBED = "embed"
HEADS = "heads"
KV = "kv"
MLP = "mlp"
VOCAB = "vocab"
EXPERTS = "experts"
EXPERT_MLP = "expert_mlp"
ROUTER_EXPERTS = "router_experts"
GROUPS = "groups"
SLOTS = "slots"
STACK = "stack"

AXIS_NAMES = frozenset(
    {BATCH, LENGTH, EMBED, HEADS, KV, MLP, VOCAB, EXPERTS, EXPERT_MLP, ROUTER_EXPERTS, GROUPS, SLOTS, STACK}
)

# One name for each dimension; a dimension named None is never sharded.
Axes = tuple[str | None, ...]
_Nest = TypeVar("_Nest")


class WeightShape(NamedTuple):
    """Shape and axis names of a weight or of an optimizer slot."""

    shape: tuple[int, ...]
    axes: Axes


class ShardIndex(NamedTuple):
    """A shard of a tensor: the index of its first element, and its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


# Makes the initial values of a shard of a weight, float32 of the shard's shape.
InitialValues = Callable[[ShardIndex], tf.Tensor]


class WeightBeingMade(NamedTuple):
    """The variable that is being made, for a variable creator, which sees only its initial value."""

    shape: tuple[int, ...]
    axes: Axes
    initial_values: InitialValues


class Placement:
    """What layers need from an engine while they run. This class is for one device.

    A program is *partitioned* (it computes on whole tensors, which a compiler shards over a mesh), *replicated* (each
    replica computes on its own rows of the batch), or neither.
    """

    is_partitioned = False
    is_replicated = False

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        """Shards an activation by the layout rules of its axis names; the same values."""
        del axes
        return tensor

    def reshard(self, tensor: tf.Tensor, source: Axes, target: Axes) -> tf.Tensor:
        """Changes the sharding of an activation from that of `source` to that of `target`; the same values."""
        return self.constrain(self.constrain(tensor, source), target)

    def reread(self, tensors: list[tf.Tensor], index: tf.Tensor) -> list[tf.Tensor]:
        """Returns the tensors for the body of a loop, in which a compiler keeps what is computed from them."""
        del index
        return tensors

    def after(self, tensor: tf.Tensor, others: list[tf.Tensor]) -> tf.Tensor:
        """Returns the tensor, which a compiler computes after others."""
        del others
        return tensor

    def mean_square(self, tensor: tf.Tensor, dimensions: tuple[int, ...], keepdims: bool = False) -> tf.Tensor:
        """Returns the means of the squares over dimensions, which need no gradient."""
        return tf.reduce_mean(tf.square(tensor), dimensions, keepdims)

    def num_shards(self, axis: str) -> int:
        """Returns how many devices a partitioned program shards an axis over."""
        del axis
        return 1

    def global_indices(self, axes: Axes, dimension: int, size: int) -> tf.Tensor | np.ndarray:
        """Returns the indices, in the whole batch's tensor, of the elements along a dimension: int32 [size]."""
        del axes, dimension
        return np.arange(size, dtype=np.int32)

    def sum_over_replicas(self, tree: _Nest) -> _Nest:
        """Returns the sums over replicas of a nest of tensors, which must not need a gradient."""
        return tree


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)
_ON_ONE_DEVICE = Placement()
_weight: contextvars.ContextVar[WeightBeingMade | None] = contextvars.ContextVar("weight", default=None)


def check_axes(name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Checks that `axes` names every dimension of `shape` with a known name.

    Raises:
      ValueError: if the ranks differ or a name is unknown.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{name} has shape {shape} but {len(axes)} axis names, {axes}.")
    unknown = [axis for axis in axes if axis is not None and axis not in AXIS_NAMES]
    if unknown:
        raise ValueError(f"{name} names unknown axes {unknown}; the axis names are {sorted(AXIS_NAMES)}.")


def placement() -> Placement:
    """Returns the current engine's placement; without an engine, that of one device."""
    return _placement.get() or _ON_ONE_DEVICE


def constrain(tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
    """Shards an activation by the engine's layout rules for `axes`.

    If the rules map two dimensions to one mesh dimension, the first of them is sharded over it.

    Args:
      tensor: any dtype and shape.
      axes: one axis name (or None) for each dimension.

    Returns:
      The same values. Without an engine the tensor itself.
    """
    return placement().constrain(tensor, axes)


def reshard(tensor: tf.Tensor, source: Axes, target: Axes) -> tf.Tensor:
    """Changes the sharding of an activation: an all-to-all, if a mesh dimension moves from one axis to another.

    Args:
      tensor: any dtype and shape.
      source: the current sharding; one axis name (or None) for each dimension.
      target: the new sharding.

    Returns:
      The same values. Without an engine the tensor itself.
    """
    return placement().reshard(tensor, source, target)


def reread(tensors: list[tf.Tensor], index: tf.Tensor) -> list[tf.Tensor]:
    """Has the body of a loop read tensors from outside of it anew each time, where a compiler would not.

    Args:
      tensors: any.
      index: of the iteration.

    Returns:
      The same values, from which a compiler computes nothing before the loop.
    """
    return placement().reread(tensors, index)


def after(tensor: tf.Tensor, others: list[tf.Tensor]) -> tf.Tensor:
    """Has a tensor computed after others, where a compiler decides on the order.

    Args:
      tensor: float.
      others: float; a not-a-number in them makes the result one.

    Returns:
      The tensor.
    """
    return placement().after(tensor, others)


def mean_square(tensor: tf.Tensor, dimensions: tuple[int, ...], keepdims: bool = False) -> tf.Tensor:
    """Averages squares, in the way that is fastest on the engine.

    Args:
      tensor: float32.
      dimensions: to average over.
      keepdims: whether they stay, with size 1.

    Returns:
      float32; its gradient may be slow.
    """
    return placement().mean_square(tensor, dimensions, keepdims)


def num_shards(axis: str) -> int:
    """Returns how many devices the engine's layout rules shard an axis over; 1 without an engine."""
    return placement().num_shards(axis)


def is_partitioned() -> bool:
    """Whether a compiler partitions the program over a mesh, which rules out loops whose length depends on data."""
    return placement().is_partitioned


def is_replicated() -> bool:
    """Whether replicas run the program on their rows of the batch, which rules out collectives inside a loop."""
    return placement().is_replicated


def global_indices(axes: Axes, dimension: int, size: int) -> tf.Tensor | np.ndarray:
    """Returns the indices, in the whole batch's tensor, of the elements along a dimension.

    Args:
      axes: the axis names of the tensor.
      dimension: which of its dimensions.
      size: how many elements the program sees of it.

    Returns:
      int32 [size]: consecutive, from 0, or from the first row of the replica; in numpy where they are constants.
    """
    return placement().global_indices(axes, dimension, size)


def sum_over_replicas(tree: _Nest) -> _Nest:
    """Returns the sums over all replicas of a nest of tensors, such as counts, which must not need a gradient."""
    return placement().sum_over_replicas(tree)


@contextlib.contextmanager
def placed_by(engine: Placement) -> Iterator[None]:
    """Makes `engine` the placement of the layers that run inside the block."""
    token = _placement.set(engine)
    try:
        yield
    finally:
        _placement.reset(token)


@contextlib.contextmanager
def making_weight(shape: tuple[int, ...], axes: Axes, initial_values: InitialValues) -> Iterator[None]:
    """Tells variable creators what is being made inside the block, and how to make any shard of it."""
    token = _weight.set(WeightBeingMade(shape, axes, initial_values))
    try:
        yield
    finally:
        _weight.reset(token)


def weight_being_made() -> WeightBeingMade | None:
    """Returns the weight (or optimizer slot) that is being made; None outside of `making_weight`."""
    return _weight.get()
