"""Blocks and stacks: pre-norm residual sub-layers, x + dropout(f(norm(x))), dense or sparse."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers import layer
from switch_tf.layers.attention import KeyValues, MultiHeadAttention
from switch_tf.layers.dropout import Dropout
from switch_tf.layers.embedding import RelativePositionBias
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.moe import SwitchFeedForward
from switch_tf.layers.normalization import RMSNorm
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes


class BlockCache(NamedTuple):
    """What a decoder block remembers between tokens: its own keys and values so far, and the memory's."""

    self_attention: KeyValues
    cross_attention: KeyValues


class Block(layer.Layer):
    """Self-attention, then (in a decoder) cross-attention, then a feed-forward layer."""

    def __init__(
        self,
        *,
        d_model: int,
        self_attention: MultiHeadAttention,
        feed_forward: FeedForward | SwitchFeedForward,
        cross_attention: MultiHeadAttention | None = None,
        dropout_rate: float = 0.0,
        layer_norm_epsilon: float = 1e-6,
        dtype=None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.sublayers = [self_attention, *([cross_attention] if cross_attention else []), feed_forward]
        self.norms = [
            RMSNorm(d_model, epsilon=layer_norm_epsilon, dtype=dtype, name=f"{sublayer.name}_norm")
            for sublayer in self.sublayers
        ]
        self.dropouts = [
            Dropout(dropout_rate, broadcast_axes=(1,), dtype=dtype, name=f"{sublayer.name}_dropout")
            for sublayer in self.sublayers
        ]

    def build(self, input_shape=None):
        for part in (*self.norms, *self.sublayers, *self.dropouts):
            part.build()
        self.built = True

    def _residual(self, x: tf.Tensor, sublayer: layer.Layer, function: Callable, training: bool, seed) -> tf.Tensor:
        index = self.sublayers.index(sublayer)
        y = function(self.norms[index](x))
        x = x + self.dropouts[index](y, training=training, seed=seed)
        return axes.constrain(x, (axes.BATCH, axes.LENGTH, axes.EMBED))

    def call(
        self,
        x: tf.Tensor,
        *,
        self_bias: tf.Tensor,
        memory: tf.Tensor | None = None,
        memory_bias: tf.Tensor | None = None,
        token_mask: tf.Tensor | None = None,
        training: bool = False,
        seed: int | tf.Tensor = 0,
    ) -> tuple[tf.Tensor, Routing | None]:
        """Transforms whole sequences.

        Args:
          x: [B, L, M].
          self_bias: float32, broadcastable to [B, N, L, L].
          memory: [B, Lk, M], the encoder's output, for a decoder.
          memory_bias: float32, broadcastable to [B, N, L, Lk].
          token_mask: bool [B, L], True for a real token.
          training: whether noise is on.
          seed: seed of the noise.

        Returns:
          ([B, L, M], the routing of a sparse layer or None).
        """

        def attend_to_self(y):
            key_values = self.self_attention.project(y)
            return self.self_attention(y, key_values, bias=self_bias, training=training, seed=seed)

        def attend_to_memory(y):
            key_values = self.cross_attention.project(memory)
            return self.cross_attention(y, key_values, bias=memory_bias, training=training, seed=seed)

        x = self._residual(x, self.self_attention, attend_to_self, training, seed)
        if self.cross_attention is not None:
            x = self._residual(x, self.cross_attention, attend_to_memory, training, seed)
        return self._apply_feed_forward(x, token_mask=token_mask, training=training, seed=seed)

    def _apply_feed_forward(self, x, *, training=False, seed=0, **options) -> tuple[tf.Tensor, Routing | None]:
        routing = None

        def transform(y):
            nonlocal routing
            y, routing = self.feed_forward(y, training=training, seed=seed, **options)
            return y

        return self._residual(x, self.feed_forward, transform, training, seed), routing

    def decode_step(
        self, x: tf.Tensor, cache: BlockCache, position: tf.Tensor, self_bias: tf.Tensor, memory_bias: tf.Tensor
    ) -> tuple[tf.Tensor, BlockCache]:
        """Decodes one position of every sequence: [B, 1, M] and a cache -> [B, 1, M] and the cache after it."""
        own = cache.self_attention

        def attend_to_self(y):
            nonlocal own
            own = own.written(self.self_attention.project(y), position)
            return self.self_attention(y, own, bias=self_bias)

        def attend_to_memory(y):
            return self.cross_attention(y, cache.cross_attention, bias=memory_bias)

        x = self._residual(x, self.self_attention, attend_to_self, False, 0)
        x = self._residual(x, self.cross_attention, attend_to_memory, False, 0)
        x, _ = self._apply_feed_forward(x, dropless=True)
        return x, BlockCache(own, cache.cross_attention)


class Stack(layer.Layer):
    """The blocks of an encoder or of a decoder, the position bias that they share, and the last norm."""

    def __init__(
        self,
        *,
        d_model: int,
        blocks: list[Block],
        position_bias: RelativePositionBias,
        dropout_rate: float = 0.0,
        layer_norm_epsilon: float = 1e-6,
        dtype=None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.blocks = blocks
        self.position_bias = position_bias
        self.input_dropout = Dropout(dropout_rate, broadcast_axes=(1,), dtype=dtype, name="input_dropout")
        self.final_norm = RMSNorm(d_model, epsilon=layer_norm_epsilon, dtype=dtype, name="final_norm")
        self.output_dropout = Dropout(dropout_rate, broadcast_axes=(1,), dtype=dtype, name="output_dropout")

    def build(self, input_shape=None):
        for part in (self.position_bias, self.input_dropout, *self.blocks, self.final_norm, self.output_dropout):
            part.build()
        self.built = True

    def call(
        self,
        x: tf.Tensor,
        *,
        mask_bias: tf.Tensor,
        memory: tf.Tensor | None = None,
        memory_bias: tf.Tensor | None = None,
        token_mask: tf.Tensor | None = None,
        training: bool = False,
        seed: int | tf.Tensor = 0,
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Runs all blocks over embedded sequences.

        Args:
          x: [B, L, M], embedded tokens.
          mask_bias: float32, broadcastable to [B, N, L, L]: what self-attention may not see.
          memory: [B, Lk, M] for a decoder.
          memory_bias: float32, broadcastable to [B, N, L, Lk].
          token_mask: bool [B, L], True for a real token.
          training: whether noise is on.
          seed: seed of the noise.

        Returns:
          ([B, L, M] in the compute dtype, the routing of each sparse layer by its name, "encoder/layer_1").
        """
        positions = tf.range(x.shape[1])
        self_bias = self.position_bias(positions, positions) + mask_bias
        x = self.input_dropout(self.cast(x), training=training, seed=seed)
        routings = {}
        for block in self.blocks:
            x, routing = block(
                x,
                self_bias=self_bias,
                memory=memory,
                memory_bias=memory_bias,
                token_mask=token_mask,
                training=training,
                seed=seed,
            )
            if routing is not None:
                routings[f"{self.name}/{block.name}"] = routing
        return self.output_dropout(self.final_norm(x), training=training, seed=seed), routings

    def start_caches(self, memory: tf.Tensor, length: int) -> list[BlockCache]:
        """Returns empty caches for decoding up to `length` tokens that attend to `memory` [B, Lk, M]."""
        return [
            BlockCache(
                KeyValues.empty(
                    memory.shape[0],
                    length,
                    block.self_attention.num_heads,
                    block.self_attention.d_kv,
                    self.compute_dtype,
                ),
                block.cross_attention.project(memory),
            )
            for block in self.blocks
        ]

    def decode_step(
        self, x: tf.Tensor, caches: list[BlockCache], position: tf.Tensor, mask_bias: tf.Tensor, memory_bias: tf.Tensor
    ) -> tuple[tf.Tensor, list[BlockCache]]:
        """Decodes one position.

        Args:
          x: [B, 1, M], the embedded token at `position`.
          caches: one for each block.
          position: int32 scalar.
          mask_bias: float32 [1, 1, 1, T], hides what has not been decoded yet.
          memory_bias: float32, broadcastable to [B, N, 1, Lk].

        Returns:
          ([B, 1, M], the caches after this position).
        """
        length = caches[0].self_attention.keys.shape[1]
        self_bias = self.position_bias(tf.reshape(position, [1]), tf.range(length)) + mask_bias
        x = self.cast(x)
        after = []
        for block, cache in zip(self.blocks, caches):
            x, cache = block.decode_step(x, cache, position, self_bias, memory_bias)
            after.append(cache)
        return self.final_norm(x), after
