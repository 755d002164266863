"""All settings of a model, as one gin-configurable dataclass that checks itself."""

import dataclasses
import inspect
from collections.abc import Collection
from typing import Any

import gin

from switch_tf.errors import SettingError, check_type, check_types
from switch_tf.layers import expert_choice, token_choice  # noqa: F401 (they register their routers)
from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.feed_forward import ACTIVATIONS
from switch_tf.layers.router_base import POLICIES, ROUTERS, Router

DTYPE_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
SWITCH_ATTENTIONS = ("none", "linear", "feed_forward")
REMATERIALIZATIONS = ("none", "sublayers", "blocks")
# Larger than any model; a product of three sizes, as an expert's weight has, still is a 64-bit integer.
_MAX_SIZE, _MAX_LAYERS = 2**26, 1024
SPARSE_LAYOUTS = ("every", "every_from_first", "every_from_second", "bottom", "top", "all")


class RouterSettings(dict):
    """A router's own settings by name: a dict that is hashable, as a frozen dataclass needs it, and never changed."""

    def __hash__(self) -> int:  # type: ignore[override]  # dict has None
        return hash(frozenset(self.items()))


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings of a model; docs/routing.md explains those of routing, with a figure.

    Attributes:
      vocab_size: V, rows of the token table, at least the size of the vocabulary (multiples of 128 tile well on TPUs).
      d_model: M, width of the residual stream.
      d_ff: H, width of a feed-forward layer and of each expert.
      d_kv: K, width of an attention head.
      num_heads: N.
      num_encoder_layers: blocks in the encoder.
      num_decoder_layers: blocks in the decoder.
      activation: "relu" (T5 1.0) or "gated_gelu" (T5 1.1), of dense layers and experts.
      tied_logits: whether the token table is also the logits' weight, as in T5 1.0.
      dropout_rate: on embeddings, attention weights, hidden activations of dense layers and sub-layer outputs.
      initializer_scale: s of sigma = sqrt(s / fan_in); the paper uses 0.1 for Switch Transformers (Sec. 2.4).
      feed_forward_initializer_scale: the same of feed-forward layers and experts alone; None: as everywhere.
      relative_position_buckets: buckets of the relative position bias.
      relative_position_max_distance: all distances from this one on share a bucket.
      layer_norm_epsilon: added to the mean square.
      activation_dtype: "float32" or "bfloat16"; weights stay in float32.
      num_experts: E; 0 makes the model dense.
      sparse_every: n; one block in n has experts. 0: none in the encoder.
      decoder_sparse_every: the same for the decoder; None: as in the encoder.
      sparse_layout: which blocks have experts: "every" (n-1, 2n-1, ...), "bottom" or "top" (as many, all at one end),
        "all", "every_from_first" (0, n, ...: as in Mesh TensorFlow's bi_moe.gin), or "every_from_second" (1, 1+n, ...:
        as in Hugging Face; the same as "every" for n = 2).
      capacity_factor: expert slots per token in training (Eq. 3).
      eval_capacity_factor: outside of training; None: dropless, independent of the rest of the batch.
      min_expert_capacity: the fewest slots of an expert in a group.
      expert_capacity: a fixed number of slots instead of the factors, as in Hugging Face; None: by factors. (Dropless
        evaluation overrides it.)
      group_size: the most tokens that compete for one set of slots; None makes each sequence a group.
      router: the name of a registered router: "switch", "top_n", "no_token_left_behind", "expert_choice",
        "expert_selection", or one of your own (layers/router_base.py).
      router_settings: the router's own settings by name, {"num_choices": 3} for "top_n" say: the keyword arguments that
        its constructor adds to those of `Router`. Their defaults are the constructor's.
      decoder_router: the decoder's router, which must be causal; None: the encoder's, with the encoder's settings.
      decoder_router_settings: the settings of the decoder's router, if they are others.
      router_policy: exploration in training (App. C): "argmax", "sample", "input_dropout" or "input_jitter".
      router_eval_policy: the same outside of training, where input noise is off.
      router_jitter: epsilon of "input_jitter".
      router_input_dropout_rate: of "input_dropout".
      router_temperature: of "sample".
      balance_bias_rate: the size of a step's update of each expert's bias against its load (auxiliary-loss-free
        balancing; 1e-3 in Wang et al. 2024, with Objective.balance_loss = 0); 0: no bias.
      router_dtype: "float32" is the paper's selective precision.
      expert_dropout_rate: on the hidden activations of experts.
      switch_attention: "linear" or "feed_forward": experts of that kind project to the queries, and to shared keys and
        values, of self-attention in the sparse blocks (App. A); "none": dense attention.
      dispatcher: "gather" (fast) or "einsum" (the reference; always used if experts choose tokens).
      rematerialization: which activations the backward pass recomputes instead of storing; results are equal up to
        rounding. "sublayers": those inside attention (except Switch attention, whose all-to-alls would run twice) and
        the hidden activations of feed-forward layers and experts. "blocks": all but the residual stream between blocks,
        which runs the experts' all-to-alls a second time.
    """

    vocab_size: int = gin.REQUIRED
    d_model: int = gin.REQUIRED
    d_ff: int = gin.REQUIRED
    d_kv: int = gin.REQUIRED
    num_heads: int = gin.REQUIRED
    num_encoder_layers: int = gin.REQUIRED
    num_decoder_layers: int = gin.REQUIRED
    activation: str = "relu"
    tied_logits: bool = True
    dropout_rate: float = 0.0
    initializer_scale: float = 1.0
    feed_forward_initializer_scale: float | None = None
    relative_position_buckets: int = 32
    relative_position_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    activation_dtype: str = "float32"
    num_experts: int = 0
    sparse_every: int = 2
    decoder_sparse_every: int | None = None
    sparse_layout: str = "every"
    capacity_factor: float = 1.25
    eval_capacity_factor: float | None = 2.0
    min_expert_capacity: int = 4
    expert_capacity: int | None = None
    group_size: int | None = 4096
    router: str = "switch"
    router_settings: dict = dataclasses.field(default_factory=RouterSettings)
    decoder_router: str | None = None
    decoder_router_settings: dict | None = None
    router_policy: str = "input_jitter"
    router_eval_policy: str = "argmax"
    router_jitter: float = 1e-2
    router_input_dropout_rate: float = 0.1
    router_temperature: float = 1.0
    balance_bias_rate: float = 0.0
    router_dtype: str = "float32"
    expert_dropout_rate: float = 0.0
    switch_attention: str = "none"
    dispatcher: str = "gather"
    rematerialization: str = "none"

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("router_settings", "decoder_router_settings"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, RouterSettings(getattr(self, name)))
        for name in ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("num_encoder_layers", "num_decoder_layers"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1: the model is an encoder-decoder")
            self._require(name, getattr(self, name) <= _MAX_LAYERS, f"must be at most {_MAX_LAYERS:,}")
        for name in ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_experts", "relative_position_buckets"):
            self._require(name, getattr(self, name) <= _MAX_SIZE, f"must be at most {_MAX_SIZE:,}")
        self._check_position_buckets()
        for name in ("group_size", "expert_capacity"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "must be None or at least 1")
        for name in ("dropout_rate", "expert_dropout_rate", "router_jitter", "router_input_dropout_rate"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        for name in ("capacity_factor", "initializer_scale"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        scale = self.feed_forward_initializer_scale
        self._require("feed_forward_initializer_scale", scale is None or scale > 0, "must be positive, or None")
        factor = self.eval_capacity_factor
        self._require("eval_capacity_factor", factor is None or factor > 0, "must be positive, or None to drop nothing")
        self._require("min_expert_capacity", self.min_expert_capacity >= 0, "must be 0 or more")
        self._require("layer_norm_epsilon", self.layer_norm_epsilon >= 0, "must be 0 or more")
        self._require("num_experts", self.num_experts >= 0, "must be 0 (dense) or more")
        self._require("sparse_every", self.sparse_every >= 0, "must be 0 (no sparse layer) or more")
        every = self.decoder_sparse_every
        self._require("decoder_sparse_every", every is None or every >= 0, "must be None, 0 or more")
        choices: dict[str, Collection[str | None]] = {
            "activation_dtype": DTYPE_POLICIES,
            "router_dtype": DTYPE_POLICIES,
            "activation": ACTIVATIONS,
            "dispatcher": DISPATCHERS,
            "sparse_layout": SPARSE_LAYOUTS,
            "rematerialization": REMATERIALIZATIONS,
            "router_policy": POLICIES,
            "router_eval_policy": POLICIES,
            "router": ROUTERS,
            "decoder_router": [*ROUTERS, None],
            "switch_attention": SWITCH_ATTENTIONS,
        }
        for name, known in choices.items():
            options = ", ".join(sorted(repr(option) for option in known))
            self._require(name, getattr(self, name) in known, f"must be one of {options}")
        self._check_routing()

    def _check_position_buckets(self) -> None:
        """Half of a direction's buckets hold one distance each, and the encoder has two directions."""
        buckets = self.relative_position_buckets
        self._require("relative_position_buckets", buckets >= 4, "must be at least 4")
        rule = f"must be more than {buckets // 2}, half of relative_position_buckets"
        self._require("relative_position_max_distance", self.relative_position_max_distance > buckets // 2, rule)

    def _check_routing(self) -> None:
        self._require("balance_bias_rate", self.balance_bias_rate >= 0, "must be 0 (no bias) or more")
        self._require("router_temperature", self.router_temperature > 0, "must be positive")
        if self.switch_attention != "none" and not self.num_experts:
            raise SettingError(
                f"switch_attention = '{self.switch_attention}' needs experts: set NUM_EXPERTS, or "
                "ModelConfig.switch_attention = 'none'."
            )
        if self.switch_attention != "none" and "bfloat16" in (self.activation_dtype, self.router_dtype):
            raise SettingError(
                f"switch_attention = '{self.switch_attention}' diverges in bfloat16 (App. A): set ACTIVATION_DTYPE and "
                "ROUTER_DTYPE to 'float32', or ModelConfig.switch_attention = 'none'."
            )
        for is_decoder, stack in ((False, "encoder"), (True, "decoder")):
            self._check_router_settings(is_decoder)
            if any(name.startswith(stack) for name in self.sparse_layer_names):
                self._check_router(is_decoder)

    def _check_router_settings(self, is_decoder: bool) -> None:
        name, own = self.router_of(is_decoder), ROUTERS[self.router_of(is_decoder)].own_settings()
        is_inherited = not is_decoder or self.decoder_router_settings is None
        field = "router_settings" if is_inherited else "decoder_router_settings"
        for setting, value in self.router_settings_of(is_decoder).items():
            if setting not in own:
                there = ", ".join(own) or "none"
                raise SettingError(
                    f"ModelConfig.{field} has '{setting}', which is no setting of router = '{name}': it has {there}."
                )
            if own[setting] is not inspect.Parameter.empty:
                check_type(f"{setting} in ModelConfig.{field}", value, own[setting])

    def _check_router(self, is_decoder: bool) -> None:
        """Checks the router of a stack that has experts; its constructor checks the values of its settings."""
        router, name = self.make_router(is_decoder), self.router_of(is_decoder)
        settings = self.router_settings_of(is_decoder)
        described = f"router = '{name}'" + (f" with router_settings = {dict(settings)}" if settings else "")
        if is_decoder and not router.is_causal:
            raise SettingError(
                f"{described} is not causal (later tokens of a group change which experts a token gets), and so cannot "
                "serve the decoder: set ModelConfig.decoder_router = 'switch'."
            )
        if self.eval_capacity_factor is None and not router.tokens_choose_experts:
            raise SettingError(
                f"eval_capacity_factor = None gives every token its choice, and with {described} tokens do not choose: "
                "set a factor, for instance 2.0."
            )
        uses_one = router.tokens_choose_experts and router.experts_per_token(self.capacity_factor) == 1
        if self.switch_attention != "none" and not uses_one:
            raise SettingError(
                f"switch_attention = '{self.switch_attention}' needs a router that gives a token one expert, which "
                f"{described} does not: set ModelConfig.router to 'switch' or 'no_token_left_behind'."
            )

    def router_of(self, is_decoder: bool) -> str:
        """Returns the name of the encoder's or the decoder's router."""
        return self.decoder_router or self.router if is_decoder else self.router

    def router_settings_of(self, is_decoder: bool) -> dict[str, Any]:
        """Returns the own settings of the encoder's or the decoder's router."""
        if not is_decoder:
            return self.router_settings
        if self.decoder_router_settings is not None:
            return self.decoder_router_settings
        return self.router_settings if self.decoder_router is None else RouterSettings()

    def make_router(self, is_decoder: bool) -> Router:
        """Makes a router of the encoder or of the decoder, which has no weights before it is built."""
        return ROUTERS[self.router_of(is_decoder)](
            d_model=self.d_model,
            num_experts=self.num_experts,
            policy=self.router_policy,
            eval_policy=self.router_eval_policy,
            jitter=self.router_jitter,
            input_dropout_rate=self.router_input_dropout_rate,
            temperature=self.router_temperature,
            balance_bias=self.balance_bias_rate > 0,
            initializer_scale=self.initializer_scale,
            dtype=DTYPE_POLICIES[self.router_dtype],
            name="router",
            **self.router_settings_of(is_decoder),
        )

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise SettingError(f"ModelConfig.{name} = {getattr(self, name)!r} {rule}.")

    def is_sparse(self, index: int, is_decoder: bool = False) -> bool:
        """Whether block `index` (from 0) of the encoder or of the decoder has experts."""
        every, num_layers = self.sparse_every, self.num_encoder_layers
        if is_decoder:
            num_layers = self.num_decoder_layers
            every = every if self.decoder_sparse_every is None else self.decoder_sparse_every
        if not self.num_experts or not every:
            return False
        return {
            "every": index % every == every - 1,
            "every_from_first": index % every == 0,
            "every_from_second": every == 1 or index % every == 1,
            "bottom": index < num_layers // every,
            "top": index >= num_layers - num_layers // every,
            "all": True,
        }[self.sparse_layout]

    def experts_per_token(self, is_decoder: bool) -> float:
        """Returns how many experts a token of the encoder or of the decoder uses on average (at most, for "top_n")."""
        return self.make_router(is_decoder).experts_per_token(self.capacity_factor)

    @property
    def sparse_layer_names(self) -> list[str]:
        """The sparse layers in order: "encoder/layer_1", ...; those of Switch attention end with "/self_attention"."""
        stacks = (("encoder", self.num_encoder_layers), ("decoder", self.num_decoder_layers))
        sublayers = [""] if self.switch_attention == "none" else ["/self_attention", ""]
        return [
            f"{stack}/layer_{index}{sublayer}"
            for stack, num_layers in stacks
            for index in range(num_layers)
            if self.is_sparse(index, is_decoder=stack == "decoder")
            for sublayer in sublayers
        ]

    @property
    def num_sparse_layers(self) -> int:
        """The number of sparse layers in both stacks."""
        return len(self.sparse_layer_names)
