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


_constrain: contextvars.ContextVar[Callable[[tf.Tensor, Axes], tf.Tensor] | None] = contextvars.ContextVar(
    "constrain", default=None
)
_num_shards: contextvars.ContextVar[Callable[[str], int]] = contextvars.ContextVar("num_shards", default=lambda axis: 1)
_weight: contextvars.ContextVar["WeightShape | None"] = contextvars.ContextVar("weight", default=None)


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


def constrain(tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
    """Places an activation as the engine's layout rules say for `axes`.

    Args:
      tensor: any dtype and shape.
      axes: one axis name (or None) for each dimension.

    Returns:
      The same values. Without an engine the tensor itself.
    """
    place = _constrain.get()
    return tensor if place is None else place(tensor, axes)


def num_shards(axis: str) -> int:
    """Returns over how many devices the engine's layout rules split an axis; 1 without an engine."""
    return _num_shards.get()(axis)


@contextlib.contextmanager
def constraining_with(
    place: Callable[[tf.Tensor, Axes], tf.Tensor], shards: Callable[[str], int] = lambda axis: 1
) -> Iterator[None]:
    """Makes `place` what `constrain` calls inside the block, and `shards` what `num_shards` does.

    It is how an engine takes part in a layer's call.
    """
    tokens = _constrain.set(place), _num_shards.set(shards)
    try:
        yield
    finally:
        _constrain.reset(tokens[0])
        _num_shards.reset(tokens[1])


@contextlib.contextmanager
def making_weight(shape: tuple[int, ...], axes: Axes) -> Iterator[None]:
    """Tells a variable creator, which sees no more than an initial value, what is being made inside the block."""
    token = _weight.set(WeightShape(shape, axes))
    try:
        yield
    finally:
        _weight.reset(token)


def weight_being_made() -> WeightShape | None:
    """Returns shape and axes of the weight (or slot) that is being made, None outside of `making_weight`."""
    return _weight.get()
