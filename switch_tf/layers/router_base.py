"""What all routers share: weights, exploration (App. C) and scores. What tells them apart is in `token_choice.py` and `expert_choice.py`.

Letters as in `routing.py`.
"""

from typing import NamedTuple

import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers import initializers, randomness
from switch_tf.layers.base import Layer
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes

_INPUT_AXES = (axes.GROUPS, None, axes.EMBED)
POLICIES = ("argmax", "sample", "input_dropout", "input_jitter")


class Scores(NamedTuple):
    """What a router thinks of each expert for each token, all float32 [G, S, E].

    logits: h(x) = x W_r.
    probabilities: softmax of the logits over the experts (Eq. 1).
    preference: the highest is chosen; it carries no gradient. The probabilities, unless the policy is to sample or
      a bias balances the experts.
    """

    logits: tf.Tensor
    probabilities: tf.Tensor
    preference: tf.Tensor


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """Returns `value` if it is known; otherwise raises a `SettingError` that lists what is."""
    if value not in known:
        raise SettingError(f"{name} = '{value}' is unknown; choose one of {sorted(known)}.")
    return value


class Router(Layer):
    """Router weights and scores; a subclass turns the scores into a `Routing`.

    The router works in its own dtype (float32: "selective precision", Sec. 2.4) whatever the model's is: its input
    is cast up before the noise and the product, and what leaves it is indices and gates.
    """

    is_causal = True
    """Whether later tokens of a group cannot take a token's first choice from it; a decoder needs that.

    ("top_n" and "no_token_left_behind" serve later tokens' first choices before earlier tokens' further ones, in
    decoders too, as GShard and Mesh TensorFlow do.)
    """
    tokens_choose_experts = True
    """Whether tokens choose experts, so that with slots enough each gets its choice; else experts choose tokens."""

    def __init__(
        self,
        *,
        d_model: int,
        num_experts: int,
        policy: str = "input_jitter",
        eval_policy: str = "argmax",
        jitter: float = 1e-2,
        input_dropout_rate: float = 0.1,
        temperature: float = 1.0,
        balance_bias: bool = False,
        initializer_scale: float = 0.1,
        dtype="float32",
        name: str | None = None,
    ):
        """Makes the router.

        Args:
          d_model: M.
          num_experts: E.
          policy: how to explore in training (App. C): "argmax" (not at all), "sample" (from the softmax; the gate is
            the probability of what was sampled), "input_dropout", or "input_jitter" (the paper's choice).
          eval_policy: the same outside of training; the noise on the input is for training alone, so that there
            "input_jitter" and "input_dropout" are "argmax". "sample" samples.
          jitter: epsilon of "input_jitter": the router's input times U(1 - epsilon, 1 + epsilon), element by element;
            the experts get the clean tokens. (App. F's pseudo-code adds the noise to the logits; Hugging Face's
            experts get the noisy tokens.)
          input_dropout_rate: of "input_dropout".
          temperature: T of "sample": argmax of logits + T * Gumbel noise.
          balance_bias: whether each expert has a bias, added to its probability for the choice alone, that the
            training step moves against the expert's load (auxiliary-loss-free balancing, Wang et al. 2024).
          initializer_scale: s of sigma = sqrt(s / M).
          dtype: the router's dtype policy.
          name: Keras name.

        Raises:
          SettingError: if a policy is unknown or does not go with the bias.
        """
        super().__init__(dtype=dtype, name=name)
        self.d_model = d_model
        self.num_experts = num_experts
        self.policy = one_of("router_policy", policy, POLICIES)
        self.eval_policy = one_of("router_eval_policy", eval_policy, POLICIES)
        if balance_bias and "sample" in (policy, eval_policy):
            raise SettingError("router_policy = 'sample' leaves nothing for balance_bias to choose: use one of them.")
        self.jitter = jitter
        self.input_dropout_rate = input_dropout_rate
        self.temperature = temperature
        self.balance_bias = balance_bias
        self.initializer_scale = initializer_scale

    def build(self, input_shape=None):
        initializer = initializers.variance_scaling(self.initializer_scale, self.d_model)
        # Not split over devices: every device routes its own tokens among all experts.
        self.kernel = self.weight("kernel", (self.d_model, self.num_experts), (axes.EMBED, None), initializer)
        self.bias = None
        if self.balance_bias:
            self.bias = self.weight("balance_bias", (self.num_experts,), (None,), initializers.zeros)
        self.built = True

    def _noisy(self, inputs: tf.Tensor, policy: str, seed: tf.Tensor) -> tf.Tensor:
        """Puts the policy's noise on the router's input [G, S, M]."""
        if policy == "input_jitter" and self.jitter > 0:
            noise = randomness.uniform(tuple(inputs.shape), seed, _INPUT_AXES)
            return inputs * self.cast(1.0 + self.jitter * (2.0 * noise - 1.0))
        if policy == "input_dropout" and self.input_dropout_rate > 0:
            kept = randomness.uniform(tuple(inputs.shape), seed, _INPUT_AXES) >= self.input_dropout_rate
            return tf.where(kept, inputs / (1.0 - self.input_dropout_rate), 0.0)
        return inputs

    def scores(self, tokens: tf.Tensor, training: bool, seed: int | tf.Tensor) -> Scores:
        """Scores the experts for every token of [G, S, M]."""
        policy = self.policy if training else self.eval_policy
        seed = self.noise_seed(seed)
        inputs = self.cast(tokens)
        if training:
            inputs = self._noisy(inputs, policy, seed)
        logits = tf.einsum("gsm,me->gse", inputs, self.cast(self.kernel))
        probabilities = tf.cast(tf.nn.softmax(logits), tf.float32)
        logits = tf.cast(logits, tf.float32)
        preference = probabilities
        if policy == "sample":
            uniform = randomness.uniform(tuple(logits.shape), seed, (axes.GROUPS, None, None))
            preference = logits - self.temperature * tf.math.log(-tf.math.log(uniform))
        if self.bias is not None:
            preference = probabilities + tf.cast(self.bias, tf.float32)
        return Scores(logits, probabilities, tf.stop_gradient(preference))

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
          training: whether the training policy and its noise are on.
          seed: seed of the noise.

        Returns:
          The routing.
        """
        return self.assign(self.scores(tokens, training, seed), mask, capacity, training, seed)

    def assign(
        self, scores: Scores, mask: tf.Tensor, capacity: int, training: bool = False, seed: int | tf.Tensor = 0
    ) -> Routing:
        """Turns scores into a `Routing`; what tells one router from another."""
        raise NotImplementedError
