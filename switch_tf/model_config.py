"""Everything that makes one model another, as one gin-configurable record that checks itself."""

import dataclasses

import gin

from switch_tf.errors import SettingError
from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.feed_forward import ACTIVATIONS

DTYPE_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
SPARSE_LAYOUTS = ("every", "every_from_second", "bottom", "top", "all")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The settings of a model; those of routing are explained, with pictures, in docs/routing.md.

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
      group_size: the most tokens that compete for one set of slots; None makes each sequence a group of its own.
      router_dtype: "float32" is the paper's selective precision.
      router_jitter: epsilon of the noise on the router's input, in training (App. C).
      expert_dropout_rate: on the hidden activation of experts.
      dispatcher: "gather" (fast) or "einsum" (the reference).
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
    router_dtype: str = "float32"
    router_jitter: float = 1e-2
    expert_dropout_rate: float = 0.0
    dispatcher: str = "gather"

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("num_encoder_layers", "num_decoder_layers"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1: the model is an encoder-decoder")
        for name in ("group_size", "expert_capacity"):
            self._require(name, getattr(self, name) is None or getattr(self, name) >= 1, "must be None or at least 1")
        for name in ("dropout_rate", "expert_dropout_rate", "router_jitter"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        for name in ("capacity_factor", "initializer_scale"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        factor = self.eval_capacity_factor
        self._require("eval_capacity_factor", factor is None or factor > 0, "must be positive, or None to drop nothing")
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
        }
        for name, known in choices.items():
            self._require(name, getattr(self, name) in known, f"must be one of {sorted(known)}")

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

    @property
    def sparse_layer_names(self) -> list[str]:
        """Names of the sparse layers, in order: "encoder/layer_1", ..."""
        stacks = (("encoder", self.num_encoder_layers), ("decoder", self.num_decoder_layers))
        return [
            f"{stack}/layer_{index}"
            for stack, num_layers in stacks
            for index in range(num_layers)
            if self.is_sparse(index, is_decoder=stack == "decoder")
        ]

    @property
    def num_sparse_layers(self) -> int:
        """Sparse layers of both stacks together."""
        return len(self.sparse_layer_names)
