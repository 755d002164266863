"""Routers in which experts choose tokens. Letters as in `routing.py`."""

import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers.router_base import Router, Scores
from switch_tf.layers.routing import Routing, mean_over_groups, router_z_loss, routing_metrics


class ExpertChoiceRouter(Router):
    """Experts choose tokens: each takes the C tokens of a group that suit it best (Zhou et al. 2022).

    Every expert is full, and a token may have any number of experts, or none; each counts with its probability. What
    a token gets depends on all tokens of its group: no decoder may use it. There is nothing to balance, and the
    balance loss is 1, which is balance.
    """

    is_causal = False
    tokens_choose_experts = False

    def __init__(self, **settings):
        """Makes the router.

        Args:
          **settings: of `Router`.

        Raises:
          SettingError: if tokens are to be sampled or balanced, which experts that choose do not need.
        """
        super().__init__(**settings)
        if self.balance_bias or "sample" in (self.policy, self.eval_policy):
            raise SettingError(
                "router = 'expert_choice' and 'expert_selection' take neither router_policy = 'sample' nor "
                "balance_bias: use 'input_jitter' and no bias."
            )

    def affinity(self, scores: Scores, mask: tf.Tensor) -> tf.Tensor:
        """How well each token suits each expert, float32 [G, S, E]: the softmax over the experts."""
        del mask
        return scores.probabilities

    def gate(self, affinity: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
        """Weight of each expert's output, float32 [G, S, E]; `chosen`, of that shape, is 1 where an expert took it."""
        return affinity * chosen

    def balance_loss(self, affinity: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """What pushes the affinities to a balance, float32 []."""
        del affinity
        return mean_over_groups(tf.ones(mask.shape[:1]), mask)

    def assign(
        self, scores: Scores, mask: tf.Tensor, capacity: int, training: bool = False, seed: int | tf.Tensor = 0
    ) -> Routing:
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
            metrics=routing_metrics(scores.probabilities, first_choice, first_choice * is_real, has_slot, mask),
        )


class ExpertSelectionRouter(ExpertChoiceRouter):
    """Expert choice as Mesh TensorFlow's `expert_selection` has it: the softmax goes over the tokens of the group.

    A token's weights are divided by the number of experts that took it, and the balance loss pushes the experts'
    mean affinity to be the same for all tokens.
    """

    def affinity(self, scores: Scores, mask: tf.Tensor) -> tf.Tensor:
        """The softmax over the real tokens of a group, float32 [G, S, E]; 0 for padding."""
        is_real = tf.expand_dims(mask, -1)
        return tf.nn.softmax(tf.where(is_real > 0, scores.logits, -1e9), axis=1) * is_real

    def gate(self, affinity: tf.Tensor, chosen: tf.Tensor) -> tf.Tensor:
        """The affinity over the number of experts that took the token, float32 [G, S, E]."""
        return affinity * chosen / tf.maximum(tf.reduce_sum(chosen, axis=-1, keepdims=True), 1.0)

    def balance_loss(self, affinity: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
        """N sum_s (mean_e a_se)^2 for N real tokens: 1 where every token has the same share of the experts."""
        share = tf.reduce_mean(affinity, axis=-1)
        loss = tf.reduce_sum(mask, axis=1) * tf.reduce_sum(tf.square(share), axis=1)
        return mean_over_groups(loss, mask)
