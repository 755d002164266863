"""The model: a T5 encoder-decoder whose feed-forward layers are dense or Switch layers, made from one `ModelConfig`."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import gin
import keras
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers import attention
from switch_tf.layers.attention import MultiHeadAttention
from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.embedding import LogitsProjection, RelativePositionBias, TokenEmbedder
from switch_tf.layers.feed_forward import ACTIVATIONS, FeedForward
from switch_tf.layers.layer import weights_from_seed
from switch_tf.layers.moe import Experts, SwitchFeedForward
from switch_tf.layers.routing import Routing, SwitchRouter
from switch_tf.layers.transformer import Block, BlockCache, Stack

DTYPE_POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16"}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that makes one model another.

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
      sparse_every: n; blocks n-1, 2n-1, ... of both stacks are sparse.
      capacity_factor: in training (Eq. 3).
      eval_capacity_factor: outside of training.
      min_expert_capacity: floor of an expert's slots in a group.
      group_size: the most tokens that compete for one set of slots.
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
    capacity_factor: float = 1.25
    eval_capacity_factor: float = 2.0
    min_expert_capacity: int = 4
    group_size: int = 4096
    router_dtype: str = "float32"
    router_jitter: float = 1e-2
    expert_dropout_rate: float = 0.0
    dispatcher: str = "gather"

    def __post_init__(self):
        counts = ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "sparse_every", "group_size")
        for name in counts:
            self._require(name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("num_encoder_layers", "num_decoder_layers"):
            self._require(name, getattr(self, name) >= 1, "must be at least 1: the model is an encoder-decoder")
        for name in ("dropout_rate", "expert_dropout_rate"):
            self._require(name, 0 <= getattr(self, name) < 1, "must be in [0, 1)")
        for name in ("capacity_factor", "eval_capacity_factor", "initializer_scale"):
            self._require(name, getattr(self, name) > 0, "must be positive")
        self._require("num_experts", self.num_experts >= 0, "must be 0 (dense) or more")
        self._require("router_jitter", 0 <= self.router_jitter < 1, "must be in [0, 1)")
        for name in ("activation_dtype", "router_dtype"):
            self._require(name, getattr(self, name) in DTYPE_POLICIES, f"must be one of {sorted(DTYPE_POLICIES)}")
        self._require("activation", self.activation in ACTIVATIONS, f"must be one of {sorted(ACTIVATIONS)}")
        self._require("dispatcher", self.dispatcher in DISPATCHERS, f"must be one of {sorted(DISPATCHERS)}")

    def _require(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            raise SettingError(f"ModelConfig.{name} = {getattr(self, name)!r} {rule}.")

    def is_sparse(self, index: int) -> bool:
        """Whether block `index` (from 0) of a stack holds experts: every n-th, the n-th first of all."""
        return self.num_experts > 0 and index % self.sparse_every == self.sparse_every - 1

    @property
    def num_sparse_layers(self) -> int:
        """Sparse layers of both stacks together."""
        layers = (*range(self.num_encoder_layers), *range(self.num_decoder_layers))
        return sum(self.is_sparse(index) for index in layers)


class ModelOutput(NamedTuple):
    """logits: float32 [B, L, V]; routings: each sparse layer's routing, by its name ("encoder/layer_1")."""

    logits: tf.Tensor
    routings: dict[str, Routing]


def _blocks(config: ModelConfig, num_layers: int, is_decoder: bool) -> list[Block]:
    policy = DTYPE_POLICIES[config.activation_dtype]
    scale = config.initializer_scale

    def attention_layer(name: str) -> MultiHeadAttention:
        return MultiHeadAttention(
            d_model=config.d_model,
            num_heads=config.num_heads,
            d_kv=config.d_kv,
            dropout_rate=config.dropout_rate,
            initializer_scale=scale,
            dtype=policy,
            name=name,
        )

    def feed_forward_layer(index: int) -> FeedForward | SwitchFeedForward:
        shape = {
            "d_model": config.d_model,
            "d_ff": config.d_ff,
            "activation": config.activation,
            "initializer_scale": scale,
        }
        if not config.is_sparse(index):
            return FeedForward(**shape, dropout_rate=config.dropout_rate, dtype=policy, name="feed_forward")
        return SwitchFeedForward(
            router=SwitchRouter(
                d_model=config.d_model,
                num_experts=config.num_experts,
                jitter=config.router_jitter,
                initializer_scale=scale,
                dtype=DTYPE_POLICIES[config.router_dtype],
                name="router",
            ),
            experts=Experts(
                **shape,
                num_experts=config.num_experts,
                dropout_rate=config.expert_dropout_rate,
                dtype=policy,
                name="experts",
            ),
            group_size=config.group_size,
            capacity_factor=config.capacity_factor,
            eval_capacity_factor=config.eval_capacity_factor,
            min_expert_capacity=config.min_expert_capacity,
            dispatcher=config.dispatcher,
            dtype=policy,
            name="feed_forward",
        )

    return [
        Block(
            d_model=config.d_model,
            self_attention=attention_layer("self_attention"),
            cross_attention=attention_layer("cross_attention") if is_decoder else None,
            feed_forward=feed_forward_layer(index),
            dropout_rate=config.dropout_rate,
            layer_norm_epsilon=config.layer_norm_epsilon,
            dtype=policy,
            name=f"layer_{index}",
        )
        for index in range(num_layers)
    ]


class EncoderDecoder(keras.Model):
    """T5's encoder-decoder. All weights are made by `build`, from `seed` and each weight's path."""

    def __init__(self, config: ModelConfig, *, seed: int = 0):
        policy = DTYPE_POLICIES[config.activation_dtype]
        super().__init__(name="model", dtype=policy, autocast=False)
        self.config = config
        self.seed = seed
        self.token_embedder = TokenEmbedder(config.vocab_size, config.d_model, dtype=policy, name="token_embedder")
        self.encoder = self._stack("encoder", config.num_encoder_layers, is_decoder=False)
        self.decoder = self._stack("decoder", config.num_decoder_layers, is_decoder=True)
        self.logits = None
        if not config.tied_logits:
            self.logits = LogitsProjection(
                config.vocab_size,
                config.d_model,
                initializer_scale=config.initializer_scale,
                dtype=policy,
                name="logits",
            )

    def _stack(self, name: str, num_layers: int, is_decoder: bool) -> Stack:
        config, policy = self.config, DTYPE_POLICIES[self.config.activation_dtype]
        return Stack(
            d_model=config.d_model,
            blocks=_blocks(config, num_layers, is_decoder),
            position_bias=RelativePositionBias(
                config.num_heads,
                bidirectional=not is_decoder,
                num_buckets=config.relative_position_buckets,
                max_distance=config.relative_position_max_distance,
                initializer_scale=config.initializer_scale,
                dtype=policy,
                name="position_bias",
            ),
            dropout_rate=config.dropout_rate,
            layer_norm_epsilon=config.layer_norm_epsilon,
            dtype=policy,
            name=name,
        )

    def build(self, input_shape=None):
        """Makes all weights; no input is needed."""
        with weights_from_seed(self.seed):
            for part in (self.token_embedder, self.encoder, self.decoder, *([self.logits] if self.logits else [])):
                part.build()
        self.built = True

    def get_config(self) -> dict:
        """Returns what `from_config` needs."""
        return {"config": dataclasses.asdict(self.config), "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> "EncoderDecoder":
        """Makes the model that `get_config` described."""
        return cls(ModelConfig(**config["config"]), seed=config["seed"])

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: int | tf.Tensor = 0,
        return_routing: bool = False,
    ) -> tf.Tensor | ModelOutput:
        """Predicts every target token from the inputs and the target tokens before it.

        Args:
          features: int32 [B, L] each, under the names of seqio's `EncDecFeatureConverter`: `encoder_input_tokens`,
            `decoder_input_tokens`; if there, `decoder_target_tokens` tells padding (0) from text in the decoder, and
            `encoder_segment_ids` and `decoder_segment_ids` keep packed examples apart.
          training: whether noise and the training capacity are on.
          seed: seed of the noise; the same seed gives the same numbers.
          return_routing: whether to return a `ModelOutput`.

        Returns:
          float32 logits [B, L, V], or a `ModelOutput`.
        """
        memory, encoder_routings = self.encode(features, training=training, seed=seed)
        logits, decoder_routings = self.decode(features, memory, training=training, seed=seed)
        if return_routing:
            return ModelOutput(logits, {**encoder_routings, **decoder_routings})
        return logits

    def encode(
        self, features: Mapping[str, tf.Tensor], training: bool = False, seed: int | tf.Tensor = 0
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Encodes `encoder_input_tokens`: ([B, L, M], routings)."""
        tokens = features["encoder_input_tokens"]
        token_mask = tf.not_equal(tokens, 0)
        mask_bias = attention.padding_bias(token_mask)
        segments = features.get("encoder_segment_ids")
        if segments is not None:
            mask_bias += attention.segment_bias(segments, segments)
        x = self.token_embedder(tokens)
        return self.encoder(x, mask_bias=mask_bias, token_mask=token_mask, training=training, seed=seed)

    def decode(
        self,
        features: Mapping[str, tf.Tensor],
        memory: tf.Tensor,
        training: bool = False,
        seed: int | tf.Tensor = 0,
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Decodes `decoder_input_tokens`, teacher-forced, over `memory` [B, Lk, M]: (float32 [B, L, V], routings)."""
        tokens = features["decoder_input_tokens"]
        targets = features.get("decoder_target_tokens")
        positions = tf.range(tokens.shape[1])
        mask_bias = attention.causal_bias(positions, positions)
        memory_bias = attention.padding_bias(tf.not_equal(features["encoder_input_tokens"], 0))
        segments = features.get("decoder_segment_ids")
        if segments is not None:
            mask_bias += attention.segment_bias(segments, segments)
            memory_bias += attention.segment_bias(segments, features["encoder_segment_ids"])
        x, routings = self.decoder(
            self.token_embedder(tokens),
            mask_bias=mask_bias,
            memory=memory,
            memory_bias=memory_bias,
            token_mask=None if targets is None else tf.not_equal(targets, 0),
            training=training,
            seed=seed,
        )
        return self._to_logits(x), routings

    def _to_logits(self, x: tf.Tensor) -> tf.Tensor:
        return self.token_embedder.attend(x) if self.logits is None else self.logits(x)

    def start_decoding(self, memory: tf.Tensor, length: int) -> list[BlockCache]:
        """Returns the caches with which `decode_step` starts, for at most `length` tokens over `memory` [B, Lk, M]."""
        return self.decoder.start_caches(memory, length)

    def decode_step(
        self, tokens: tf.Tensor, caches: list[BlockCache], position: tf.Tensor, memory_mask: tf.Tensor
    ) -> tuple[tf.Tensor, list[BlockCache]]:
        """Predicts the next token of every sequence, in time that does not grow with what has been decoded.

        Args:
          tokens: int32 [B], the tokens at `position` (0, the padding id, starts a sequence).
          caches: of the positions before.
          position: int32 scalar.
          memory_mask: bool [B, Lk], True for a real input token.

        Returns:
          (float32 logits [B, V], the caches after this position).
        """
        length = caches[0].self_attention.keys.shape[1]
        mask_bias = attention.causal_bias(tf.reshape(position, [1]), tf.range(length))
        x = self.token_embedder(tf.expand_dims(tokens, 1))
        x, caches = self.decoder.decode_step(x, caches, position, mask_bias, attention.padding_bias(memory_mask))
        return tf.squeeze(self._to_logits(x), 1), caches


def weight_name(weight: keras.Variable) -> str:
    """Returns a weight's name in checkpoints and tables: its path without the model's own name."""
    return weight.path.split("/", 1)[1]
