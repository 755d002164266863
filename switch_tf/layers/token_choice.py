"""The routers in which tokens choose experts, and the list of all routers.

Where the paper, Mesh TensorFlow, T5X and Hugging Face differ, the paper's text counts, and the docstring says so.
Letters as in `routing.py`.
"""

import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers import randomness
from switch_tf.layers.expert_choice import ExpertChoiceRouter, ExpertSelectionRouter
from switch_tf.layers.router_base import Router, Scores, one_of
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
    """Tokens choose experts; an expert that is full turns the tokens away that come late or, by gate, those least sure.

    By "position" the earlier token of a group has the slot (Sec. 2.2). By "gate" the token whose first choice is more
    probable has it: Mesh TensorFlow's `switch_max`, the batch-prioritised routing of Riquelme et al. 2021. A later
    token can then push out an earlier one, which no decoder may allow.
    """

    def __init__(self, *, priority: str = "position", **settings):
        """Makes the router.

        Args:
          priority: "position" or "gate".
          **settings: of `Router`.

        Raises:
          SettingError: if the priority is unknown.
        """
        super().__init__(**settings)
        self.priority = one_of("router_priority", priority, PRIORITIES)
        self.is_causal = priority == "position"

    def _choices(self, scores: Scores, count: int) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
        """Returns the `count` best experts of every token, int32 [G, S] each, and their probabilities.

        By argmax after argmax: `tf.math.top_k` and its gradient make programs of hundreds of megabytes on large meshes.
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
        """Puts the rounds, (expert, slot, gate, kept) [G, S] each, side by side, and adds the losses of `first`.

        `later_choices`, float32 [G, S, E], counts as load but in no loss.
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
            metrics=routing_metrics(scores.probabilities, first_choice, choices, has_slot, mask),
        )


class SwitchRouter(TokenChoiceRouter):
    """Each token to its first choice (Sec. 2.1, 2.2, App. F).

    The gate is the chosen expert's probability as it stands: dividing by it would cut the router off from the
    language model's loss.
    """

    def assign(
        self, scores: Scores, mask: tf.Tensor, capacity: int, training: bool = False, seed: int | tf.Tensor = 0
    ) -> Routing:
        (expert,), (probability,) = self._choices(scores, 1)
        slots = self._slots(mask, capacity, probability)
        slot, kept = slots.take(expert, mask)
        return self._routing(scores, mask, expert, [(expert, slot, probability, kept)], slots)


class TopNRouter(TokenChoiceRouter):
    """Each token to its n best experts (Shazeer et al. 2017; n = 2: GShard, Mesh TensorFlow's `top_2`).

    The gates are the n probabilities divided by their sum, before capacity. All first choices take their slots, then
    all second ones. The balance loss counts first choices. The capacity is not multiplied by n: double the capacity
    factor for n = 2.
    """

    def __init__(
        self,
        *,
        num_choices: int = 2,
        later_choice_policy: str = "random",
        eval_later_choice_policy: str = "threshold",
        later_choice_threshold: float = 0.2,
        **settings,
    ):
        """Makes the router.

        Args:
          num_choices: n.
          later_choice_policy: which choices after the first are tried, in training: "all", "none", "threshold" (those
            whose gate is above the threshold) or "random" (with probability gate / threshold), as in Mesh TensorFlow.
          eval_later_choice_policy: the same outside of training, where Mesh TensorFlow has "random" too: a result then
            depends on the token's place in its group.
          later_choice_threshold: the threshold of both.
          **settings: of `TokenChoiceRouter`.

        Raises:
          SettingError: if there are fewer experts than choices, fewer than two choices, or a policy is unknown.
        """
        super().__init__(**settings)
        if num_choices < 2:
            raise SettingError(
                f"router_choices = {num_choices} must be at least 2 for 'top_n': one choice is 'switch'."
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

    def _is_tried(self, gate: tf.Tensor, training: bool, seed: tf.Tensor) -> tf.Tensor:
        """Which tokens try a later choice of gate [G, S]: float32 [G, S]."""
        policy = self.later_choice_policy if training else self.eval_later_choice_policy
        if policy == "threshold":
            return tf.cast(gate > self.later_choice_threshold, tf.float32)
        if policy == "random":
            uniform = randomness.uniform(tuple(gate.shape), seed, (axes.GROUPS, None))
            return tf.cast(uniform < gate / self.later_choice_threshold, tf.float32)
        return tf.ones_like(gate) if policy == "all" else tf.zeros_like(gate)

    def assign(
        self, scores: Scores, mask: tf.Tensor, capacity: int, training: bool = False, seed: int | tf.Tensor = 0
    ) -> Routing:
        experts, probabilities = self._choices(scores, self.num_choices)
        total = tf.add_n(probabilities) + 1e-9
        slots = self._slots(mask, capacity, probabilities[0])
        rounds, later_choices = [], 0.0
        for index, (expert, probability) in enumerate(zip(experts, probabilities)):
            gate, wanted = probability / total, mask
            if index > 0:
                seed_of_choice = randomness.fold_in(self.noise_seed(seed), index)
                wanted = mask * tf.stop_gradient(self._is_tried(gate, training, seed_of_choice))
                choice = tf.one_hot(expert, self.num_experts, dtype=tf.float32)
                later_choices += choice * tf.expand_dims(wanted, -1)
            slot, kept = slots.take(expert, wanted)
            rounds.append((expert, slot, gate, kept))
        return self._routing(scores, mask, experts[0], rounds, slots, later_choices)


class NoTokenLeftBehindRouter(TokenChoiceRouter):
    """A token whose expert is full tries its second choice, then its third, ... (App. B).

    The gate is the probability of the expert that took the token. The balance loss counts first choices, as in
    Eq. 5. (Mesh TensorFlow counts all choices, which makes the loss weaker, and constant where there are as many
    choices as experts.)
    """

    def __init__(self, *, num_choices: int = 4, **settings):
        """Makes the router.

        Args:
          num_choices: how many experts a token tries, at most.
          **settings: of `TokenChoiceRouter`.

        Raises:
          SettingError: if the number is not positive.
        """
        super().__init__(**settings)
        if num_choices < 1:
            raise SettingError(f"router_choices = {num_choices} must be at least 1.")
        self.num_choices = min(num_choices, self.num_experts)

    def assign(
        self, scores: Scores, mask: tf.Tensor, capacity: int, training: bool = False, seed: int | tf.Tensor = 0
    ) -> Routing:
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


ROUTERS: dict[str, type[Router]] = {
    "switch": SwitchRouter,
    "top_n": TopNRouter,
    "no_token_left_behind": NoTokenLeftBehindRouter,
    "expert_choice": ExpertChoiceRouter,
    "expert_selection": ExpertSelectionRouter,
}
ROUTERS_OF_CHOICES = ("top_n", "no_token_left_behind")
NON_CAUSAL_ROUTERS = tuple(name for name, router in ROUTERS.items() if not router.is_causal)
