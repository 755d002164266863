"""Routers in which tokens choose experts.

Where the paper, Mesh TensorFlow, T5X and Hugging Face differ, we follow the paper's text and say so. Letters as in
`routing.py`.
"""

from typing import Any

import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers import randomness
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.router_base import Router, Scores, one_of, register_router
from switch_tf.layers.routing import (
    ExpertSlots,
    Routing,
    highest_first,
    load_balance_loss,
    router_z_loss,
    routing_metrics,
)
from switch_tf.partitioning import axes

PRIORITIES = ("position", "gate")
LATER_CHOICE_POLICIES = ("all", "none", "threshold", "random")


class TokenChoiceRouter(Router):
    """Tokens choose experts; a full expert drops the tokens of lowest priority.

    By "position" the earlier tokens of a group get the slots (Sec. 2.2). By "gate" the tokens whose first choice is
    most probable get them: Mesh TensorFlow's `switch_max`, the batch-prioritized routing of Riquelme et al. 2021. A
    later token can then take a slot from an earlier one, which a decoder must not allow.
    """

    def __init__(self, *, priority: str = "position", **settings: Any):
        """Makes the router.

        Args:
          priority: "position" or "gate".
          **settings: of `Router`.

        Raises:
          SettingError: if the priority is unknown.
        """
        super().__init__(**settings)
        self.priority = one_of("priority", priority, PRIORITIES)
        self.is_causal = priority == "position"

    def _choices(self, scores: Scores, count: int) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the `count` best experts of every token, int32 [G, S] each, and their probabilities.

        One argmax per choice: `tf.math.top_k` and its gradient compile to programs of hundreds of megabytes on large
        meshes.
        """
        preference, experts, probabilities = scores.preference, [], []
        for _ in range(count):
            expert = tf.argmax(preference, axis=-1, output_type=tf.int32)
            chosen = tf.one_hot(expert, self.num_experts, dtype=tf.float32)
            experts.append(expert)
            probabilities.append(tf.reduce_sum(scores.probabilities * chosen, axis=-1))
            preference = tf.where(chosen > 0, -tf.float32.max, preference)
        return experts, probabilities

    def _slots(self, mask: tf.Tensor, capacity: int, first_probability: tf.Tensor) -> ExpertSlots:
        by_gate = self.priority == "gate"
        order = highest_first(first_probability * mask) if by_gate else None
        return ExpertSlots(mask.shape[0], self.num_experts, capacity, order)

    def _routing(
        self,
        scores: Scores,
        mask: tf.Tensor,
        first: tf.Tensor,
        rounds: list[tuple[tf.Tensor, ...]],
        slots: ExpertSlots,
        later_choices: tf.Tensor | float = 0.0,
    ) -> Routing:
        """Stacks the rounds, (expert, slot, gate, kept) [G, S] each, and adds the losses of the choices `first`.

        `later_choices`, float32 [G, S, E], counts in the expert load but in no loss.
        """
        expert, slot, gate, kept = (tf.stack(tensors, axis=-1) for tensors in zip(*rounds))
        first_choice = tf.one_hot(first, self.num_experts, dtype=tf.float32)
        choices = first_choice * tf.expand_dims(mask, -1) + later_choices
        has_slot = tf.reduce_max(kept, axis=-1)
        return Routing(
            expert=expert,
            slot=slot,
            gate=gate * kept,
            filled=slots.filled,
            capacity=slots.capacity,
            logits=scores.logits,
            balance_loss=load_balance_loss(scores.probabilities, first_choice, mask),
            z_loss=router_z_loss(scores.logits, mask),
            metrics=routing_metrics(scores.logits, scores.probabilities, first_choice, choices, has_slot, mask),
        )


@register_router("switch")
class SwitchRouter(TokenChoiceRouter):
    """Sends each token to its first choice (Sec. 2.1, 2.2, App. F).

    The gate is the chosen expert's probability. Normalized to 1, it would pass no gradient of the language model's loss
    to the router.
    """

    def assign(self, scores: Scores, mask: tf.Tensor, capacity: int, context: ForwardContext = INFERENCE) -> Routing:
        del context
        (expert,), (probability,) = self._choices(scores, 1)
        slots = self._slots(mask, capacity, probability)
        slot, kept = slots.take(expert, mask)
        return self._routing(scores, mask, expert, [(expert, slot, probability, kept)], slots)


@register_router("top_n")
class TopNRouter(TokenChoiceRouter):
    """Sends each token to its n best experts (Shazeer et al. 2017; n = 2: GShard, Mesh TensorFlow's `top_2`).

    The gates are the n probabilities divided by their sum, before capacity is applied. First choices of all tokens get
    their slots before second choices. The balance loss counts first choices. The capacity is not multiplied by n:
    double the capacity factor for n = 2.
    """

    def __init__(
        self,
        *,
        num_choices: int = 2,
        later_choice_policy: str = "random",
        eval_later_choice_policy: str = "threshold",
        later_choice_threshold: float = 0.2,
        **settings: Any,
    ):
        """Makes the router.

        Args:
          num_choices: n.
          later_choice_policy: which choices after the first are used in training: "all", "none", "threshold" (those
            whose gate is above the threshold) or "random" (with probability gate / threshold), as in Mesh TensorFlow.
          eval_later_choice_policy: the same outside of training. (Mesh TensorFlow's default is "random" here too; a
            result then depends on the token's position in its group.)
          later_choice_threshold: the threshold of both policies.
          **settings: of `TokenChoiceRouter`.

        Raises:
          SettingError: if there are fewer experts than choices, fewer than two choices, or a policy is unknown.
        """
        super().__init__(**settings)
        if num_choices < 2:
            raise SettingError(
                f"num_choices = {num_choices} of router = 'top_n' must be at least 2: for one choice use 'switch'."
            )
        if num_choices > self.num_experts:
            raise SettingError(
                f"router = 'top_n' sends a token to {num_choices} experts and NUM_EXPERTS = {self.num_experts}: raise "
                "NUM_EXPERTS, or use router = 'switch'."
            )
        if later_choice_threshold <= 0:
            raise SettingError(f"later_choice_threshold = {later_choice_threshold} must be positive.")
        self.num_choices = num_choices
        self.later_choice_policy = one_of("later_choice_policy", later_choice_policy, LATER_CHOICE_POLICIES)
        self.eval_later_choice_policy = one_of(
            "eval_later_choice_policy", eval_later_choice_policy, LATER_CHOICE_POLICIES
        )
        self.later_choice_threshold = later_choice_threshold

    def experts_per_token(self, capacity_factor: float) -> float:
        del capacity_factor
        return self.num_choices

    def _is_used(self, gate: tf.Tensor, training: bool, seed: int | tf.Tensor) -> tf.Tensor:
        """Which tokens use a later choice of gate [G, S]: float32 [G, S]."""
        policy = self.later_choice_policy if training else self.eval_later_choice_policy
        if policy == "threshold":
            return tf.cast(gate > self.later_choice_threshold, tf.float32)
        if policy == "random":
            uniform = randomness.uniform(tuple(gate.shape), seed, (axes.GROUPS, None))
            return tf.cast(uniform < gate / self.later_choice_threshold, tf.float32)
        return tf.ones_like(gate) if policy == "all" else tf.zeros_like(gate)

    def assign(self, scores: Scores, mask: tf.Tensor, capacity: int, context: ForwardContext = INFERENCE) -> Routing:
        experts, probabilities = self._choices(scores, self.num_choices)
        total = tf.add_n(probabilities) + 1e-9
        slots = self._slots(mask, capacity, probabilities[0])
        rounds: list[tuple[tf.Tensor, ...]] = []
        later_choices: tf.Tensor | float = 0.0
        for index, (expert, probability) in enumerate(zip(experts, probabilities)):
            gate, wanted = probability / total, mask
            if index > 0:
                seed_of_choice = randomness.fold_in(self.noise_seed(context.seed), index)
                wanted = mask * tf.stop_gradient(self._is_used(gate, context.training, seed_of_choice))
                choice = tf.one_hot(expert, self.num_experts, dtype=tf.float32)
                later_choices += choice * tf.expand_dims(wanted, -1)
            slot, kept = slots.take(expert, wanted)
            rounds.append((expert, slot, gate, kept))
        return self._routing(scores, mask, experts[0], rounds, slots, later_choices)


@register_router("no_token_left_behind")
class NoTokenLeftBehindRouter(TokenChoiceRouter):
    """A token whose expert is full tries its second choice, then its third, ... (App. B).

    The gate is the probability of the expert that took the token. The balance loss counts first choices, as in Eq. 5.
    (Mesh TensorFlow counts all choices, which weakens the loss and makes it constant for E choices.)
    """

    def __init__(self, *, num_choices: int = 4, **settings: Any):
        """Makes the router.

        Args:
          num_choices: the most experts that a token tries.
          **settings: of `TokenChoiceRouter`.

        Raises:
          SettingError: if the number is not positive.
        """
        super().__init__(**settings)
        if num_choices < 1:
            raise SettingError(f"num_choices = {num_choices} of router = 'no_token_left_behind' must be at least 1.")
        self.num_choices = min(num_choices, self.num_experts)

    def assign(self, scores: Scores, mask: tf.Tensor, capacity: int, context: ForwardContext = INFERENCE) -> Routing:
        del context
        experts, probabilities = self._choices(scores, self.num_choices)
        slots = self._slots(mask, capacity, probabilities[0])
        left = mask
        expert, slot, gate, kept = experts[0], tf.fill(mask.shape, self.num_experts * capacity), 0.0, 0.0
        for choice, probability in zip(experts, probabilities):
            slot_here, kept_here = slots.take(choice, left)
            expert = tf.where(kept_here > 0, choice, expert)
            slot = tf.where(kept_here > 0, slot_here, slot)
            gate += probability * kept_here
            kept += kept_here
            left -= kept_here
        return self._routing(scores, mask, experts[0], [(expert, slot, gate, kept)], slots)
