"""What a router decides, and the losses, metrics and slot assignment that all routers share.

Letters: G groups, S tokens in a group, M d_model, E experts, C slots of an expert in a group (its capacity),
K experts that a token may use (1 in a Switch Transformer).

On data-parallel replicas, a mean here is the replica's contribution to the mean: the contributions add up to it.
"""

from typing import NamedTuple

import tensorflow as tf

from switch_tf.partitioning import axes


class RoutingMetrics(NamedTuple):
    """What one sparse layer did with a batch's real tokens; float32.

    fraction_dropped: [], share of the tokens that got no slot, so that only the residual connection carries them.
    expert_load: [E], share of the tokens' choices that fell on the expert, before capacity is applied; sums to 1.
    router_entropy: [], mean entropy of the router's distribution, in nats; ln E for a uniform one.
    router_confidence: [], mean probability of the first choice.
    tokens: [], the number of real tokens.
    output_square: [], sum over the real tokens of the mean square of what the layer adds to the residual stream, the
      gates included; 0 outside of a block, which alone knows the stream (`with_sizes`).
    residual_square: [], the same of the residual stream that the layer adds to.
    """

    fraction_dropped: tf.Tensor
    expert_load: tf.Tensor
    router_entropy: tf.Tensor
    router_confidence: tf.Tensor
    tokens: tf.Tensor
    output_square: tf.Tensor
    residual_square: tf.Tensor

    def scaled(self, share: float) -> "RoutingMetrics":
        """Scales the means by a microbatch's share of the batch; what is summed over tokens adds up as it is."""
        return self._replace(
            fraction_dropped=self.fraction_dropped * share,
            expert_load=self.expert_load * share,
            router_entropy=self.router_entropy * share,
            router_confidence=self.router_confidence * share,
        )


class Routing(NamedTuple):
    """The experts and slots of every token of every group.

    expert: int32 [G, S, K], the chosen experts.
    slot: int32 [G, S, K], expert * C + position in the expert, or E * C for a choice without a slot.
    gate: float32 [G, S, K], the factor of the expert's output; 0 without a slot.
    filled: int32 [G, E], how many slots of an expert hold a token; they are its first ones.
    capacity: C, a Python int.
    logits: float32 [G, S, E], the router's, before the softmax.
    balance_loss: float32 [], 1 at perfect balance, E if one expert gets all tokens.
    z_loss: float32 [], mean of log^2 sum_i exp(h_i) over real tokens (Zoph et al. 2022, Eq. 5).
    metrics: for logs; no gradient.
    """

    expert: tf.Tensor
    slot: tf.Tensor
    gate: tf.Tensor
    filled: tf.Tensor
    capacity: int
    logits: tf.Tensor
    balance_loss: tf.Tensor
    z_loss: tf.Tensor
    metrics: RoutingMetrics


def expert_capacity(group_size: int, num_experts: int, capacity_factor: float, min_expert_capacity: int) -> int:
    """Returns how many tokens of a group an expert takes (Eq. 3), rounded down as in Mesh TensorFlow.

    Args:
      group_size: S, including padding, although padding takes no slot.
      num_experts: E.
      capacity_factor: 1.0 is just enough for a perfect balance.
      min_expert_capacity: the minimum, for small groups.

    Returns:
      C, from 1 to S.

    Raises:
      ValueError: if the factor is not positive.
    """
    if capacity_factor <= 0:
        raise ValueError(f"A capacity factor must be positive, this one is {capacity_factor}.")
    return min(group_size, max(int(group_size * capacity_factor / num_experts), min_expert_capacity, 1))


def mean_over_tokens(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean over the real tokens of each group.

    Args:
      values: float32 [G, S, ...].
      mask: float32 [G, S], 1 for a real token.

    Returns:
      float32 [G, ...]; 0 for a group that has no real token.
    """
    weights = tf.reshape(mask, mask.shape.as_list() + [1] * (values.shape.rank - 2))
    count = tf.maximum(tf.reduce_sum(mask, axis=1), 1.0)
    count = tf.reshape(count, [values.shape[0]] + [1] * (values.shape.rank - 2))
    return tf.reduce_sum(values * weights, axis=1) / count


def mean_over_groups(values: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean over the groups that have a real token: float32 [G] and mask [G, S] -> []."""
    is_used = tf.cast(tf.reduce_sum(mask, axis=1) > 0, tf.float32)
    return tf.reduce_sum(values * is_used) / tf.maximum(axes.sum_over_replicas(tf.reduce_sum(is_used)), 1.0)


def load_balance_loss(probabilities: tf.Tensor, first_choice: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """E * sum_i f_i P_i (Eq. 4 without alpha), for each group, then averaged over groups.

    f_i (Eq. 5) counts first choices, before any is dropped, and has no gradient; P_i (Eq. 6) has. Both are means over
    the group's real tokens. (Mesh TensorFlow and T5X include padding in one or both.)

    Args:
      probabilities: float32 [G, S, E].
      first_choice: float32 [G, S, E], one-hot.
      mask: float32 [G, S], 1 for a real token.

    Returns:
      float32 [].
    """
    num_experts = probabilities.shape[-1]
    fraction = tf.stop_gradient(mean_over_tokens(first_choice, mask))
    probability = mean_over_tokens(probabilities, mask)
    return mean_over_groups(num_experts * tf.reduce_sum(fraction * probability, axis=-1), mask)


def router_z_loss(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mean of log^2 Z over real tokens, which keeps the router's logits small (Zoph et al. 2022, Eq. 5).

    Args:
      logits: float32 [G, S, E].
      mask: float32 [G, S], 1 for a real token. (T5X counts log^2 E for each padding token, Mesh TensorFlow none.)

    Returns:
      float32 [].
    """
    squared = tf.square(tf.reduce_logsumexp(logits, axis=-1))
    return tf.reduce_sum(squared * mask) / tf.maximum(axes.sum_over_replicas(tf.reduce_sum(mask)), 1.0)


def routing_metrics(
    logits: tf.Tensor,
    probabilities: tf.Tensor,
    first_choice: tf.Tensor,
    choices: tf.Tensor,
    has_slot: tf.Tensor,
    mask: tf.Tensor,
) -> RoutingMetrics:
    """Computes the metrics of a routing, without a gradient.

    Args:
      logits: float32 [G, S, E], over the experts.
      probabilities: float32 [G, S, E], their softmax.
      first_choice: float32 [G, S, E], one-hot.
      choices: float32 [G, S, E], 1 for each choice of a real token.
      has_slot: float32 [G, S], 1 for a token that got a slot.
      mask: float32 [G, S], 1 for a real token.

    Returns:
      The metrics.
    """
    num_tokens = tf.maximum(axes.sum_over_replicas(tf.reduce_sum(mask)), 1.0)
    # ln p = h - ln Z: the z-loss has ln Z and the gate the product below, which TensorFlow then computes once.
    log_z = tf.expand_dims(tf.reduce_logsumexp(logits, axis=-1), -1)
    entropy = tf.stop_gradient(tf.reduce_sum(probabilities * (log_z - logits), axis=-1))
    confidence = tf.stop_gradient(tf.reduce_sum(probabilities * first_choice, axis=-1))
    num_choices = tf.maximum(axes.sum_over_replicas(tf.reduce_sum(choices)), 1.0)
    return RoutingMetrics(
        fraction_dropped=tf.reduce_sum(mask - has_slot) / num_tokens,
        expert_load=tf.reduce_sum(choices, axis=[0, 1]) / num_choices,
        router_entropy=tf.reduce_sum(entropy * mask) / num_tokens,
        router_confidence=tf.reduce_sum(confidence * mask) / num_tokens,
        tokens=tf.reduce_sum(mask),
        output_square=tf.constant(0.0),
        residual_square=tf.constant(0.0),
    )


def with_sizes(routing: Routing, residual: tf.Tensor, output: tf.Tensor, mask: tf.Tensor | None) -> Routing:
    """Adds to a routing's metrics how large the layer's output is beside the residual stream that it is added to.

    Args:
      routing: the layer's.
      residual: [B, L, M], any float dtype.
      output: [B, L, M], before dropout.
      mask: bool [B, L], True for a real token; None if all are real.

    Returns:
      The routing, with `output_square` and `residual_square` in its metrics.
    """

    def sum_of_squares(tensor: tf.Tensor) -> tf.Tensor:
        # Of the residual stream the layer's norm computes the same, which TensorFlow then does once.
        squares = tf.reduce_mean(tf.square(tf.cast(tensor, tf.float32)), axis=-1, keepdims=True)
        squares = tf.stop_gradient(tf.squeeze(squares, axis=-1))
        return tf.reduce_sum(squares if mask is None else squares * tf.cast(mask, tf.float32))

    metrics = routing.metrics._replace(output_square=sum_of_squares(output), residual_square=sum_of_squares(residual))
    return routing._replace(metrics=metrics)


def highest_first(priority: tf.Tensor) -> tf.Tensor:
    """Orders a group's tokens by decreasing priority, ties by position: float32 [G, S] -> int32 [G, S]."""
    return tf.argsort(-tf.stop_gradient(priority), axis=-1, stable=True)


class ExpertSlots:
    """Assigns expert slots to tokens, one round of choices after the other.

    Within a round, tokens are served in their order in the group, or in `order`; a later round takes remaining slots.
    """

    def __init__(self, num_groups: int, num_experts: int, capacity: int, order: tf.Tensor | None = None):
        """Starts with all slots free.

        Args:
          num_groups: G.
          num_experts: E.
          capacity: C.
          order: int32 [G, S], the tokens by decreasing priority; None: by position, which is causal.
        """
        self.num_experts = num_experts
        self.capacity = capacity
        self._order = order
        self._place = None if order is None else tf.argsort(order, axis=-1)
        self._used = tf.zeros([num_groups, num_experts], tf.int32)

    def take(self, expert: tf.Tensor, wanted: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """One round: each token that wants a slot of its expert gets the next free one, if there is one.

        Args:
          expert: int32 [G, S], the choice of each token.
          wanted: float32 [G, S], 1 for a token that takes part.

        Returns:
          (int32 [G, S], expert * C + position, or E * C for a token without a slot; float32 [G, S], 1 for one with).
        """
        wanted = tf.stop_gradient(wanted)
        is_wanted = wanted > 0
        taken = tf.one_hot(tf.where(is_wanted, expert, -1), self.num_experts, dtype=tf.float32)
        count = tf.cast(tf.reduce_sum(taken, axis=1), tf.int32)
        # In tokens sorted by expert, a token's position is its rank minus that of its expert's first token. Positions
        # count from 0. (App. F's pseudo-code counts from 1 and loses a slot.) A cumulative sum over [G, S, E] gives the
        # same and, with 128 experts on a CPU, takes ten times as long.
        sorted_by = tf.where(is_wanted, expert, self.num_experts)
        if self._order is not None:
            sorted_by = tf.gather(sorted_by, self._order, batch_dims=1)
        rank = tf.argsort(tf.argsort(sorted_by, axis=-1, stable=True), axis=-1)
        if self._place is not None:
            rank = tf.gather(rank, self._place, batch_dims=1)
        first = tf.cumsum(count, axis=-1, exclusive=True)
        position = rank + tf.gather(self._used - first, expert, batch_dims=1)
        kept = wanted * tf.cast(position < self.capacity, tf.float32)
        self._used = tf.minimum(self._used + count, self.capacity)
        slot = expert * self.capacity + position
        return tf.where(kept > 0, slot, self.num_experts * self.capacity), kept

    @property
    def filled(self) -> tf.Tensor:
        """int32 [G, E], how many slots of each expert hold a token so far."""
        return self._used
