"""The model: a T5 encoder-decoder with dense or Switch feed-forward layers, made from a `ModelConfig`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from switch_tf.layers import attention
from switch_tf.layers.attention import Attention, MultiHeadAttention
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.embedding import LogitsProjection, RelativePositionBias, TokenEmbedder
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.initializers import weights_from_seed
from switch_tf.layers.moe import Experts, SwitchFeedForward
from switch_tf.layers.routing import Routing
from switch_tf.layers.switch_attention import AttentionExperts, SwitchSelfAttention
from switch_tf.layers.transformer import Block, BlockCache, Stack
from switch_tf.models.config import DTYPE_POLICIES, ModelConfig


class ModelOutput(NamedTuple):
    """logits: float32 [B, L, V]; routings: each sparse layer's routing, by its name ("encoder/layer_1")."""

    logits: tf.Tensor
    routings: dict[str, Routing]


def _sparse_layer(config: ModelConfig, is_decoder: bool, experts: Layer, name: str) -> SwitchFeedForward:
    router = config.make_router(is_decoder)
    return SwitchFeedForward(
        router=router,
        experts=experts,
        group_size=config.group_size,
        capacity_factor=config.capacity_factor,
        eval_capacity_factor=config.eval_capacity_factor,
        min_expert_capacity=config.min_expert_capacity,
        fixed_capacity=config.expert_capacity,
        # If experts choose, a token may have any number of them: K = E choices to gather, which einsum does faster.
        dispatcher=config.dispatcher if router.tokens_choose_experts else "einsum",
        dtype=DTYPE_POLICIES[config.activation_dtype],
        name=name,
    )


def _feed_forward(config: ModelConfig, is_decoder: bool, is_sparse: bool) -> FeedForward | SwitchFeedForward:
    scale = config.feed_forward_initializer_scale
    settings: dict[str, Any] = {
        "d_model": config.d_model,
        "d_ff": config.d_ff,
        "activation": config.activation,
        "initializer_scale": config.initializer_scale if scale is None else scale,
        "rematerialize": config.rematerialization == "sublayers",
        "dtype": DTYPE_POLICIES[config.activation_dtype],
    }
    if not is_sparse:
        return FeedForward(**settings, dropout_rate=config.dropout_rate, name="feed_forward")
    experts = Experts(
        **settings, num_experts=config.num_experts, dropout_rate=config.expert_dropout_rate, name="experts"
    )
    return _sparse_layer(config, is_decoder, experts, "feed_forward")


def _self_attention(config: ModelConfig, is_decoder: bool, is_sparse: bool) -> Attention:
    settings = _attention_settings(config)
    if not is_sparse or config.switch_attention == "none":
        return MultiHeadAttention(**settings, name="self_attention")
    experts = AttentionExperts(
        num_experts=config.num_experts,
        d_model=config.d_model,
        num_heads=config.num_heads,
        d_kv=config.d_kv,
        kind=config.switch_attention,
        d_ff=config.d_ff,
        initializer_scale=config.initializer_scale,
        dtype=DTYPE_POLICIES[config.activation_dtype],
        name="experts",
    )
    projections = _sparse_layer(config, is_decoder, experts, "projections")
    return SwitchSelfAttention(projections=projections, **settings, name="self_attention")


def _attention_settings(config: ModelConfig) -> dict[str, Any]:
    return {
        "d_model": config.d_model,
        "num_heads": config.num_heads,
        "d_kv": config.d_kv,
        "dropout_rate": config.dropout_rate,
        "initializer_scale": config.initializer_scale,
        "dtype": DTYPE_POLICIES[config.activation_dtype],
    }


def _block(config: ModelConfig, index: int, is_decoder: bool) -> Block:
    is_sparse = config.is_sparse(index, is_decoder)
    cross_attention = MultiHeadAttention(**_attention_settings(config), name="cross_attention") if is_decoder else None
    return Block(
        d_model=config.d_model,
        self_attention=_self_attention(config, is_decoder, is_sparse),
        cross_attention=cross_attention,
        feed_forward=_feed_forward(config, is_decoder, is_sparse),
        dropout_rate=config.dropout_rate,
        layer_norm_epsilon=config.layer_norm_epsilon,
        rematerialization=config.rematerialization,
        dtype=DTYPE_POLICIES[config.activation_dtype],
        name=f"layer_{index}",
    )


class EncoderDecoder(keras.Model):
    """T5's encoder-decoder. `build` makes all weights, each a function of `seed` and of the weight's path."""

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
            blocks=[_block(config, index, is_decoder) for index in range(num_layers)],
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

    def build(self, input_shape: Any = None) -> None:
        """Makes all weights; needs no input."""
        with weights_from_seed(self.seed):
            for layer in (self.token_embedder, self.encoder, self.decoder, *([self.logits] if self.logits else [])):
                layer.build()
        self.built = True

    def get_config(self) -> dict[str, Any]:
        """Returns the arguments of `from_config`."""
        return {"config": dataclasses.asdict(self.config), "seed": self.seed}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> "EncoderDecoder":
        """Makes a model from what `get_config` returned."""
        return cls(ModelConfig(**config["config"]), seed=config["seed"])

    def call(
        self,
        features: Mapping[str, tf.Tensor],
        training: bool = False,
        seed: int | tf.Tensor = 0,
        return_routing: bool = False,
        dropless: bool = False,
    ) -> tf.Tensor | ModelOutput:
        """Predicts every target token from the inputs and the target tokens before it.

        Args:
          features: int32 [B, L] each, under the names of seqio's `EncDecFeatureConverter`: `encoder_input_tokens`,
            `decoder_input_tokens`, and optionally `decoder_target_tokens`, by which the decoder masks padding (0), and
            `encoder_segment_ids` and `decoder_segment_ids` of packed examples (positions may be left out: attention
            depends on distances only, which are those of each example).
          training: whether dropout, router noise and the training capacity are on.
          seed: seed of the noise; the same seed gives the same numbers.
          return_routing: whether to return a `ModelOutput`.
          dropless: whether experts drop no token outside of training, whatever the evaluation capacity.

        Returns:
          float32 logits [B, L, V], or a `ModelOutput`.
        """
        context = ForwardContext(training=training, seed=seed, dropless=dropless)
        memory, encoder_routings = self.encode(features, context)
        logits, decoder_routings = self.decode(features, memory, context)
        if return_routing:
            return ModelOutput(logits, {**encoder_routings, **decoder_routings})
        return logits

    def encode(
        self, features: Mapping[str, tf.Tensor], context: ForwardContext = INFERENCE
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Encodes `encoder_input_tokens`: ([B, L, M], routings)."""
        tokens = features["encoder_input_tokens"]
        token_mask = tf.not_equal(tokens, 0)
        mask_bias = attention.padding_bias(token_mask)
        segments = features.get("encoder_segment_ids")
        if segments is not None:
            mask_bias += attention.segment_bias(segments, segments)
        x = self.token_embedder(tokens)
        return self.encoder(x, context=dataclasses.replace(context, token_mask=token_mask), mask_bias=mask_bias)

    def decode(
        self, features: Mapping[str, tf.Tensor], memory: tf.Tensor, context: ForwardContext = INFERENCE
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Decodes `decoder_input_tokens`, teacher-forced, over `memory` [B, Lk, M]: (float32 [B, L, V], routings)."""
        x, routings = self.decode_states(features, memory, context)
        return self._to_logits(x), routings

    def decode_states(
        self, features: Mapping[str, tf.Tensor], memory: tf.Tensor, context: ForwardContext = INFERENCE
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Computes `decode` without the logits: ([B, L, M], the decoder's output; routings)."""
        tokens = features["decoder_input_tokens"]
        targets = features.get("decoder_target_tokens")
        positions = tf.range(tokens.shape[1])
        mask_bias = attention.causal_bias(positions, positions)
        memory_bias = attention.padding_bias(tf.not_equal(features["encoder_input_tokens"], 0))
        if targets is not None:
            context = dataclasses.replace(context, token_mask=tf.not_equal(targets, 0))
            mask_bias += attention.padding_bias(context.token_mask)
        segments = features.get("decoder_segment_ids")
        if segments is not None:
            mask_bias += attention.segment_bias(segments, segments)
            memory_bias += attention.segment_bias(segments, features["encoder_segment_ids"])
        return self.decoder(
            self.token_embedder(tokens), context=context, mask_bias=mask_bias, memory=memory, memory_bias=memory_bias
        )

    def _to_logits(self, x: tf.Tensor) -> tf.Tensor:
        return self.token_embedder.attend(x) if self.logits is None else self.logits(x)

    def start_decoding(self, memory: tf.Tensor, length: int, rows: int = 1) -> list[BlockCache]:
        """Returns the caches for decoding at most `length` tokens over `memory` [B, Lk, M] with `decode_step`.

        Args:
          memory: the encoder's output.
          length: T.
          rows: R, how many hypotheses of each sequence are decoded at once (beams).

        Returns:
          A cache for each block of the decoder.
        """
        return self.decoder.start_caches(memory, length, rows)

    def decode_step(
        self,
        tokens: tf.Tensor,
        caches: list[BlockCache],
        position: tf.Tensor,
        memory_mask: tf.Tensor,
        ancestors: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, list[BlockCache]]:
        """Predicts the next token of every hypothesis from the caches of the tokens before it.

        Hypotheses that change places, as beams do, leave their caches where they are: `ancestors` tells where.

        Args:
          tokens: int32 [B, R], the tokens at `position` (0, the padding id, at the start).
          caches: of the earlier positions.
          position: int32 scalar.
          memory_mask: bool [B, Lk], True for a real input token.
          ancestors: int32 [B, R, T], in which row each position of a hypothesis was decoded; at `position`, its own.
            None where R = 1.

        Returns:
          (float32 logits [B, R, V], the caches after this position).
        """
        num_keys = caches[0].self_attention.keys.shape[2]
        key_positions = tf.range(num_keys) // tokens.shape[1]
        mask_bias = attention.causal_bias(tf.reshape(position, [1]), key_positions)
        if ancestors is not None:
            mask_bias += attention.ancestor_bias(ancestors)
        x = self.token_embedder(tokens)
        x, caches = self.decoder.decode_step(x, caches, position, mask_bias, attention.padding_bias(memory_mask))
        return self._to_logits(x), caches


def weight_name(weight: keras.Variable) -> str:
    """Returns a weight's name in checkpoints and tables: its path without the model's own name."""
    return weight.path.split("/", 1)[1]
