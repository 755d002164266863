"""Distillation: the loss of a student against a teacher's probabilities (Sec. 4.2; Mesh TensorFlow's StudentTeacher).

loss = (1 - fraction) cross-entropy + fraction T^2 cross-entropy(softmax(teacher / T), student / T) + auxiliary losses

The teacher is frozen: its weights are one more argument of the pure step (`make_train_step`), and no gradient is taken
through it. Padding counts in neither term.
"""

import abc
import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import gin
import tensorflow as tf

from switch_tf.errors import SettingError, check_types
from switch_tf.layers.embedding import sharded_argmax
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import WeightShape
from switch_tf.training.losses import cross_entropy, log_normalizer, token_weights

# The columns that a teacher adds to an evaluation, and to the metrics of a step.
EVALUATION_SCALARS = ("teacher_neg_log_perplexity", "teacher_agreement")
SCALARS = ("soft_cross_entropy", "teacher_entropy", *EVALUATION_SCALARS)

_MACROS = {
    "fraction": "TEACHER_FRACTION",
    "temperature": "TEACHER_TEMPERATURE",
    "start_step": "DISTILLATION_START_STEP",
}

# Features of a batch that a teacher was cached for.
TEACHER_TOKENS = "teacher_tokens"
TEACHER_LOG_PROBABILITIES = "teacher_log_probabilities"
TEACHER_OF_TARGETS = "teacher_target_log_probabilities"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class SoftLoss:
    """How much the teacher's probabilities count.

    Attributes:
      fraction: weight of the cross-entropy with the teacher's probabilities; 1 - fraction is that of the cross-entropy
        with the targets (the paper's mix: 0.25 and 0.75). 0: no teacher.
      temperature: T, which divides the logits of both models. The term is multiplied by T^2, so that its gradient
        keeps its size (Hinton et al. 2015).
      start_step: the step from which on the teacher counts.
    """

    fraction: float = 0.25
    temperature: float = 1.0
    start_step: int = 0

    def __post_init__(self) -> None:
        check_types(self, _MACROS.__getitem__)
        if not 0 <= self.fraction <= 1:
            raise SettingError(f"TEACHER_FRACTION = {self.fraction} must be in [0, 1].")
        if not self.temperature > 0:
            raise SettingError(f"TEACHER_TEMPERATURE = {self.temperature} must be positive.")
        if self.start_step < 0:
            raise SettingError(f"DISTILLATION_START_STEP = {self.start_step} must be 0 or more.")

    def fraction_at(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the fraction (float32 scalar) of `step`, 0 for the first."""
        return tf.where(step >= tf.cast(self.start_step, step.dtype), self.fraction, 0.0)


class SoftTargets(NamedTuple):
    """What a teacher predicts for each position.

    probabilities: float32 [B, L, V], at the loss's temperature; 0 where they are not known.
    tail: float32 [B, L], the mass of the ids that are not known; None if all are.
    in_tail: float32 [B, L, V], 1 for each of these ids; None if all are known.
    best: int32 [B, L], the most probable id.
    target_log_probability: float32 [B, L], of the target at temperature 1.
    entropy: float32 [B, L], in nats, at the loss's temperature; the tail counts as one id.
    """

    probabilities: tf.Tensor
    tail: tf.Tensor | None
    in_tail: tf.Tensor | None
    best: tf.Tensor
    target_log_probability: tf.Tensor
    entropy: tf.Tensor


def soft_cross_entropy(logits: tf.Tensor, soft: SoftTargets, temperature: float) -> tf.Tensor:
    """Cross-entropy of a student with a teacher's probabilities. The tail counts as one id.

    Against the cross-entropy over all ids this lacks the tail's mass times the cross-entropy within the tail: it says
    how much mass the tail should have, and nothing about how it is distributed.

    Args:
      logits: float32 [B, L, V], of the student.
      soft: of the teacher.
      temperature: T, which divides the student's logits.

    Returns:
      float32 [B, L], in nats.
    """
    scaled = logits / temperature
    loss = log_normalizer(scaled) - tf.reduce_sum(soft.probabilities * scaled, axis=-1)
    if soft.tail is None:
        return loss
    highest = tf.stop_gradient(tf.reduce_max(scaled, axis=-1, keepdims=True))
    of_tail = tf.reduce_sum(tf.exp(scaled - highest) * soft.in_tail, axis=-1)
    # All ids may be known, or the student may be certain of one of them: no logarithm of 0.
    log_of_tail = tf.squeeze(highest, -1) + tf.math.log(tf.maximum(of_tail, 1e-30))
    return loss - soft.tail * log_of_tail


def _comparison(logits: tf.Tensor, soft: SoftTargets) -> dict[str, tf.Tensor]:
    """The teacher's log likelihood of each target, and whether its most probable id is the student's: [B, L]."""
    agrees = tf.equal(sharded_argmax(logits), soft.best)
    return dict(zip(EVALUATION_SCALARS, (soft.target_log_probability, tf.cast(agrees, tf.float32))))


def _sums(values: Mapping[str, tf.Tensor], features: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Sums over the real target tokens."""
    weights = token_weights(features)
    return {name: tf.reduce_sum(value * weights) for name, value in values.items()}


class Teacher(abc.ABC):
    """Where soft targets come from.

    Attributes:
      scalars: the columns that it adds to the metrics of a step, means over the real target tokens.
    """

    scalars: tuple[str, ...] = SCALARS

    @property
    @abc.abstractmethod
    def weights(self) -> list[WeightShape]:
        """Shapes and axes of the weights that `soft_targets` takes."""

    @abc.abstractmethod
    def soft_targets(
        self, weights: list[tf.Tensor], features: Mapping[str, tf.Tensor], temperature: float
    ) -> SoftTargets:
        """Predicts every position of a batch.

        Args:
          weights: as in `weights`, float32 or bfloat16.
          features: of the batch.
          temperature: T of the probabilities.
        """


class ModelTeacher(Teacher):
    """A model that runs beside the student, at its evaluation capacity and without noise."""

    def __init__(self, model: EncoderDecoder):
        """Makes the teacher.

        Args:
          model: built; its variables give names, shapes and axes, not values.
        """
        self.model = model

    @property
    def weights(self) -> list[WeightShape]:
        return [WeightShape(tuple(weight.shape), weight.axes) for weight in self.model.trainable_variables]

    def soft_targets(
        self, weights: list[tf.Tensor], features: Mapping[str, tf.Tensor], temperature: float
    ) -> SoftTargets:
        placed = [axis_names.constrain(weight, shape.axes) for weight, shape in zip(weights, self.weights)]
        values = [tf.cast(weight, tf.float32) for weight in placed]
        logits, _ = self.model.stateless_call(values, [], features, training=False)
        negative_log_likelihood, log_z = cross_entropy(logits, features["decoder_target_tokens"])
        scaled = logits
        if temperature != 1.0:
            scaled = logits / temperature
            log_z = log_normalizer(scaled)
        probabilities = tf.exp(scaled - tf.expand_dims(log_z, -1))
        return SoftTargets(
            probabilities,
            None,
            None,
            sharded_argmax(logits),
            -negative_log_likelihood,
            log_z - tf.reduce_sum(probabilities * scaled, axis=-1),
        )

    def compared(
        self, weights: list[tf.Tensor], features: Mapping[str, tf.Tensor], logits: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """Compares the teacher with a student.

        Args:
          weights: as in `weights`.
          features: of the batch.
          logits: float32 [B, L, V], of the student.

        Returns:
          Sums over the real target tokens by the names in `EVALUATION_SCALARS`.
        """
        soft = self.soft_targets(weights, features, 1.0)
        return _sums(_comparison(logits, soft), features)


class CachedTeacher(Teacher):
    """The teacher's most probable ids of each position, which come with the batch; needs no second model."""

    scalars = (*SCALARS, "teacher_tail")

    def __init__(self, num_choices: int, vocab_size: int):
        """Makes the teacher.

        Args:
          num_choices: K, how many ids of each position are known.
          vocab_size: V of the student.
        """
        self.num_choices = num_choices
        self.vocab_size = vocab_size

    @property
    def weights(self) -> list[WeightShape]:
        return []

    def features(self, batch_size: int, targets_length: int) -> dict[str, tf.TensorSpec]:
        """Returns the features that a batch has for this teacher."""
        all_choices = [batch_size, targets_length * self.num_choices]
        return {
            TEACHER_TOKENS: tf.TensorSpec(all_choices, tf.int32),
            TEACHER_LOG_PROBABILITIES: tf.TensorSpec(all_choices, tf.float32),
            TEACHER_OF_TARGETS: tf.TensorSpec([batch_size, targets_length], tf.float32),
        }

    def soft_targets(
        self, weights: list[tf.Tensor], features: Mapping[str, tf.Tensor], temperature: float
    ) -> SoftTargets:
        """Takes the features `TEACHER_TOKENS` (int32) and `TEACHER_LOG_PROBABILITIES` (float32), both [B, L K]."""
        del weights, temperature  # The log probabilities were taken at the temperature.
        of_targets = features[TEACHER_OF_TARGETS]
        shape = [*of_targets.shape, self.num_choices]
        tokens = tf.reshape(features[TEACHER_TOKENS], shape)
        log_probabilities = tf.reshape(features[TEACHER_LOG_PROBABILITIES], shape)
        known = tf.exp(log_probabilities)
        tail = tf.maximum(1.0 - tf.reduce_sum(known, axis=-1), 0.0)

        # One id of each position at a time: all K at once would make a tensor of [B, L, K, V].
        def add(index: tf.Tensor, probabilities: tf.Tensor, in_tail: tf.Tensor) -> tuple[tf.Tensor, ...]:
            one_hot = tf.one_hot(tf.gather(tokens, index, axis=-1), self.vocab_size)
            probability = tf.expand_dims(tf.gather(known, index, axis=-1), -1)
            return index + 1, probabilities + probability * one_hot, in_tail - one_hot

        zeros = tf.zeros([*of_targets.shape, self.vocab_size])
        _, probabilities, in_tail = tf.while_loop(
            lambda index, *_: index < self.num_choices, add, (tf.constant(0), zeros, tf.ones_like(zeros))
        )
        entropy = -tf.reduce_sum(known * log_probabilities, axis=-1) - tf.math.xlogy(tail, tail)
        return SoftTargets(probabilities, tail, in_tail, tf.gather(tokens, 0, axis=-1), of_targets, entropy)


class Distillation(NamedTuple):
    """A teacher, and how much it counts: what `make_train_step` needs to train a student."""

    settings: SoftLoss
    teacher: Teacher

    def soft_targets(self, weights: list[tf.Tensor], features: Mapping[str, tf.Tensor]) -> SoftTargets:
        """Returns the teacher's predictions for a batch; see `Teacher.soft_targets`."""
        return self.teacher.soft_targets(weights, features, self.settings.temperature)

    def loss(
        self,
        logits: tf.Tensor,
        features: Mapping[str, tf.Tensor],
        soft: SoftTargets,
        fraction: tf.Tensor,
        num_tokens: tf.Tensor,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Computes the teacher's term of the loss of one batch, or of one microbatch or replica of it.

        Args:
          logits: float32 [B, L, V], of the student.
          features: of the batch.
          soft: the teacher's predictions.
          fraction: float32 scalar.
          num_tokens: float32 scalar, the real target tokens of the whole batch.

        Returns:
          (float32 scalar loss; sums over the real target tokens by the names in `Teacher.scalars`).
        """
        temperature = self.settings.temperature
        values = {
            "soft_cross_entropy": soft_cross_entropy(logits, soft, temperature),
            "teacher_entropy": soft.entropy,
            **_comparison(logits, soft),
        }
        if soft.tail is not None:
            values["teacher_tail"] = soft.tail
        sums = _sums(values, features)
        return fraction * temperature**2 * sums["soft_cross_entropy"] / num_tokens, sums
