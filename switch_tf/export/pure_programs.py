"""A model's evaluation, logits, decoding and training step as pure functions of dictionaries, weights included."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import tensorflow as tf

from switch_tf.decoding.cached_step import INPUTS
from switch_tf.decoding.decoder import decode
from switch_tf.decoding.settings import Decoding
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.step import make_evaluation_step, make_train_step

# A tensor (or its shape and dtype), or a dictionary of them by name, to any depth.
Nest = Any
Shapes = Mapping[str, tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class PureProgram:
    """A pure function.

    Attributes:
      function: takes the arguments and returns a nest of tensors.
      arguments: a nest of shapes and dtypes for each argument, by its name, in the order of the function.
    """

    function: Callable[..., Nest]
    arguments: dict[str, Nest]


def evaluation_step(model: EncoderDecoder, features: Shapes) -> PureProgram:
    """Returns the evaluation step: (weights, features) -> what evaluation sums over batches, a nest of float32 [].

    Args:
      model: built.
      features: shape (B, L) of each feature of a batch, which are int32.
    """
    step = make_evaluation_step(model)

    def evaluate(weights: dict[str, tf.Tensor], features: dict[str, tf.Tensor]) -> Nest:
        return _as_dictionaries(step(_in_order(model, weights), features))

    return PureProgram(evaluate, {"weights": _weights(model), "features": _features(features)})


def teacher_forced_logits(model: EncoderDecoder, features: Shapes) -> PureProgram:
    """Returns the forward pass: (weights, features) -> float32 [B, L, V]; no token is dropped.

    Args:
      model: built.
      features: shape (B, L) of each feature of a batch, which are int32.
    """

    def logits(weights: dict[str, tf.Tensor], features: dict[str, tf.Tensor]) -> tf.Tensor:
        return model.stateless_call(_in_order(model, weights), [], features, training=False, dropless=True)[0]

    return PureProgram(logits, {"weights": _weights(model), "features": _features(features)})


def decoding(
    model: EncoderDecoder, encoder_input_tokens: tuple[int, int], settings: Decoding, max_length: int
) -> PureProgram:
    """Returns a decoder: (weights, features) -> {"tokens": int32 [B, n, T], "scores": float32 [B, n]}.

    Args:
      model: built.
      encoder_input_tokens: shape (B, L) of the only feature.
      settings: which decoder.
      max_length: the maximum number of tokens to decode, T, unless the settings have one.
    """

    def decoded(weights: dict[str, tf.Tensor], features: dict[str, tf.Tensor]) -> Nest:
        with keras.StatelessScope(list(zip(model.trainable_variables, _in_order(model, weights)))):
            return _as_dictionaries(decode(model, features, settings, max_length))

    return PureProgram(decoded, {"weights": _weights(model), "features": _features({INPUTS: encoder_input_tokens})})


def training_step(
    model: EncoderDecoder, optimizer: Adafactor, objective: Objective, features: Shapes, num_microbatches: int = 1
) -> PureProgram:
    """Returns the training step: (weights, slots, step, features, seed) -> {"weights", "slots", "metrics"}.

    Args:
      model: built; defines names and shapes of the weights.
      optimizer: defines the update rule and its slots.
      objective: weights of the losses.
      features: shape (B, L) of each feature of a batch, which are int32.
      num_microbatches: into how many microbatches a batch is split.
    """
    step_function = make_train_step(model, optimizer, objective, num_microbatches)
    names = [weight_name(weight) for weight in model.trainable_variables]

    def train(
        weights: dict[str, tf.Tensor],
        slots: dict[str, dict[str, tf.Tensor]],
        step: tf.Tensor,
        features: dict[str, tf.Tensor],
        seed: tf.Tensor,
    ) -> Nest:
        of_weights = [slots[name] for name in names]
        after, slots_after, metrics = step_function(_in_order(model, weights), of_weights, step, features, seed)
        return {
            "weights": dict(zip(names, after)),
            "slots": dict(zip(names, slots_after)),
            "metrics": _as_dictionaries(metrics),
        }

    number = tf.TensorSpec([], tf.int32)
    slots = {
        weight_name(weight): {
            slot: tf.TensorSpec(shape)
            for slot, (shape, _) in optimizer.slot_shapes(tuple(weight.shape), weight.axes).items()
        }
        for weight in model.trainable_variables
    }
    arguments = {"weights": _weights(model), "slots": slots, "step": number, "features": _features(features)}
    return PureProgram(train, {**arguments, "seed": number})


def _weights(model: EncoderDecoder) -> dict[str, tf.TensorSpec]:
    return {weight_name(weight): tf.TensorSpec(weight.shape) for weight in model.trainable_variables}


def _features(shapes: Shapes) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec(shape, tf.int32) for name, shape in shapes.items()}


def _in_order(model: EncoderDecoder, weights: dict[str, tf.Tensor]) -> list[tf.Tensor]:
    return [weights[weight_name(weight)] for weight in model.trainable_variables]


def _as_dictionaries(nest: Nest) -> Nest:
    """Turns named tuples into dictionaries, which other libraries know too."""
    if hasattr(nest, "_asdict"):
        nest = nest._asdict()
    return {key: _as_dictionaries(value) for key, value in nest.items()} if isinstance(nest, dict) else nest
