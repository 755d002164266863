"""The names of the axes of every weight and of every placed activation, and the hook by which an engine places them.

Layers speak this vocabulary and know nothing else of devices. Layout rules map the names to mesh dimensions.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

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
GROUPS = "groups"
SLOTS = "slots"
STACK = "stack"

AXIS_NAMES = frozenset({BATCH, LENGTH, EMBED, HEADS, KV, MLP, VOCAB, EXPERTS, EXPERT_MLP, GROUPS, SLOTS, STACK})

# One name for each dimension; None is a dimension that is never split.
Axes = tuple[str | None, ...]


class WeightShape(NamedTuple):
    """Shape and axis names of a weight or of an optimizer slot."""

    shape: tuple[int, ...]
    axes: Axes


class ShardIndex(NamedTuple):
    """A rectangular part of a tensor: its first element's place and its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]


# Makes the initial values of a part of a weight, float32 of the block's shape.
InitialValues = Callable[[ShardIndex], tf.Tensor]


class WeightBeingMade(NamedTuple):
    """What a variable creator, which sees no more than an initial value, is told of the variable."""

    shape: tuple[int, ...]
    axes: Axes
    initial_values: InitialValues


class Placement:
    """What layers ask of an engine while they run. This one leaves everything where it is, on one device.

    A program is either *partitioned* (it computes on whole tensors, which a compiler splits over a mesh) or
    *replicated* (each replica computes on its own part of the batch), or neither.
    """

    is_partitioned = False
    is_replicated = False

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        """Places an activation as the layout rules say for its axis names; the same values."""
        del axes
        return tensor

    def reshard(self, tensor: tf.Tensor, source: Axes, target: Axes) -> tf.Tensor:
        """Places an activation first as `source` says and then as `target` says; the same values."""
        return self.constrain(self.constrain(tensor, source), target)

    def num_shards(self, axis: str) -> int:
        """Returns over how many devices a partitioned program splits an axis."""
        del axis
        return 1

    def global_indices(self, axes: Axes, dimension: int, size: int) -> tf.Tensor:
        """Returns where the elements along a dimension are in the whole batch's tensor: int32 [size]."""
        del axes, dimension
        return tf.range(size)

    def sum_over_replicas(self, tree):
        """Returns the sums over replicas of a nest of tensors that no gradient flows through."""
        return tree


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("placement", default=None)
_ON_ONE_DEVICE = Placement()
_weight: contextvars.ContextVar[WeightBeingMade | None] = contextvars.ContextVar("weight", default=None)


def check_axes(name: str, shape: tuple[int, ...], axes: Axes) -> None:
    """Checks that `axes` names every dimension of `shape` with a word of the vocabulary.

    Raises:
      ValueError: if the ranks differ or a name is unknown.
    """
    if len(shape) != len(axes):
        raise ValueError(f"{name} has shape {shape} but {len(axes)} axis names, {axes}.")
    unknown = [axis for axis in axes if axis is not None and axis not in AXIS_NAMES]
    if unknown:
        raise ValueError(f"{name} names unknown axes {unknown}; the vocabulary is {sorted(AXIS_NAMES)}.")


def placement() -> Placement:
    """Returns what the engine does while layers run; without an engine, all is on one device."""
    return _placement.get() or _ON_ONE_DEVICE


def constrain(tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
    """Places an activation as the engine's layout rules say for `axes`.

    Where two dimensions would ride on one mesh dimension, the first one does.

    Args:
      tensor: any dtype and shape.
      axes: one axis name (or None) for each dimension.

    Returns:
      The same values. Without an engine the tensor itself.
    """
    return placement().constrain(tensor, axes)


def reshard(tensor: tf.Tensor, source: Axes, target: Axes) -> tf.Tensor:
    """Moves an activation from one placement to another: an all-to-all, where a mesh dimension changes its axis.

    Args:
      tensor: any dtype and shape.
      source: how it is placed now; one axis name (or None) for each dimension.
      target: how it is to be placed.

    Returns:
      The same values. Without an engine the tensor itself.
    """
    return placement().reshard(tensor, source, target)


def num_shards(axis: str) -> int:
    """Returns over how many devices the engine's layout rules split an axis; 1 without an engine."""
    return placement().num_shards(axis)


def is_partitioned() -> bool:
    """Whether a compiler splits the program over a mesh: loops whose length depends on data are not for it."""
    return placement().is_partitioned


def is_replicated() -> bool:
    """Whether replicas run the program on their parts of the batch: they cannot wait for each other inside a loop."""
    return placement().is_replicated


def global_indices(axes: Axes, dimension: int, size: int) -> tf.Tensor:
    """Returns where the elements along a dimension are in the whole batch's tensor.

    Args:
      axes: the axis names of the tensor.
      dimension: which of its dimensions.
      size: how many elements the program sees of it.

    Returns:
      int32 [size]: 0, 1, ..., from the replica's first one on where replicas have parts of the batch.
    """
    return placement().global_indices(axes, dimension, size)


def sum_over_replicas(tree):
    """Returns the sums over all replicas of a nest of tensors (counts, say) that no gradient flows through."""
    return placement().sum_over_replicas(tree)


@contextlib.contextmanager
def placed_by(engine: Placement) -> Iterator[None]:
    """Makes `engine` what layers ask inside the block."""
    token = _placement.set(engine)
    try:
        yield
    finally:
        _placement.reset(token)


@contextlib.contextmanager
def making_weight(shape: tuple[int, ...], axes: Axes, initial_values: InitialValues) -> Iterator[None]:
    """Tells a variable creator what is being made inside the block, and how to make any part of it."""
    token = _weight.set(WeightBeingMade(shape, axes, initial_values))
    try:
        yield
    finally:
        _weight.reset(token)


def weight_being_made() -> WeightBeingMade | None:
    """Returns what weight (or slot) is being made, None outside of `making_weight`."""
    return _weight.get()
