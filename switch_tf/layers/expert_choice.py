"""Routers in which experts choose tokens. Letters as in `routing.py`."""

from typing import Any

import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.router_base import Router, Scores, register_router
from switch_tf.layers.routing import Routing, mean_over_groups, router_z_loss, routing_metrics


@register_router("expert_choice")
class ExpertChoiceRouter(Router):
    """Experts choose tokens: each takes the C tokens of a group with the highest affinity (Zhou et al. 2022).

    Every expert is full. A token may have any number of experts, or none; the gates are their probabilities. A token's
    experts depend on all tokens of its group, so that no decoder may use it. The load is balanced by construction, and
    the balance loss is the constant 1.
    """

    is_causal = False
    tokens_choose_experts = False

    def __init__(self, **settings: Any):
        """Makes the router.

        Args:
          **settings: of `Router`.

        Raises:
          SettingError: with a policy of "sample" or a balance bias, which apply to tokens that choose.
        """
        super().__init__(**settings)
        if self.balance_bias or "sample" in (self.policy, self.eval_policy):
            raise SettingError(
                "router = 'expert_choice' and 'expert_selection' take neither router_policy = 'sample' nor "
                "balance_bias: use 'input_jitter' and no bias."
            )

    def experts_per_token(self, capacity_factor: float) -> float:
        return min(capacity_factor, self.num_experts)

    def affinity(self, scores: Scores, mask: tf.Tensor) -> tf.Tensor:
        """The affinity of each token to each expert, float32 [G, S, E]: the softmax over the experts."""
        del mask
        return scores.probabilities

    def gate(self, affinity: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
        """The factor of each expert's output, float32 [G, S, E]; `chosen` has 1 where an expert took the token."""
        return affinity * chosen

    def balance_loss(self, affinity: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """The balance loss, float32 []."""
        del affinity
        return mean_over_groups(tf.ones(mask.shape[:1]), mask)

    def assign(self, scores: Scores, mask: tf.Tensor, capacity: int, context: ForwardContext = INFERENCE) -> Routing:
        del context
        groups, _, num_experts = scores.logits.shape
        affinity = self.affinity(scores, mask)
        is_real = tf.expand_dims(mask, -1)
        # Padding comes last; among equals the earlier token comes first.
        falling = tf.argsort(tf.where(is_real > 0, -tf.stop_gradient(affinity), 1.0), axis=1, stable=True)
        rank = tf.argsort(falling, axis=1)
        chosen = is_real * tf.cast(rank < capacity, tf.float32)
        expert = tf.reshape(tf.range(num_experts), [1, 1, num_experts])
        num_real = tf.cast(tf.reduce_sum(mask, axis=1, keepdims=True), tf.int32)
        has_slot = tf.reduce_max(chosen, axis=-1)
        first_choice = tf.one_hot(tf.argmax(scores.probabilities, axis=-1), num_experts, dtype=tf.float32)
        return Routing(
            expert=tf.broadcast_to(expert, scores.logits.shape),
            slot=tf.where(chosen > 0, expert * capacity + rank, num_experts * capacity),
            gate=self.gate(affinity, chosen),
            filled=tf.broadcast_to(tf.minimum(num_real, capacity), [groups, num_experts]),
            capacity=capacity,
            logits=scores.logits,
            balance_loss=self.balance_loss(affinity, mask),
            z_loss=router_z_loss(scores.logits, mask),
            metrics=routing_metrics(
                scores.logits, scores.probabilities, first_choice, first_choice * is_real, has_slot, mask
            ),
        )


@register_router("expert_selection")
class ExpertSelectionRouter(ExpertChoiceRouter):
    """Expert choice as in Mesh TensorFlow's `expert_selection`: the softmax is over the tokens of the group.

    A token's gates are divided by the number of experts that took it. The balance loss pushes the mean affinity over
    experts to be equal for all tokens.
    """

    def affinity(self, scores: Scores, mask: tf.Tensor) -> tf.Tensor:
        """The softmax over the real tokens of a group, float32 [G, S, E]; 0 for padding."""
        is_real = tf.expand_dims(mask, -1)
        return tf.nn.softmax(tf.where(is_real > 0, scores.logits, -1e9), axis=1) * is_real

    def gate(self, affinity: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
        """The affinity divided by the number of experts that took the token, float32 [G, S, E]."""
        return affinity * chosen / tf.maximum(tf.reduce_sum(chosen, axis=-1, keepdims=True), 1.0)

    def balance_loss(self, affinity: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """N sum_s (mean_e a_se)^2 for N real tokens: 1 where every token has the same share of the experts."""
        share = tf.reduce_mean(affinity, axis=-1)
        loss = tf.reduce_sum(mask, axis=1) * tf.reduce_sum(tf.square(share), axis=1)
        return mean_over_groups(loss, mask)
