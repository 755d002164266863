"""The base class of all routers and their registry; the routers are in `token_choice.py` and `expert_choice.py`.

To add a router, subclass `Router` (or one of its subclasses), implement `assign`, and register it:

    @register_router("mine")
    class MyRouter(SwitchRouter):
        def __init__(self, *, sharpness: float = 2.0, **settings):
            super().__init__(**settings)
            ...

It may be in any module that the gin file imports; `ModelConfig.router = "mine"` selects it, and
`ModelConfig.router_settings = {"sharpness": 3.0}` sets its own arguments. Letters as in `routing.py`.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers import initializers, randomness
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes

_INPUT_AXES = (axes.GROUPS, None, axes.EMBED)
# Registered router classes by name.
ROUTERS: dict[str, type["Router"]] = {}
POLICIES = ("argmax", "sample", "input_dropout", "input_jitter")


class Scores(NamedTuple):
    """A router's scores of each expert for each token, all float32 [G, S, E].

    logits: h(x) = x W_r.
    probabilities: softmax of the logits over the experts (Eq. 1).
    preference: the highest is chosen; no gradient. Equals the probabilities, unless the policy is "sample" or the
      experts have a balance bias.
    """

    logits: tf.Tensor
    probabilities: tf.Tensor
    preference: tf.Tensor


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    """Returns `value` if it is one of `known`, or raises a `SettingError` that lists them."""
    if value not in known:
        raise SettingError(f"{name} = '{value}' is unknown; choose one of {sorted(known)}.")
    return value


class Router(Layer):
    """Router weights and scores; a subclass turns the scores into a `Routing`.

    The router computes in its own dtype (float32: "selective precision", Sec. 2.4), whatever the model's is: its input
    is cast before the noise and the matmul, and its results are indices and gates.
    """

    is_causal: bool = True
    """Whether later tokens of a group cannot take a token's first choice from it, as a decoder requires.

    ("top_n" and "no_token_left_behind" serve the first choices of later tokens before the further choices of earlier
    ones, in decoders too, as GShard and Mesh TensorFlow do.)
    """
    tokens_choose_experts: bool = True
    """Whether tokens choose experts, so that with enough slots each gets its choice; else experts choose tokens."""

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
        dtype: Any = "float32",
        name: str | None = None,
    ):
        """Makes the router.

        Args:
          d_model: M.
          num_experts: E.
          policy: exploration in training (App. C): "argmax" (none), "sample" (from the softmax; the gate is the
            probability of the sampled expert), "input_dropout", or "input_jitter" (the paper's choice).
          eval_policy: the same outside of training, where input noise is off: "input_jitter" and "input_dropout" mean
            "argmax" there. "sample" samples.
          jitter: epsilon of "input_jitter": the router's input is multiplied elementwise by U(1 - epsilon, 1 +
            epsilon); the experts get the clean tokens. (App. F's pseudo-code adds the noise to the logits, Hugging
            Face's experts get the noisy tokens.)
          input_dropout_rate: of "input_dropout".
          temperature: T of "sample": argmax of logits + T * Gumbel noise.
          balance_bias: whether each expert has a bias that is added to its probability for the choice only, and that
            the training step moves against the expert's load (auxiliary-loss-free balancing, Wang et al. 2024).
          initializer_scale: s of sigma = sqrt(s / M).
          dtype: the router's dtype policy.
          name: Keras name.

        Raises:
          SettingError: if a policy is unknown or incompatible with the bias.
        """
        super().__init__(dtype=dtype, name=name)
        self.d_model = d_model
        self.num_experts = num_experts
        self.policy = one_of("router_policy", policy, POLICIES)
        self.eval_policy = one_of("router_eval_policy", eval_policy, POLICIES)
        if balance_bias and "sample" in (policy, eval_policy):
            raise SettingError(
                "router_policy = 'sample' ignores the balance bias: set another policy, or balance_bias_rate = 0."
            )
        self.jitter = jitter
        self.input_dropout_rate = input_dropout_rate
        self.temperature = temperature
        self.balance_bias = balance_bias
        self.initializer_scale = initializer_scale

    @classmethod
    def own_settings(cls) -> dict[str, Any]:
        """Returns the keyword arguments that a router adds to those of `Router`: their annotations by name."""
        own: dict[str, Any] = {}
        for base in cls.__mro__[: cls.__mro__.index(Router)]:
            constructor = vars(base).get("__init__")
            parameters = inspect.signature(constructor).parameters.values() if constructor else ()
            own |= {p.name: p.annotation for p in parameters if p.kind is p.KEYWORD_ONLY}
        return {name: own[name] for name in sorted(own.keys() - inspect.signature(Router.__init__).parameters.keys())}

    def experts_per_token(self, capacity_factor: float) -> float:
        """Returns how many experts a token uses on average (at most, if that depends on the data), for FLOP counts."""
        del capacity_factor
        return 1

    def build(self, input_shape: Any = None) -> None:
        initializer = initializers.variance_scaling(self.initializer_scale, self.d_model)
        shape, names = (self.d_model, self.num_experts), (axes.EMBED, axes.ROUTER_EXPERTS)
        self.kernel = self.weight("kernel", shape, names, initializer)
        self.bias = None
        if self.balance_bias:
            self.bias = self.weight("balance_bias", (self.num_experts,), (None,), initializers.zeros)
        self.built = True

    def _noisy(self, inputs: tf.Tensor, policy: str, seed: int | tf.Tensor) -> tf.Tensor:
        """Adds the policy's noise to the router's input [G, S, M]."""
        if policy == "input_jitter" and self.jitter > 0:
            return inputs * self.cast(randomness.jitter(tuple(inputs.shape), self.jitter, seed, _INPUT_AXES))
        if policy == "input_dropout" and self.input_dropout_rate > 0:
            kept = randomness.uniform(tuple(inputs.shape), seed, _INPUT_AXES) >= self.input_dropout_rate
            return tf.where(kept, inputs / (1.0 - self.input_dropout_rate), 0.0)
        return inputs

    def scores(self, tokens: tf.Tensor, context: ForwardContext = INFERENCE) -> Scores:
        """Scores the experts for every token of [G, S, M]."""
        policy = self.policy if context.training else self.eval_policy
        seed = self.noise_seed(context.seed)
        inputs = self.cast(tokens)
        if context.training:
            inputs = self._noisy(inputs, policy, seed)
        kernel = self.cast(self.kernel)
        if axes.num_shards(axes.ROUTER_EXPERTS) > 1:
            # Every device routes its own tokens among all experts.
            kernel = axes.constrain(kernel, (axes.EMBED, None))
        logits = tf.einsum("gsm,me->gse", inputs, kernel)
        probabilities = tf.cast(tf.nn.softmax(logits), tf.float32)
        logits = tf.cast(logits, tf.float32)
        preference = probabilities
        if policy == "sample":
            uniform = randomness.uniform(tuple(logits.shape), seed, (axes.GROUPS, None, None))
            preference = logits - self.temperature * tf.math.log(-tf.math.log(uniform))
        if self.bias is not None:
            preference = probabilities + tf.cast(self.bias, tf.float32)
        return Scores(logits, probabilities, tf.stop_gradient(preference))

    def call(self, tokens: tf.Tensor, mask: tf.Tensor, capacity: int, context: ForwardContext = INFERENCE) -> Routing:
        """Routes every token of every group.

        Args:
          tokens: [G, S, M], any float dtype.
          mask: float32 [G, S], 1 for a real token: `context.token_mask` in groups. Padding takes no slot and counts in
            no loss.
          capacity: C.
          context: of the forward pass.

        Returns:
          The routing.
        """
        return self.assign(self.scores(tokens, context), mask, capacity, context)

    def assign(self, scores: Scores, mask: tf.Tensor, capacity: int, context: ForwardContext = INFERENCE) -> Routing:
        """Turns scores into a `Routing`. Each router implements this; arguments as in `call`."""
        raise NotImplementedError


_RouterClass = TypeVar("_RouterClass", bound=type[Router])


def register_router(name: str) -> Callable[[_RouterClass], _RouterClass]:
    """Registers the decorated class as the router that `ModelConfig.router = name` selects.

    Raises:
      ValueError: if another class has the name. (A module that is reloaded registers its own classes again.)
    """

    def register(router: _RouterClass) -> _RouterClass:
        known = ROUTERS.get(name, router)
        if (known.__module__, known.__qualname__) != (router.__module__, router.__qualname__):
            raise ValueError(f"The router '{name}' is {known.__qualname__} of {known.__module__}: choose another name.")
        ROUTERS[name] = router
        return router

    return register
