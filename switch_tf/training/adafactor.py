"""Adafactor as T5 trains with it (Shazeer and Stern 2018), with second moments factored for each expert."""

import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gin
import keras
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import Axes, WeightShape
from switch_tf.training.schedules import InverseSquareRoot

# Each expert (and each layer of a stack) is a separate matrix with its own statistics.
_BATCH_AXES = frozenset({axis_names.EXPERTS, axis_names.STACK})
_ROW_AXES = frozenset({axis_names.EMBED})
_COLUMN_AXES = frozenset({axis_names.VOCAB, axis_names.HEADS, axis_names.KV, axis_names.MLP, axis_names.EXPERT_MLP})


class Factoring(NamedTuple):
    """The dimensions of a weight: those that enumerate matrices, and the matrices' rows and columns."""

    batch: tuple[int, ...]
    rows: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """The dimensions of one matrix, over which root mean squares are taken."""
        return self.rows + self.columns


class Change(NamedTuple):
    """One update of one weight.

    weight: after the update.
    slots: after the update.
    mean_square: of what was subtracted from the weight, float32 [].
    weight_mean_square: of the weight before the update, float32 [].
    """

    weight: tf.Tensor
    slots: dict[str, tf.Tensor]
    mean_square: tf.Tensor
    weight_mean_square: tf.Tensor


def factoring(shape: tuple[int, ...], axes: Axes, min_size_to_factor: int) -> tuple[Factoring, bool]:
    """Decides by its axis names how a weight's second moments are factored.

    Args:
      shape: the weight's shape.
      axes: its axis names.
      min_size_to_factor: matrices with a smaller side are not factored.

    Returns:
      (the dimensions' roles, whether the second moments are factored).
    """
    batch = tuple(i for i, axis in enumerate(axes) if axis in _BATCH_AXES)
    rows = tuple(i for i, axis in enumerate(axes) if axis in _ROW_AXES)
    columns = tuple(i for i, axis in enumerate(axes) if axis not in _BATCH_AXES | _ROW_AXES)
    sides = [math.prod(shape[i] for i in side) for side in (rows, columns)]
    is_factored = (
        bool(rows)
        and bool(columns)
        and all(axes[i] in _COLUMN_AXES for i in columns)
        and min(sides) >= min_size_to_factor
    )
    return Factoring(batch, rows, columns), is_factored


def _checked_rate(rate: Any) -> Any:
    """Returns what Keras takes as a learning rate: a float or a schedule; T5's for None."""
    if rate is None:
        return InverseSquareRoot()
    if isinstance(rate, numbers.Real) and not isinstance(rate, bool) and float(rate) >= 0:
        return float(rate)
    # A class is callable, too, and makes a schedule of the step.
    if not callable(rate) or isinstance(rate, type):
        raise SettingError(f"Adafactor.learning_rate = {rate!r} must be 0 or more, or a schedule such as @Constant().")
    return rate


def _check_expression(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise SettingError(f"Adafactor: '{pattern}' is no regular expression of weights' names ({error}).") from error


@gin.configurable
@keras.saving.register_keras_serializable("switch_tf")
class Adafactor(keras.optimizers.Optimizer):
    """T5's Adafactor: no momentum, factored second moments, update clipping, updates relative to the scale.

    For a gradient g at step t = 1, 2, ..., with beta_t = 1 - t^-decay_exponent:

        v_t = beta_t v_{t-1} + (1 - beta_t) (g^2 + epsilon1)     stored as its row and column means, per expert
        u = g / sqrt(v_t)
        u = u / max(1, RMS(u) / clipping_threshold)
        w = w - learning_rate max(epsilon2, RMS(w)) u

    Root mean squares are per expert, as in T5X (Mesh TensorFlow takes them over the whole [E, in, out] tensor).
    `updated` computes this as a pure function of tensors; Keras's `update_step` assigns its results.
    """

    def __init__(
        self,
        learning_rate: Any = None,
        decay_exponent: float = 0.8,
        clipping_threshold: float = 1.0,
        epsilon1: float = 1e-30,
        epsilon2: float = 1e-3,
        min_size_to_factor: int = 128,
        rate_factors: Mapping[str, float] | None = None,
        absolute_steps: Sequence[str] = (),
        step_offset: int = 0,
        skip_by_matrix: bool = False,
        name: str = "adafactor",
        **kwargs: Any,
    ):
        """Makes the optimizer.

        Args:
          learning_rate: a schedule or a number; None: T5's pre-training schedule.
          decay_exponent: of the decay of second moments.
          clipping_threshold: the largest RMS of an update, relative to the learning rate.
          epsilon1: added to squared gradients.
          epsilon2: lower bound of a parameter's scale.
          min_size_to_factor: matrices with a smaller side have unfactored second moments.
          rate_factors: what the learning rate of some weights is multiplied by: {"router/kernel$": 0.1}. Keys are
            regular expressions, searched in a weight's name (`decoder/layer_1/feed_forward/router/kernel`); the first
            that matches counts. T5X has the same as HParamMap.
          absolute_steps: regular expressions of the weights whose steps do not depend on their size, as with T5X's
            `multiply_by_parameter_scale=False`.
          step_offset: the step at which the slots are zero; their decay counts from there, as T5X's `step_offset`.
            Counted from step 0, the decay of slots that start at a late step would keep them near zero, and every
            update as large as clipping allows.
          skip_by_matrix: whether the training step skips the update of each matrix (a weight, or an expert's part of
            one) whose own gradient is not finite, instead of the whole update. No matrix then waits for the gradients
            of others, which need not all be in memory at once.
          name: Keras name.
          **kwargs: of `keras.optimizers.Optimizer`.

        Raises:
          SettingError: if the learning rate is none, or a name is no regular expression.
        """
        for name_of_weights in (*(rate_factors or {}), *absolute_steps):
            _check_expression(name_of_weights)
        super().__init__(learning_rate=_checked_rate(learning_rate), name=name, **kwargs)
        self.decay_exponent = decay_exponent
        self.clipping_threshold = clipping_threshold
        self.epsilon1 = epsilon1
        self.epsilon2 = epsilon2
        self.min_size_to_factor = min_size_to_factor
        self.rate_factors = dict(rate_factors or {})
        self.absolute_steps = tuple(absolute_steps)
        self.step_offset = step_offset
        self.skip_by_matrix = skip_by_matrix

    def rate(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate (float32 scalar) of `step`, 0 for the first."""
        schedule = self._learning_rate
        return schedule(step) if callable(schedule) else tf.cast(tf.convert_to_tensor(schedule), tf.float32)

    def slot_shapes(self, shape: tuple[int, ...], axes: Axes) -> dict[str, WeightShape]:
        """Returns the slots (all float32) that a weight of this shape and these axes needs, by name."""
        roles, is_factored = factoring(shape, axes, self.min_size_to_factor)
        if not is_factored:
            return {"v": WeightShape(tuple(shape), axes)}

        def without(dimensions: tuple[int, ...]) -> WeightShape:
            kept = [i for i in range(len(shape)) if i not in dimensions]
            return WeightShape(tuple(shape[i] for i in kept), tuple(axes[i] for i in kept))

        return {"v_row": without(roles.columns), "v_column": without(roles.rows)}

    def change(
        self,
        gradient: tf.Tensor,
        weight: tf.Tensor,
        slots: Mapping[str, tf.Tensor],
        axes: Axes,
        step: tf.Tensor,
        learning_rate: tf.Tensor,
        name: str = "",
        is_finite: tf.Tensor | None = None,
    ) -> Change:
        """Computes one update of one weight.

        Args:
          gradient: float, the weight's shape.
          weight: float32.
          slots: float32, as `slot_shapes` says.
          axes: the weight's axis names.
          step: integer scalar, 0 for the first update.
          learning_rate: float32 scalar.
          name: the weight's, for `rate_factors` and `absolute_steps`.
          is_finite: bool scalar; where it is false, the weight and the slots stay as they are, whatever the gradient.
            None: true. With `skip_by_matrix` each matrix's gradient decides instead.

        Returns:
          The weight and its slots after the update, and how large the weight and its change are.
        """
        roles, is_factored = factoring(tuple(weight.shape), axes, self.min_size_to_factor)
        gradient = tf.cast(gradient, tf.float32)
        # 1 at the first step, which overwrites the initial slots.
        mixing = tf.pow(tf.cast(step - self.step_offset, tf.float32) + 1.0, -self.decay_exponent)

        def decayed(slot: str, towards: tf.Tensor) -> tf.Tensor:
            return slots[slot] + mixing * (towards + self.epsilon1 - slots[slot])

        # Each pass over a large weight counts: what a matrix or a row has in common goes into small factors.
        row_factor: Any = 1.0
        if is_factored:
            of_rows = axis_names.mean_square(gradient, roles.columns)
            gradient_square = tf.reduce_mean(self._expanded(of_rows, roles.columns), roles.rows, keepdims=True)
            row, column = decayed("v_row", of_rows), decayed("v_column", axis_names.mean_square(gradient, roles.rows))
            after = {"v_row": row, "v_column": column}
            row, column = self._expanded(row, roles.columns), self._expanded(column, roles.rows)
            row /= tf.reduce_mean(row, roles.rows, keepdims=True)
            update, row_factor = gradient * tf.math.rsqrt(column), tf.math.rsqrt(row)
            of_rows = axis_names.mean_square(update, roles.columns, keepdims=True)
            update_square = tf.reduce_mean(of_rows / row, roles.rows, keepdims=True)
        else:
            gradient_square = axis_names.mean_square(gradient, roles.inner, keepdims=True)
            after = {"v": decayed("v", tf.square(gradient))}
            update = gradient * tf.math.rsqrt(after["v"])
            update_square = axis_names.mean_square(update, roles.inner, keepdims=True)

        weight_square = axis_names.mean_square(weight, roles.inner, keepdims=True)
        factor = learning_rate * self._rate_factor(name)
        factor /= tf.maximum(1.0, tf.sqrt(update_square) / self.clipping_threshold)
        if not any(re.search(key, name) for key in self.absolute_steps):
            factor *= tf.maximum(tf.sqrt(weight_square), self.epsilon2)
        change_square, weight_square = update_square * tf.square(factor), tf.reduce_mean(weight_square)
        if is_finite is None:
            return Change(weight - update * (row_factor * factor), after, tf.reduce_mean(change_square), weight_square)
        if self.skip_by_matrix:
            is_finite = tf.math.is_finite(gradient_square)
        else:  # A condition of another rank crashes the process where the tensors are DTensors.
            is_finite = tf.reshape(is_finite, [1] * len(factor.shape))
        reduced = {"v": (), "v_row": roles.columns, "v_column": roles.rows}
        after = {
            slot: tf.where(tf.squeeze(is_finite, reduced[slot]) if reduced[slot] else is_finite, value, slots[slot])
            for slot, value in after.items()
        }

        def or_zero(value: tf.Tensor) -> tf.Tensor:
            return tf.where(is_finite, value, tf.zeros_like(value))

        if axis_names.is_partitioned():
            # XLA for CPUs shards the zeros of the other form, and with them the updates of weights that are not.
            updated = tf.where(is_finite, weight - update * (row_factor * factor), weight)
        else:  # One pass less over the weight.
            updated = weight - tf.math.multiply_no_nan(update, or_zero(row_factor * factor))
        return Change(updated, after, tf.reduce_mean(or_zero(change_square)), weight_square)

    def _rate_factor(self, name: str) -> float:
        """Returns what the learning rate of a weight is multiplied by."""
        return next((factor for key, factor in self.rate_factors.items() if re.search(key, name)), 1.0)

    @staticmethod
    def _expanded(slot: tf.Tensor, dimensions: tuple[int, ...]) -> tf.Tensor:
        for dimension in sorted(dimensions):
            slot = tf.expand_dims(slot, dimension)
        return slot

    def build(self, variables: list[keras.Variable]) -> None:
        """Makes the slots of `variables`, which inherit their weights' axis names."""
        if self.built:
            return
        super().build(variables)
        self.slots: list[dict[str, keras.Variable]] = []
        # Keras passes a tf.Variable, without axis names, to `update_step`.
        self.weight_axes = [getattr(variable, "axes", (None,) * len(variable.shape)) for variable in variables]
        self.weight_names = [getattr(variable, "path", variable.name) for variable in variables]
        for variable, axes in zip(variables, self.weight_axes):
            slots = {}
            for name, (shape, slot_axes) in self.slot_shapes(tuple(variable.shape), axes).items():
                with axis_names.making_weight(shape, slot_axes, lambda block: tf.zeros(block.shape)):
                    slots[name] = self.add_variable(shape, dtype="float32", name=name)
                slots[name].axes = slot_axes
            self.slots.append(slots)

    def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        """Keras's hook: updates `variable` and its slots in place."""
        index = self._get_variable_index(variable)
        slots, axes = self.slots[index], self.weight_axes[index]
        values = {name: tf.convert_to_tensor(slot) for name, slot in slots.items()}
        rate = tf.cast(learning_rate, tf.float32)
        change = self.change(
            gradient, tf.convert_to_tensor(variable), values, axes, self.iterations, rate, self.weight_names[index]
        )
        self.assign(variable, change.weight)
        for name, slot in slots.items():
            self.assign(slot, change.slots[name])

    def get_config(self) -> dict[str, Any]:
        """Returns the constructor's arguments."""
        names = (
            "decay_exponent",
            "clipping_threshold",
            "epsilon1",
            "epsilon2",
            "min_size_to_factor",
            "rate_factors",
            "absolute_steps",
            "step_offset",
            "skip_by_matrix",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
