"""Who goes where: from router logits to an expert, a slot and a gate for every token.

Letters: G groups, S tokens in a group, M d_model, E experts, C slots that an expert has in a group (its capacity),
K experts that a token may use (1 in a Switch Transformer).
"""

from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers import layer, randomness
from switch_tf.partitioning import axes


class RoutingMetrics(NamedTuple):
    """What one sparse layer did with a batch's real tokens; float32.

    fraction_dropped: [], share of the tokens that found no slot and went on by the residual alone.
    expert_load: [E], share of the tokens whose first choice was the expert, counted before capacity; sums to 1.
    router_entropy: [], mean entropy of the router's distribution, in nats; ln E when it is undecided.
    router_confidence: [], mean probability of the chosen expert.
    """

    fraction_dropped: tf.Tensor
    expert_load: tf.Tensor
    router_entropy: tf.Tensor
    router_confidence: tf.Tensor


class Routing(NamedTuple):
    """Where every token of every group goes.

    expert: int32 [G, S, K], the chosen experts.
    slot: int32 [G, S, K], expert * C + position in the expert, or E * C where the token has none.
    gate: float32 [G, S, K], what the expert's output is multiplied with; 0 where there is no slot.
    filled: int32 [G, E], how many of an expert's slots hold a token; they are its first ones.
    capacity: C, a Python int.
    balance_loss: float32 [], 1 at perfect balance, E when one expert gets everything.
    metrics: what happened, for people.
    """

    expert: tf.Tensor
    slot: tf.Tensor
    gate: tf.Tensor
    filled: tf.Tensor
    capacity: int
    balance_loss: tf.Tensor
    metrics: RoutingMetrics


def expert_capacity(group_size: int, num_experts: int, capacity_factor: float, min_expert_capacity: int) -> int:
    """How many tokens of a group an expert takes (Eq. 3), rounded down as Mesh TensorFlow does.

    Args:
      group_size: S.
      num_experts: E.
      capacity_factor: 1.0 is just enough for a perfect balance.
      min_expert_capacity: floor, for small groups.

    Returns:
      C, never more than S: an expert cannot take more tokens than there are.

    Raises:
      ValueError: if the factor is not positive.
    """
    if capacity_factor <= 0:
        raise ValueError(f"A capacity factor must be positive, this one is {capacity_factor}.")
    return min(group_size, max(int(group_size * capacity_factor / num_experts), min_expert_capacity))


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
    """Mean over those groups that hold a real token: float32 [G] and mask [G, S] -> []."""
    alive = tf.cast(tf.reduce_sum(mask, axis=1) > 0, tf.float32)
    return tf.reduce_sum(values * alive) / tf.maximum(tf.reduce_sum(alive), 1.0)


def load_balance_loss(probabilities: tf.Tensor, first_choice: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """E * sum_i f_i P_i (Eq. 4 without alpha), for each group, then averaged over groups.

    f_i (Eq. 5) counts first choices before any is dropped and carries no gradient; P_i (Eq. 6) carries it. Both are
    means over the group's real tokens. (Mesh TensorFlow and T5X leave padding in one or both.)

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


class Router(layer.Layer):
    """Router weights and probabilities; a subclass turns the probabilities into a `Routing`.

    The router works in its own dtype (float32: "selective precision", Sec. 2.4) whatever the model's is: its input
    is cast up before the jitter and the product, and what leaves it is indices and gates.
    """

    def __init__(
        self,
        *,
        d_model: int,
        num_experts: int,
        jitter: float = 1e-2,
        initializer_scale: float = 0.1,
        dtype="float32",
        name: str | None = None,
    ):
        """Makes the router.

        Args:
          d_model: M.
          num_experts: E.
          jitter: epsilon of the multiplicative noise U(1 - epsilon, 1 + epsilon) on the router's input, in training
            alone (App. C); the experts get the clean tokens.
          initializer_scale: s of sigma = sqrt(s / M).
          dtype: the router's dtype policy.
          name: Keras name.
        """
        super().__init__(dtype=dtype, name=name)
        self.d_model = d_model
        self.num_experts = num_experts
        self.jitter = jitter
        self.initializer_scale = initializer_scale

    def build(self, input_shape=None):
        initializer = layer.variance_scaling(self.initializer_scale, self.d_model)
        # Not split over devices: every device routes its own tokens among all experts.
        self.kernel = self.weight("kernel", (self.d_model, self.num_experts), (axes.EMBED, None), initializer)
        self.built = True

    def probabilities(self, tokens: tf.Tensor, training: bool, seed: int | tf.Tensor) -> tf.Tensor:
        """softmax(x W_r) over the experts (Eq. 1): [G, S, M] -> float32 [G, S, E]."""
        inputs = self.cast(tokens)
        if training and self.jitter > 0:
            noise = randomness.uniform(tuple(inputs.shape), self.noise_seed(seed))
            inputs *= self.cast(1.0 + self.jitter * (2.0 * noise - 1.0))
        logits = tf.einsum("gsm,me->gse", inputs, self.cast(self.kernel))
        return tf.cast(tf.nn.softmax(logits), tf.float32)

    def call(
        self,
        tokens: tf.Tensor,
        mask: tf.Tensor,
        capacity: int,
        training: bool = False,
        seed: int | tf.Tensor = 0,
    ) -> Routing:
        """Routes every token of every group.

        Args:
          tokens: [G, S, M], any float dtype.
          mask: float32 [G, S], 1 for a real token; padding takes no slot and counts in no loss.
          capacity: C.
          training: whether the jitter is on.
          seed: seed of the jitter.

        Returns:
          The routing.
        """
        return self.assign(self.probabilities(tokens, training, seed), mask, capacity)

    def assign(self, probabilities: tf.Tensor, mask: tf.Tensor, capacity: int) -> Routing:
        """Turns probabilities [G, S, E] into a `Routing`; what tells one router from another."""
        raise NotImplementedError


class SwitchRouter(Router):
    """Each token to its most probable expert; earlier tokens take the slots (Sec. 2.1, 2.2, App. F)."""

    def assign(self, probabilities: tf.Tensor, mask: tf.Tensor, capacity: int) -> Routing:
        """Takes the first choice of every token, in the order of the group.

        The gate is the chosen expert's probability as it stands: dividing by it would cut the router off from the
        language model's loss.
        """
        num_experts = self.num_experts
        expert = tf.argmax(probabilities, axis=-1, output_type=tf.int32)
        choice = tf.one_hot(expert, num_experts, dtype=tf.float32)
        probability = tf.reduce_sum(probabilities * choice, axis=-1)

        taken = choice * tf.expand_dims(mask, -1)
        # Exclusive: the first token of an expert sits at 0. (App. F's pseudo-code counts from 1 and so loses a slot.)
        position = tf.reduce_sum(tf.cumsum(taken, axis=1, exclusive=True) * taken, axis=-1)
        kept = mask * tf.cast(position < capacity, tf.float32)
        slot = tf.where(kept > 0, expert * capacity + tf.cast(position, tf.int32), num_experts * capacity)
        filled = tf.minimum(tf.cast(tf.reduce_sum(taken, axis=1), tf.int32), capacity)

        entropy = -tf.reduce_sum(tf.math.xlogy(probabilities, probabilities), axis=-1)
        num_tokens = tf.maximum(tf.reduce_sum(mask), 1.0)
        metrics = RoutingMetrics(
            fraction_dropped=1.0 - tf.reduce_sum(kept) / num_tokens,
            expert_load=tf.reduce_sum(taken, axis=[0, 1]) / num_tokens,
            router_entropy=tf.reduce_sum(entropy * mask) / num_tokens,
            router_confidence=tf.reduce_sum(probability * mask) / num_tokens,
        )
        return Routing(
            expert=tf.expand_dims(expert, -1),
            slot=tf.expand_dims(slot, -1),
            gate=tf.expand_dims(probability * kept, -1),
            filled=filled,
            capacity=capacity,
            balance_loss=load_balance_loss(probabilities, choice, mask),
            metrics=RoutingMetrics(*(tf.stop_gradient(metric) for metric in metrics)),
        )
