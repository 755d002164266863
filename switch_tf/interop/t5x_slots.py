"""Adafactor's second moments, as T5X keeps them and as we do.

Both factor a matrix into the means of its rows and columns where both sides are at least 128. They differ in names, in
which side is called a row, and in tables of experts, which T5X always factors. Where one factors and the other does
not, the estimate of the full moments is Adafactor's own.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from switch_tf.checkpoints.manifest import SLOTS
from switch_tf.errors import SettingError
from switch_tf.interop.lazy_tensors import LazyTensor, LazyTensors, in_memory
from switch_tf.interop.t5x_names import NAMES
from switch_tf.interop.weight_names import Rule

_MIN_SIZE = 128
_FLOAT32 = np.dtype(np.float32)
_NONE = np.zeros(1, _FLOAT32)


@dataclasses.dataclass(frozen=True)
class _Moments:
    """Second moments of a matrix [..., first, second] in T5X's layout: in full, or the means that keep each side."""

    full: LazyTensor | None = None
    first: LazyTensor | None = None
    second: LazyTensor | None = None

    def keeping(self, side: int) -> np.ndarray:
        """Returns the means that keep the first (0) or the second (1) side: [..., size]."""
        if self.full is not None:
            return self.full.read().mean(-1 if side == 0 else -2, dtype=np.float32)
        kept = self.second if side else self.first
        assert kept is not None
        return kept.read()

    def whole(self) -> np.ndarray:
        """Returns the full second moments: of factored ones, the estimate with those means."""
        if self.full is not None:
            return self.full.read()
        first, second = self.keeping(0), self.keeping(1)
        scale = np.expand_dims(np.maximum(first.mean(-1, keepdims=True), np.finfo(np.float32).tiny), -1)
        return np.expand_dims(first, -1) * np.expand_dims(second, -2) / scale


def _embed_side(name: str) -> int:
    """Which side of T5X's matrix is the model's width, which our rows keep."""
    return 1 if name.endswith(("/out", "/wo")) or name == "token_embedder/embedding" else 0


def _is_factored_here(name: str, sides: tuple[int, ...]) -> bool:
    is_matrix = len(sides) == 2 and not name.endswith(("/router/kernel", "/position_bias/embedding"))
    return is_matrix and min(sides) >= _MIN_SIZE


def _is_factored_there(rule: Rule, sides: tuple[int, ...]) -> bool:
    return rule.is_table or (len(sides) == 2 and min(sides) >= _MIN_SIZE)


def _row_side_there(name: str, rule: Rule, sides: tuple[int, ...]) -> int:
    """Which side T5X's `v_row` keeps: of experts the model's width, of other matrices the smaller side."""
    if rule.is_table:
        return _embed_side(name)
    return 1 if sides[1] < sides[0] else 0


def _lazy(shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> LazyTensor:
    return LazyTensor(shape, _FLOAT32, lambda: np.ascontiguousarray(read().reshape(shape), np.float32))


def _layout(name: str, shape: tuple[int, ...]) -> tuple[str, Rule, tuple[int, ...], tuple[int, ...]]:
    """Returns (their name, the rule, leading axes, the sides of their matrix or the shape of anything else)."""
    theirs = NAMES.theirs(name)
    if theirs is None:
        raise SettingError(f"The weight '{name}' has no counterpart in T5X: convert a model without that layer.")
    batch = shape[:1] if theirs.rule.is_table else ()
    return theirs.name, theirs.rule, batch, theirs.rule.their_shape(shape[len(batch) :])


def their_slots(weights: LazyTensors, slots: LazyTensors) -> dict[str, LazyTensor]:
    """Says our slots in T5X's names and shapes.

    Args:
      weights: ours by name, of which the shapes alone are read.
      slots: ours, "<weight>/slots/v_row", `v_column` or `v`, for every weight.

    Returns:
      `<weight>/{v_row, v_col, v, m}`, those that are not used of shape (1,).

    Raises:
      SettingError: if a weight has no slots, or T5X no such weight.
    """
    found: dict[str, LazyTensor] = {}
    for name, weight in weights.items():
        theirs, rule, batch, sides = _layout(name, weight.shape)
        moments = _ours(name, weight.shape, slots, rule, batch, sides)
        values: dict[str, LazyTensor] = {}
        if _is_factored_there(rule, sides):
            row = _row_side_there(name, rule, sides)
            for slot, side in (("v_row", row), ("v_col", 1 - row)):
                values[slot] = _lazy((*batch, sides[side]), functools.partial(moments.keeping, side))
        else:
            values["v"] = _lazy((*batch, *sides), moments.whole)
        found |= {f"{theirs}/{slot}": values.get(slot, in_memory(_NONE)) for slot in ("m", "v", "v_col", "v_row")}
    return found


def _ours(
    name: str,
    shape: tuple[int, ...],
    slots: LazyTensors,
    rule: Rule,
    batch: tuple[int, ...],
    sides: tuple[int, ...],
) -> _Moments:
    def slot(kind: str) -> LazyTensor | None:
        return slots.get(f"{name}{SLOTS}{kind}")

    full, row, column = slot("v"), slot("v_row"), slot("v_column")
    if full is not None:

        def read() -> np.ndarray:
            values = full.read()
            return np.stack([rule.to_theirs(one) for one in values]) if batch else rule.to_theirs(values)

        return _Moments(full=_lazy((*batch, *sides), read))
    if row is None or column is None:
        raise SettingError(f"{name} has no slots of Adafactor: leave --slots out.")
    embed = _embed_side(name)
    kept = [_lazy((*batch, sides[side]), (row if side == embed else column).read) for side in (0, 1)]
    return _Moments(first=kept[0], second=kept[1])


def our_slots(weights: LazyTensors, slots: LazyTensors) -> dict[str, LazyTensor]:
    """Says T5X's slots in our names and shapes.

    Args:
      weights: ours by name, of which the shapes alone are read.
      slots: theirs, `<weight>/{v_row, v_col, v}`, for every weight.

    Returns:
      "<weight>/slots/v_row" and `v_column`, or `v`.

    Raises:
      SettingError: if a weight has no slots.
    """
    found: dict[str, LazyTensor] = {}
    for name, weight in weights.items():
        theirs, rule, batch, sides = _layout(name, weight.shape)
        one = weight.shape[len(batch) :]
        moments = _theirs(name, theirs, slots, rule, batch, sides)
        if not _is_factored_here(name, sides):
            found[f"{name}{SLOTS}v"] = _lazy(weight.shape, functools.partial(_whole, moments, rule, one))
            continue
        embed = _embed_side(name)
        other = one[1:] if embed == 0 else one[:-1]
        assert math.prod(other) == sides[1 - embed]
        for slot, side, shape in (
            ("v_row", embed, one[:1] if embed == 0 else one[-1:]),
            ("v_column", 1 - embed, other),
        ):
            found[f"{name}{SLOTS}{slot}"] = _lazy((*batch, *shape), functools.partial(moments.keeping, side))
    return found


def _whole(moments: _Moments, rule: Rule, shape: tuple[int, ...]) -> np.ndarray:
    """Full second moments in our layout, [..., *shape] of one expert."""
    values = moments.whole()
    return np.stack([rule.to_ours(one, shape) for one in values]) if rule.is_table else rule.to_ours(values, shape)


def _theirs(
    name: str, theirs: str, slots: LazyTensors, rule: Rule, batch: tuple[int, ...], sides: tuple[int, ...]
) -> _Moments:
    def slot(kind: str, shape: tuple[int, ...]) -> LazyTensor:
        tensor = slots.get(f"{theirs}/{kind}")
        if tensor is None or tensor.shape != shape:
            raise SettingError(f"{theirs} has no slot {kind} of the shape {shape}: leave --slots out.")
        return tensor

    if not _is_factored_there(rule, sides):
        return _Moments(full=slot("v", (*batch, *sides)))
    row = _row_side_there(name, rule, sides)
    kept = {row: slot("v_row", (*batch, sides[row])), 1 - row: slot("v_col", (*batch, sides[1 - row]))}
    return _Moments(first=kept[0], second=kept[1])
