"""Everything that makes one model another, as one gin-configurable record that checks itself."""

import dataclasses
import numbers
import typing

import gin

from switch_tf.errors import SettingError
from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.feed_forward import ACTIVATIONS
from switch_tf.layers.router_base import POLICIES
from switch_tf.layers.token_choice import (
    LATER_CHOICE_POLICIES,
    NON_CAUSAL_ROUTERS,
    PRIORITIES,
    ROUTERS,
    ROUTERS_OF_CHOICES,
)

DTYPE_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
SWITCH_ATTENTIONS = ("none", "linear", "feed_forward")
REMATERIALIZATIONS = ("none", "sublayers", "blocks")
SPARSE_LAYOUTS = ("every", "every_from_second", "bottom", "top", "all")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings of a model; those of routing are explained, with a picture, in docs/routing.md.

    Attributes:
      vocab_size: V, rows of the token table (a multiple of 128 is kind to TPUs); the vocabulary must fit into it.
      d_model: M, width of the residual stream.
      d_ff: H, width of a feed-forward layer and of each expert.
      d_kv: K, width of an attention head.
      num_heads: N.
      num_encoder_layers: blocks in the encoder.
      num_decoder_layers: blocks in the decoder.
      activation: "relu" (T5 1.0) or "gated_gelu" (T5 1.1), in dense layers and experts alike.
      tied_logits: whether the token table also makes the logits, as in T5 1.0.
      dropout_rate: on embeddings, attention weights, hidden activations of dense layers and sub-layer outputs.
      initializer_scale: s of sigma = sqrt(s / fan_in); the paper takes 0.1 for Switch Transformers (Sec. 2.4).
      relative_position_buckets: buckets of the relative position bias.
      relative_position_max_distance: from here on all distances share a bucket.
      layer_norm_epsilon: added to the mean square.
      activation_dtype: "float32" or "bfloat16"; weights stay in float32.
      num_experts: E; 0 makes the model dense.
      sparse_every: n; one block in n holds experts. 0: none in the encoder.
      decoder_sparse_every: the same for the decoder; None: as in the encoder.
      sparse_layout: which blocks those are: "every" (n-1, 2n-1, ...), "bottom" or "top" (as many, all at one end),
        "all", or "every_from_second" (1, 1+n, ...: as Hugging Face places them; the same as "every" for n = 2).
      capacity_factor: slots over tokens in training (Eq. 3).
      eval_capacity_factor: outside of training; None gives every token its expert, whatever else is in the batch.
      min_expert_capacity: floor of an expert's slots in a group.
      expert_capacity: a fixed number of slots in the place of the factors, as Hugging Face has it; None: by factors.
        (Dropless evaluation goes before it.)
      group_size: the most tokens that compete for one set of slots; None makes each sequence a group of its own.
      router: how tokens and experts find each other: "switch", "top_n", "no_token_left_behind", "expert_choice" or
        "expert_selection" (layers/token_choice.py).
      decoder_router: the same for the decoder, where experts may not choose; None: as in the encoder.
      router_priority: who has a slot of a full expert: the first by "position" or by "gate".
      decoder_router_priority: the same for the decoder, where it must be "position"; None: as in the encoder.
      router_choices: experts of a token in "top_n", experts that it tries in "no_token_left_behind"; None: 2 and 4.
      router_policy: how to explore in training (App. C): "argmax", "sample", "input_dropout" or "input_jitter".
      router_eval_policy: the same outside of training, where input noise is off.
      router_jitter: epsilon of "input_jitter".
      router_input_dropout_rate: of "input_dropout".
      router_temperature: of "sample".
      later_choice_policy: of "top_n": which choices after the first are tried in training: "all", "none",
        "threshold" or "random".
      eval_later_choice_policy: the same outside of training ("random" in Mesh TensorFlow).
      later_choice_threshold: of both.
      balance_bias_rate: by how much a step moves each expert's bias against its load (auxiliary-loss-free balancing;
        1e-3 in Wang et al. 2024, with Objective.balance_loss = 0); 0: no bias.
      router_dtype: "float32" is the paper's selective precision.
      expert_dropout_rate: on the hidden activation of experts.
      switch_attention: "linear" or "feed_forward" makes queries, and shared keys and values, of self-attention in
        experts of that kind, in the sparse blocks (App. A); "none": not.
      dispatcher: "gather" (fast) or "einsum" (the reference, and always where experts choose).
      rematerialization: which activations are made again for the gradient in the place of being kept; the results are
        the same up to rounding. "sublayers": those inside of attention (but of Switch attention, whose tokens would
        travel twice), and hidden ones of feed-forward layers and their experts; "blocks": all but what goes from block
        to block, which makes the exchanges with experts' devices again as well.
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
    decoder_router: str | None = None
    router_priority: str = "position"
    decoder_router_priority: str | None = None
    router_choices: int | None = None
    router_policy: str = "input_jitter"
    router_eval_policy: str = "argmax"
    router_jitter: float = 1e-2
    router_input_dropout_rate: float = 0.1
    router_temperature: float = 1.0
    later_choice_policy: str = "random"
    eval_later_choice_policy: str = "threshold"
    later_choice_threshold: float = 0.2
    balance_bias_rate: float = 0.0
    router_dtype: str = "float32"
    expert_dropout_rate: float = 0.0
    switch_attention: str = "none"
    dispatcher: str = "gather"
    rematerialization: str = "none"

    def __post_init__(self):
        self._check_types()
        for name in ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("num_encoder_layers", "num_decoder_layers"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1: the model is an encoder-decoder")
        for name in ("group_size", "expert_capacity"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "must be None or at least 1")
        for name in ("dropout_rate", "expert_dropout_rate", "router_jitter", "router_input_dropout_rate"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        for name in ("capacity_factor", "initializer_scale"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        factor = self.eval_capacity_factor
        self._require("eval_capacity_factor", factor is None or factor > 0, "must be positive, or None to drop nothing")
        self._require("min_expert_capacity", self.min_expert_capacity >= 0, "must be 0 or more")
        self._require("num_experts", self.num_experts >= 0, "must be 0 (dense) or more")
        self._require("sparse_every", self.sparse_every >= 0, "must be 0 (no sparse layer) or more")
        every = self.decoder_sparse_every
        self._require("decoder_sparse_every", every is None or every >= 0, "must be None, 0 or more")
        choices = {
            "activation_dtype": DTYPE_POLICIES,
            "router_dtype": DTYPE_POLICIES,
            "activation": ACTIVATIONS,
            "dispatcher": DISPATCHERS,
            "sparse_layout": SPARSE_LAYOUTS,
            "rematerialization": REMATERIALIZATIONS,
            "router_policy": POLICIES,
            "router_eval_policy": POLICIES,
            "later_choice_policy": LATER_CHOICE_POLICIES,
            "eval_later_choice_policy": LATER_CHOICE_POLICIES,
            "router": ROUTERS,
            "decoder_router": [*ROUTERS, None],
            "router_priority": PRIORITIES,
            "decoder_router_priority": [*PRIORITIES, None],
            "switch_attention": SWITCH_ATTENTIONS,
        }
        for name, known in choices.items():
            options = ", ".join(sorted(repr(option) for option in known))
            self._require(name, getattr(self, name) in known, f"must be one of {options}")
        self._check_routing()

    def _check_types(self) -> None:
        """gin takes any Python value; a whole number will do where a fraction is asked for."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            kinds = typing.get_args(field.type) or (field.type,)
            is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            fits = (float in kinds and is_number) or (int in kinds and is_number and value == int(value))
            if not fits and not isinstance(value, tuple(kind for kind in kinds if kind not in (int, float))):
                names = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
                raise SettingError(f"ModelConfig.{field.name} = {value!r} must be of the type {names}.")

    def _check_routing(self) -> None:
        if self.router_choices is not None and not {self.router, self.decoder_router} & set(ROUTERS_OF_CHOICES):
            raise SettingError(
                f"router_choices = {self.router_choices} means nothing to router = '{self.router}': set it to None, or "
                f"the router to {' or '.join(map(repr, ROUTERS_OF_CHOICES))}."
            )
        self._require("balance_bias_rate", self.balance_bias_rate >= 0, "must be 0 (no bias) or more")
        self._require("router_temperature", self.router_temperature > 0, "must be positive")
        if any(name.startswith("decoder") for name in self.sparse_layer_names):
            if self.router_of(is_decoder=True) in NON_CAUSAL_ROUTERS:
                raise SettingError(
                    f"router = '{self.router_of(is_decoder=True)}' lets experts choose among all tokens of a group, "
                    "those after a token included, and so cannot serve the decoder: set ModelConfig.decoder_router = "
                    "'switch'."
                )
            if self.router_priority_of(is_decoder=True) == "gate":
                raise SettingError(
                    "router_priority = 'gate' lets a later token push an earlier one out, and so cannot serve the "
                    "decoder: set ModelConfig.decoder_router_priority = 'position'."
                )
        has_sparse_encoder = any(name.startswith("encoder") for name in self.sparse_layer_names)
        if self.eval_capacity_factor is None and has_sparse_encoder and self.router in NON_CAUSAL_ROUTERS:
            raise SettingError(
                f"eval_capacity_factor = None gives every token its choice, and with router = '{self.router}' tokens "
                "do not choose: set a factor, 2.0 for instance."
            )
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
        if self.switch_attention != "none" and {self.router, self.decoder_router} & {*NON_CAUSAL_ROUTERS, "top_n"}:
            raise SettingError(
                f"switch_attention = '{self.switch_attention}' makes a token's query, key and value in one expert: set "
                "ModelConfig.router to 'switch' or 'no_token_left_behind'."
            )

    def router_of(self, is_decoder: bool) -> str:
        """Name of the encoder's or the decoder's router."""
        return self.decoder_router or self.router if is_decoder else self.router

    def router_priority_of(self, is_decoder: bool) -> str:
        """Priority of the encoder's or the decoder's router."""
        return self.decoder_router_priority or self.router_priority if is_decoder else self.router_priority

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise SettingError(f"ModelConfig.{name} = {getattr(self, name)!r} {rule}.")

    def is_sparse(self, index: int, is_decoder: bool = False) -> bool:
        """Whether block `index` (from 0) of the encoder or of the decoder holds experts."""
        every, num_layers = self.sparse_every, self.num_encoder_layers
        if is_decoder:
            num_layers = self.num_decoder_layers
            every = every if self.decoder_sparse_every is None else self.decoder_sparse_every
        if not self.num_experts or not every:
            return False
        return {
            "every": index % every == every - 1,
            "every_from_second": every == 1 or index % every == 1,
            "bottom": index < num_layers // every,
            "top": index >= num_layers - num_layers // every,
            "all": True,
        }[self.sparse_layout]

    def experts_per_token(self, is_decoder: bool) -> float:
        """How many experts a token of the encoder or of the decoder uses, on average; the most, for "top_n"."""
        router = self.router_of(is_decoder)
        if router in NON_CAUSAL_ROUTERS:
            return min(self.capacity_factor, self.num_experts)
        return self.router_choices or 2 if router == "top_n" else 1

    @property
    def sparse_layer_names(self) -> list[str]:
        """Names of the sparse layers, in order: "encoder/layer_1", ...; attention's end with "/self_attention"."""
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
        """Sparse layers of both stacks together."""
        return len(self.sparse_layer_names)
