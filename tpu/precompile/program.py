"""Training, evaluation and decoding as pure functions of flat arguments, which can be lowered from shapes alone."""

import dataclasses
from collections.abc import Callable, Mapping

import keras
import tensorflow as tf

from switch_tf.decoding.greedy import greedy
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.axes import BATCH, LENGTH, Axes
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.distillation import CachedTeacher, Distillation
from switch_tf.training.losses import Objective
from switch_tf.training.step import make_evaluation_step, make_train_step

_FEATURE_AXES = (BATCH, LENGTH)


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function of a flat list of tensors.

    Attributes:
      function: takes the arguments one by one and returns a flat list of tensors.
      arguments: their shapes and dtypes.
      argument_axes: their axis names; () for a replicated argument.
      state_size: how many leading results are the next call's leading arguments, sharded alike; the other results are
        replicated.
    """

    function: Callable[..., list[tf.Tensor]]
    arguments: list[tf.TensorSpec]
    argument_axes: list[Axes]
    state_size: int

    @property
    def state_axes(self) -> list[Axes]:
        """The axis names of the first `state_size` arguments and results."""
        return self.argument_axes[: self.state_size]


def _flat(function: Callable, arguments: tuple, argument_axes: list[Axes], state_size: int = 0) -> Program:
    def flat_function(*flat: tf.Tensor) -> list[tf.Tensor]:
        return tf.nest.flatten(function(*tf.nest.pack_sequence_as(arguments, flat)))

    return Program(flat_function, tf.nest.flatten(arguments), argument_axes, state_size)


def _features(shapes: Mapping[str, tuple[int, int]]) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec(shape, tf.int32) for name, shape in shapes.items()}


def _weights(model: EncoderDecoder) -> tuple[list[tf.TensorSpec], list[Axes]]:
    weights = model.trainable_variables
    return [tf.TensorSpec(weight.shape) for weight in weights], [weight.axes for weight in weights]


def training_program(
    model: EncoderDecoder,
    optimizer: Adafactor,
    objective: Objective,
    features: Mapping[str, tuple[int, int]],
    num_microbatches: int = 1,
    distillation: Distillation | None = None,
    teacher_dtype: tf.DType = tf.float32,
) -> Program:
    """Makes the training step's program.

    Args:
      model: built; defines names, shapes and axes of the weights.
      optimizer: defines the update rule and its slots.
      objective: weights of the losses.
      features: shape (B, L) of each feature of a batch.
      num_microbatches: into how many microbatches a batch is split.
      distillation: the teacher of the model, and how much it counts; None without one.
      teacher_dtype: of the teacher's weights.

    Returns:
      A program of weights and slots (float32: the state), step (int32 []), features (int32 [B, L], by name), seed
      (int32 []) and the teacher's weights. It returns the new weights and slots, then the metrics of the step, in the
      order of `tf.nest`.
    """
    step = make_train_step(model, optimizer, objective, num_microbatches, distillation)
    of_teacher = [] if distillation is None else distillation.teacher.weights
    specs: dict[str, tf.TensorSpec] = _features(features)
    if distillation is not None and isinstance(distillation.teacher, CachedTeacher):
        specs |= distillation.teacher.features(*features["decoder_target_tokens"])
    weights, state_axes = _weights(model)
    slots = [optimizer.slot_shapes(tuple(weight.shape), weight.axes) for weight in model.trainable_variables]
    number = tf.TensorSpec([], tf.int32)
    arguments = (
        weights,
        [{name: tf.TensorSpec(slot.shape) for name, slot in of_weight.items()} for of_weight in slots],
        number,
        specs,
        number,
        [tf.TensorSpec(weight.shape, teacher_dtype) for weight in of_teacher],
    )
    state_axes += [of_weight[name].axes for of_weight in slots for name in sorted(of_weight)]
    teacher_axes = [weight.axes for weight in of_teacher]
    argument_axes = [*state_axes, (), *[_FEATURE_AXES] * len(specs), (), *teacher_axes]
    return _flat(step, arguments, argument_axes, len(state_axes))


def evaluation_program(model: EncoderDecoder, features: Mapping[str, tuple[int, int]]) -> Program:
    """Makes the evaluation step's program.

    Args:
      model: built.
      features: shape (B, L) of each feature of a batch.

    Returns:
      A program of weights (float32) and features (int32 [B, L], by name), that returns sums over the batch.
    """
    weights, weight_axes = _weights(model)
    arguments = (weights, _features(features))
    return _flat(make_evaluation_step(model), arguments, [*weight_axes, *[_FEATURE_AXES] * len(features)])


def decoding_program(model: EncoderDecoder, encoder_input_tokens: tuple[int, int], max_length: int) -> Program:
    """Makes the program of greedy decoding: the encoder, then `max_length` decoder steps.

    Args:
      model: built.
      encoder_input_tokens: shape (B, L).
      max_length: how many tokens to decode at most.

    Returns:
      A program of weights (float32) and input tokens (int32 [B, L]), that returns int32 [B, max_length].
    """
    weights, weight_axes = _weights(model)

    def decode(weights: list[tf.Tensor], tokens: tf.Tensor) -> tf.Tensor:
        with keras.StatelessScope(list(zip(model.trainable_variables, weights))):
            return greedy(model, tokens, max_length)

    arguments = (weights, tf.TensorSpec(encoder_input_tokens, tf.int32))
    return _flat(decode, arguments, [*weight_axes, _FEATURE_AXES])
