"""The training step and the evaluation step as pure functions of tensors.

They read and assign no variables: the training loop does so around them, and a compiler can lower them from shapes.

An update whose loss or gradient is not finite is skipped: the step returns the weights and slots that it was given (all
of them, or with `Adafactor.skip_by_matrix` those whose own gradient is not finite).

On data-parallel replicas, gradients, losses and metrics are contributions of the replica's rows until
`sum_over_replicas` adds them up. From then on all replicas have equal values and make the same update.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers import randomness
from switch_tf.layers.routing import RoutingMetrics
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import Axes
from switch_tf.training.adafactor import Adafactor, Change
from switch_tf.training.distillation import Distillation, ModelTeacher
from switch_tf.training.losses import Objective, TokenLosses, mean_over_layers, objective, token_losses, token_weights
from switch_tf.training.update_statistics import UpdateStatistics, make_update_statistics

Features = Mapping[str, tf.Tensor]
OptimizerSlots = list[dict[str, tf.Tensor]]

_FEATURE_AXES = (axis_names.BATCH, axis_names.LENGTH)


class StepMetrics(NamedTuple):
    """The metrics of a step: float32 scalars, those of a teacher, and for each sparse layer its `RoutingMetrics`.

    loss: the minimized sum of cross-entropy and auxiliary losses.
    neg_log_perplexity: mean log likelihood of a real target token, in nats, without auxiliary losses; higher is better
      (paper, footnote 4).
    accuracy: share of the real target tokens that had the highest logit.
    balance_loss: mean over the sparse layers; 1 at balance. 0 in a dense model.
    z_loss: mean of log^2 Z, before its weight.
    gradient_norm: of all gradients together.
    learning_rate: of this step.
    target_tokens: number of real target tokens.
    skipped: 1 where the update was skipped because the loss or the gradient norm is not finite, otherwise 0.
    teacher: float32 scalars by name (`Teacher.scalars`), means over the real target tokens; empty without a teacher.
    routing: by the layer's name.
    updates: what the update did to each sparse layer, by the layer's name.
    """

    loss: tf.Tensor
    neg_log_perplexity: tf.Tensor
    accuracy: tf.Tensor
    balance_loss: tf.Tensor
    z_loss: tf.Tensor
    gradient_norm: tf.Tensor
    learning_rate: tf.Tensor
    target_tokens: tf.Tensor
    skipped: tf.Tensor
    teacher: dict[str, tf.Tensor]
    routing: dict[str, RoutingMetrics]
    updates: dict[str, UpdateStatistics]


class _Sums(NamedTuple):
    """What is summed over the microbatches and the replicas of a step."""

    gradients: list[tf.Tensor]
    loss: tf.Tensor
    sums: TokenLosses
    teacher: dict[str, tf.Tensor]
    balance_loss: tf.Tensor
    routing: dict[str, RoutingMetrics]


class _Given(NamedTuple):
    """What is the same for all microbatches of a step."""

    weights: list[tf.Tensor]
    teacher_weights: list[tf.Tensor]
    fraction: tf.Tensor
    num_tokens: tf.Tensor


def microbatch(features: Features, index: tf.Tensor, num_microbatches: int) -> Features:
    """Returns every `num_microbatches`-th example from `index` on.

    Strided instead of contiguous, so that each device, which holds contiguous rows of the batch, has some of every
    microbatch.
    """

    def take(feature: tf.Tensor) -> tf.Tensor:
        batch, *rest = feature.shape
        split = tf.reshape(feature, [batch // num_microbatches, num_microbatches, *rest])
        return tf.gather(split, index, axis=1)

    return {name: take(feature) for name, feature in features.items()}


def _placed(weights: list[tf.Tensor], axes: list[Axes]) -> list[tf.Tensor]:
    """Shards weights by the layout rules, so that the program reads and writes only shards of them."""
    return [axis_names.constrain(weight, names) for weight, names in zip(weights, axes)]


def _placed_slots(slots: OptimizerSlots, axes: list[dict[str, Axes]]) -> OptimizerSlots:
    """Shards optimizer slots by the layout rules."""
    return [
        {name: axis_names.constrain(tensor, names[name]) for name, tensor in slot.items()}
        for slot, names in zip(slots, axes)
    ]


def _placed_features(features: Features) -> Features:
    """Shards a batch, int32 [B, L] each, by the layout rules."""
    return {name: axis_names.constrain(feature, _FEATURE_AXES) for name, feature in features.items()}


class _InSequence:
    """Updates large weights one after the other, or the temporaries of all of them would be in memory at once.

    The last comes first, as its gradient does. Not in a partitioned program, which a compiler schedules.
    """

    _LARGE = 2**20

    def __init__(self) -> None:
        self._previous: list[tf.Tensor] = []

    def order(self, num_weights: int) -> list[int]:
        """Returns the indices of the weights in the order of their updates."""
        indices = list(range(num_weights))
        return indices if axis_names.is_partitioned() else indices[::-1]

    def next(self) -> AbstractContextManager:
        """Inside of it, what is computed waits for the last large weight."""
        return tf.control_dependencies(self._previous)

    def last(self, weight: tf.Tensor) -> tf.Tensor:
        """Returns an updated weight, for which the next ones wait if it is large."""
        if weight.shape.num_elements() >= self._LARGE and not axis_names.is_partitioned():
            self._previous = [weight]
        return weight


def balanced_layers(model: EncoderDecoder) -> dict[int, str]:
    """Maps the index of each balance bias among the trainable variables to the name of its sparse layer."""
    layers = {}
    for index, variable in enumerate(model.trainable_variables):
        name = weight_name(variable)
        if name.endswith("/balance_bias"):
            owners = [layer for layer in model.config.sparse_layer_names if name.startswith(f"{layer}/")]
            layers[index] = max(owners, key=len)
    return layers


def balance_bias_change(expert_load: tf.Tensor, rate: float) -> tf.Tensor:
    """Moves each expert's bias by a fixed amount against its load (Wang et al. 2024, Algorithm 1).

    Args:
      expert_load: float32 [E], the share of the tokens' choices that fell on the expert.
      rate: the step size.

    Returns:
      float32 [E], what to subtract from the bias.
    """
    return rate * tf.sign(expert_load - 1.0 / expert_load.shape[0])


def make_train_step(
    model: EncoderDecoder,
    optimizer: Adafactor,
    settings: Objective,
    num_microbatches: int = 1,
    distillation: Distillation | None = None,
) -> Callable[..., tuple[list[tf.Tensor], OptimizerSlots, StepMetrics]]:
    """Makes the pure training step of a built model.

    Args:
      model: built; its variables give names, shapes and axes, not values.
      optimizer: its update rule.
      settings: the auxiliary losses.
      num_microbatches: gradient accumulation: the batch is split into so many microbatches, which saves memory. The
        result is that of the whole batch up to rounding (and up to routing groups, which do not span microbatches).
      distillation: the teacher of the model, and how much it counts; None without one.

    Returns:
      step(weights, slots, step, features, seed, teacher_weights) -> (weights, slots, metrics): `weights` as in
      `model.trainable_variables`, `slots` a dict for each of them, `step` an integer scalar (0 for the first),
      `features` int32 [B, L] tensors, `seed` an integer scalar, `teacher_weights` as in `Teacher.weights` (none by
      default). If the loss or the gradient norm is not finite, the new weights and slots are the old ones (see
      `Adafactor.skip_by_matrix`).
    """
    weight_axes = [variable.axes for variable in model.trainable_variables]
    weight_names = [weight_name(variable) for variable in model.trainable_variables]
    slot_axes = [
        {name: slot.axes for name, slot in optimizer.slot_shapes(tuple(variable.shape), variable.axes).items()}
        for variable in model.trainable_variables
    ]
    share = 1.0 / num_microbatches
    # Each microbatch has its own routing losses, which are averaged.
    settings = dataclasses.replace(
        settings, balance_loss=settings.balance_loss * share, router_z_loss=settings.router_z_loss * share
    )
    balanced = balanced_layers(model)
    update_statistics = make_update_statistics(model)

    def sums_of(given: _Given, features: Features, seed: tf.Tensor) -> _Sums:
        weights, hard_share = given.weights, 1.0
        of_teacher: dict[str, tf.Tensor] = {}
        if distillation is not None:
            # Outside of the tape: the teacher is frozen, and none of its activations are kept.
            soft = distillation.soft_targets(given.teacher_weights, features)
            hard_share = 1.0 - given.fraction
        with tf.GradientTape() as tape:
            tape.watch(weights)
            output, _ = model.stateless_call(weights, [], features, training=True, seed=seed, return_routing=True)
            loss, sums = objective(output, features, settings, given.num_tokens, hard_share)
            if distillation is not None:
                soft_loss, of_teacher = distillation.loss(
                    output.logits, features, soft, given.fraction, given.num_tokens
                )
                loss += soft_loss
        gradients = tape.gradient(loss, weights)
        # A balance bias has no gradient.
        gradients = [
            tf.zeros_like(weights[index]) if index in balanced else tf.convert_to_tensor(gradient)
            for index, gradient in enumerate(gradients)
        ]
        routing = {name: routing.metrics.scaled(share) for name, routing in output.routings.items()}
        balance_loss = mean_over_layers(routing.balance_loss for routing in output.routings.values())
        return _Sums(gradients, loss, sums, of_teacher, balance_loss * share, routing)

    def accumulated(given: _Given, features: Features, seed: tf.Tensor) -> _Sums:
        def sums_at(index: tf.Tensor) -> _Sums:
            features_at = microbatch(features, index, num_microbatches)
            weights = axis_names.reread(given.weights, index)
            return sums_of(given._replace(weights=weights), features_at, randomness.fold_in(seed, index))

        if axis_names.is_replicated():
            return unrolled(sums_at)

        # The tape is inside the body: DTensor has no gradient through a while_loop.
        def body(index: tf.Tensor, total: _Sums) -> tuple[tf.Tensor, _Sums]:
            return index + 1, tf.nest.map_structure(tf.add, total, sums_at(index))

        # Traced only for its shapes: the program has one copy of the model, in the loop's body.
        shapes = (
            tf.function(sums_at, autograph=False).get_concrete_function(tf.TensorSpec([], tf.int32)).structured_outputs
        )
        zeros = tf.nest.map_structure(lambda tensor: tf.zeros(tensor.shape, tensor.dtype), shapes)
        return tf.while_loop(lambda index, _: index < num_microbatches, body, (tf.constant(0), zeros))[1]

    def unrolled(sums_at: Callable[[tf.Tensor], _Sums]) -> _Sums:
        # Layers all-reduce token counts, which is impossible in a loop: one copy of the model for each microbatch.
        total = sums_at(tf.constant(0))
        for index in range(1, num_microbatches):
            # In sequence, or the activations of all microbatches would be in memory at once.
            with tf.control_dependencies(tf.nest.flatten(total)):
                total = tf.nest.map_structure(tf.add, total, sums_at(tf.constant(index)))
        return total

    def step_function(
        weights: list[tf.Tensor],
        slots: OptimizerSlots,
        step: tf.Tensor,
        features: Features,
        seed: tf.Tensor,
        teacher_weights: Sequence[tf.Tensor] = (),
    ) -> tuple[list[tf.Tensor], OptimizerSlots, StepMetrics]:
        weights, slots = _placed(weights, weight_axes), _placed_slots(slots, slot_axes)
        features = _placed_features(features)
        num_tokens = tf.maximum(axis_names.sum_over_replicas(tf.reduce_sum(token_weights(features))), 1.0)
        seed = randomness.fold_in(seed, tf.cast(step, tf.uint32))
        fraction = tf.constant(0.0) if distillation is None else distillation.settings.fraction_at(step)
        given = _Given(weights, list(teacher_weights), fraction, num_tokens)
        compute = sums_of if num_microbatches == 1 else accumulated
        total = axis_names.sum_over_replicas(compute(given, features, seed))

        # Not tf.linalg.global_norm, so that the statistics share the sums.
        gradient_squares = [tf.nn.l2_loss(gradient) for gradient in total.gradients]
        gradient_norm = tf.sqrt(2.0 * tf.reduce_sum(tf.stack(gradient_squares)))
        is_finite = tf.math.is_finite(total.loss) & tf.math.is_finite(gradient_norm)

        rate = optimizer.rate(step)
        changes: list[Change | None] = [None] * len(weights)
        new_weights, new_slots = list(weights), list(slots)
        in_sequence = _InSequence()
        for index in in_sequence.order(len(weights)):
            gradient, weight = total.gradients[index], weights[index]
            with in_sequence.next():
                if index in balanced:
                    load = total.routing[balanced[index]].expert_load
                    difference = balance_bias_change(load, model.config.balance_bias_rate)
                    new_weight = weight - tf.where(tf.reshape(is_finite, [1]), difference, tf.zeros_like(difference))
                else:
                    name, axes = weight_names[index], weight_axes[index]
                    change = optimizer.change(gradient, weight, slots[index], axes, step, rate, name, is_finite)
                    new_weight, new_slots[index], changes[index] = change.weight, change.slots, change
                new_weights[index] = in_sequence.last(new_weight)
        metrics = StepMetrics(
            loss=total.loss,
            neg_log_perplexity=-total.sums.negative_log_likelihood / num_tokens,
            accuracy=total.sums.correct / num_tokens,
            balance_loss=total.balance_loss,
            z_loss=total.sums.squared_log_z / num_tokens,
            gradient_norm=gradient_norm,
            learning_rate=rate,
            target_tokens=total.sums.tokens,
            skipped=1.0 - tf.cast(is_finite, tf.float32),
            teacher={name: value / num_tokens for name, value in total.teacher.items()},
            routing=total.routing,
            updates=update_statistics(gradient_squares, weights, changes),
        )
        return _placed(new_weights, weight_axes), _placed_slots(new_slots, slot_axes), metrics

    return step_function


class EvaluationSums(NamedTuple):
    """What evaluation sums over batches: token sums, those of a teacher by name, per-batch means of routing metrics."""

    tokens: TokenLosses
    teacher: dict[str, tf.Tensor]
    balance_loss: tf.Tensor
    batches: tf.Tensor
    routing: dict[str, RoutingMetrics]


def make_evaluation_step(model: EncoderDecoder, teacher: ModelTeacher | None = None) -> Callable[..., EvaluationSums]:
    """Makes the pure evaluation step: teacher forcing, no noise, the evaluation capacity.

    Args:
      model: built.
      teacher: the model's, whose likelihood and agreement are measured, too; None without one.

    Returns:
      step(weights, features, teacher_weights) -> sums of one batch, to be added up over batches; `teacher_weights` as
      in `Teacher.weights` (none by default).
    """
    weight_axes = [variable.axes for variable in model.trainable_variables]

    def step_function(
        weights: list[tf.Tensor], features: Features, teacher_weights: Sequence[tf.Tensor] = ()
    ) -> EvaluationSums:
        weights, features = _placed(weights, weight_axes), _placed_features(features)
        output, _ = model.stateless_call(weights, [], features, training=False, return_routing=True)
        sums = token_losses(output.logits, features["decoder_target_tokens"], token_weights(features))
        of_teacher = {} if teacher is None else teacher.compared(list(teacher_weights), features, output.logits)
        balance = mean_over_layers(routing.balance_loss for routing in output.routings.values())
        routing = {name: routing.metrics for name, routing in output.routings.items()}
        sums, of_teacher, balance, routing = axis_names.sum_over_replicas((sums, of_teacher, balance, routing))
        return EvaluationSums(sums, of_teacher, balance, tf.constant(1.0), routing)

    return step_function
