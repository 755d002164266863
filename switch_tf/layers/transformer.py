"""Blocks and stacks: pre-norm residual sub-layers, x + dropout(f(norm(x))), dense or sparse."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from switch_tf.layers.attention import Attention, KeyValues, MultiHeadAttention
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.dropout import Dropout
from switch_tf.layers.embedding import RelativePositionBias
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.moe import SwitchFeedForward
from switch_tf.layers.normalization import RMSNorm
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.layers.routing import Routing, with_sizes
from switch_tf.partitioning import axes

# Axis names of the residual stream.
STATE_AXES = (axes.BATCH, axes.LENGTH, axes.EMBED)


class BlockCache(NamedTuple):
    """A decoder block's keys and values: of the tokens decoded so far, and of the memory."""

    self_attention: KeyValues
    cross_attention: KeyValues


class Block(Layer):
    """Self-attention, then (in a decoder) cross-attention, then a feed-forward layer.

    `rematerialization` is the setting of `ModelConfig`. Feed-forward layers and experts have their own argument
    (`rematerialize`), as they recompute only their hidden activations.
    """

    def __init__(
        self,
        *,
        d_model: int,
        self_attention: Attention,
        feed_forward: FeedForward | SwitchFeedForward,
        cross_attention: MultiHeadAttention | None = None,
        dropout_rate: float = 0.0,
        layer_norm_epsilon: float = 1e-6,
        rematerialization: str = "none",
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.rematerialization = rematerialization
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

    def build(self, input_shape: Any = None) -> None:
        for layer in (*self.norms, *self.sublayers, *self.dropouts):
            layer.build()
        self.built = True

    def _residual(
        self,
        x: tf.Tensor,
        sublayer: Layer,
        function: Callable[..., tf.Tensor],
        context: ForwardContext,
        other_states: Sequence[tf.Tensor] = (),
        biases: Sequence[tf.Tensor] = (),
    ) -> tf.Tensor:
        """x + dropout(function(norm(x), *other_states, *biases))."""
        index = self.sublayers.index(sublayer)

        def transformed(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
            return function(self.norms[index](x), *others)

        # Not Switch attention, whose all-to-alls would run twice.
        is_rematerialized = self.rematerialization == "sublayers" and isinstance(sublayer, MultiHeadAttention)
        if is_rematerialized and context.training:
            weights = [*self.norms[index].variables, *sublayer.variables]
            y = rematerialized(transformed, weights, [x, *other_states], biases)
        else:
            y = transformed(x, *other_states, *biases)
        x = x + self.dropouts[index](y, context=context, axes=STATE_AXES)
        return axes.constrain(x, STATE_AXES)

    def call(
        self,
        x: tf.Tensor,
        context: ForwardContext = INFERENCE,
        *,
        self_biases: Sequence[tf.Tensor],
        memory: tf.Tensor | None = None,
        memory_bias: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Transforms whole sequences.

        Args:
          x: [B, L, M].
          context: of the forward pass.
          self_biases: float32, each broadcastable to [B, N, L, L].
          memory: [B, Lk, M], the encoder's output, for a decoder.
          memory_bias: float32, broadcastable to [B, N, L, Lk].

        Returns:
          ([B, L, M], the routings of sparse sub-layers by the sub-layer's name).
        """
        has_memory = self.cross_attention is not None

        def transformed(x: tf.Tensor, *others: tf.Tensor) -> tuple[tf.Tensor, dict[str, Routing]]:
            memory, biases = (others[0], others[1:]) if has_memory else (None, others)
            return self._transformed(x, context, memory, biases, memory_bias)

        states = [x, memory] if has_memory else [x]
        if self.rematerialization == "blocks" and context.training:
            return rematerialized(transformed, self.variables, states, self_biases)
        return transformed(*states, *self_biases)

    def _transformed(
        self,
        x: tf.Tensor,
        context: ForwardContext,
        memory: tf.Tensor | None,
        self_biases: Sequence[tf.Tensor],
        memory_bias: tf.Tensor | None,
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        cross_attention = self.cross_attention
        routings: dict[str, Routing] = {}

        def record(sublayer: str, routing: Routing | None, residual: tf.Tensor, output: tf.Tensor) -> None:
            if routing is not None:
                routings[sublayer] = with_sizes(routing, residual, output, context.token_mask)

        def attend_to_self(y: tf.Tensor, *biases: tf.Tensor) -> tf.Tensor:
            query, key_values, routing = self.self_attention.project_self(y, context)
            output = self.self_attention.attend(query, key_values, biases, context)
            record("self_attention", routing, x, output)
            return output

        def feed_forward(y: tf.Tensor) -> tf.Tensor:
            output, routing = self.feed_forward(y, context=context)
            record("feed_forward", routing, attended, output)
            return output

        attended = self._residual(x, self.self_attention, attend_to_self, context, biases=self_biases)
        if cross_attention is not None:

            def attend_to_memory(y: tf.Tensor, memory: tf.Tensor) -> tf.Tensor:
                query, key_values = cross_attention.project_query(y), cross_attention.project(memory)
                return cross_attention.attend(query, key_values, [memory_bias], context)

            attended = self._residual(attended, cross_attention, attend_to_memory, context, other_states=[memory])
        return self._residual(attended, self.feed_forward, feed_forward, context), routings

    def decode_step(
        self,
        x: tf.Tensor,
        cache: BlockCache,
        position: tf.Tensor,
        self_biases: Sequence[tf.Tensor],
        memory_bias: tf.Tensor,
    ) -> tuple[tf.Tensor, BlockCache]:
        """Decodes one position of R hypotheses of every sequence: [B, R, M] and a cache -> [B, R, M] and the next."""
        own, context, cross_attention = cache.self_attention, ForwardContext(dropless=True), self._cross_attention

        def attend_to_self(y: tf.Tensor) -> tf.Tensor:
            nonlocal own
            query, key_values, _ = self.self_attention.project_self(y, context)
            own = own.written(key_values, position)
            return self.self_attention.attend(query, own, self_biases)

        def attend_to_memory(y: tf.Tensor) -> tf.Tensor:
            return cross_attention.attend(cross_attention.project_query(y), cache.cross_attention, [memory_bias])

        x = self._residual(x, self.self_attention, attend_to_self, context)
        x = self._residual(x, cross_attention, attend_to_memory, context)
        x = self._residual(x, self.feed_forward, lambda y: self.feed_forward(y, context=context)[0], context)
        return x, BlockCache(own, cache.cross_attention)

    def start_cache(self, memory: tf.Tensor, length: int, rows: int = 1) -> BlockCache:
        """Returns the cache for decoding `rows` times `length` tokens that attend to `memory` [B, Lk, M]."""
        attention = self.self_attention
        empty = KeyValues.empty(memory.shape[0], length * rows, attention.num_heads, attention.d_kv, self.compute_dtype)
        return BlockCache(empty, self._cross_attention.project(memory))

    @property
    def _cross_attention(self) -> MultiHeadAttention:
        if self.cross_attention is None:
            raise ValueError(f"{self.path} has no cross-attention: only the blocks of a decoder decode.")
        return self.cross_attention


class Stack(Layer):
    """The blocks of an encoder or of a decoder, the position bias that they share, and the final norm."""

    def __init__(
        self,
        *,
        d_model: int,
        blocks: list[Block],
        position_bias: RelativePositionBias,
        dropout_rate: float = 0.0,
        layer_norm_epsilon: float = 1e-6,
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.blocks = blocks
        self.position_bias = position_bias
        self.input_dropout = Dropout(dropout_rate, broadcast_axes=(1,), dtype=dtype, name="input_dropout")
        self.final_norm = RMSNorm(d_model, epsilon=layer_norm_epsilon, dtype=dtype, name="final_norm")
        self.output_dropout = Dropout(dropout_rate, broadcast_axes=(1,), dtype=dtype, name="output_dropout")

    def build(self, input_shape: Any = None) -> None:
        for layer in (self.position_bias, self.input_dropout, *self.blocks, self.final_norm, self.output_dropout):
            layer.build()
        self.built = True

    def call(
        self,
        x: tf.Tensor,
        context: ForwardContext = INFERENCE,
        *,
        mask_bias: tf.Tensor,
        memory: tf.Tensor | None = None,
        memory_bias: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Runs all blocks over embedded sequences.

        Args:
          x: [B, L, M], embedded tokens.
          context: of the forward pass.
          mask_bias: float32, broadcastable to [B, N, L, L]: the mask of self-attention.
          memory: [B, Lk, M] for a decoder.
          memory_bias: float32, broadcastable to [B, N, L, Lk].

        Returns:
          ([B, L, M] in the compute dtype, the routing of each sparse layer by its name: "encoder/layer_1", or
          "encoder/layer_1/self_attention").
        """
        positions = tf.range(x.shape[1])
        self_biases = [self.position_bias(positions, positions), mask_bias]
        x = self.input_dropout(self.cast(x), context=context, axes=STATE_AXES)
        routings = {}
        for block in self.blocks:
            x, routings_of_block = block(
                x, context=context, self_biases=self_biases, memory=memory, memory_bias=memory_bias
            )
            for sublayer, routing in routings_of_block.items():
                name = f"{self.name}/{block.name}"
                routings[name if sublayer == "feed_forward" else f"{name}/{sublayer}"] = routing
        return self.output_dropout(self.final_norm(x), context=context, axes=STATE_AXES), routings

    def start_caches(self, memory: tf.Tensor, length: int, rows: int = 1) -> list[BlockCache]:
        """Returns empty caches for decoding up to `length` tokens that attend to `memory` [B, Lk, M].

        Args:
          memory: the encoder's output.
          length: T.
          rows: R, how many hypotheses of each sequence are decoded at once.

        Returns:
          A cache for each block.
        """
        return [block.start_cache(memory, length, rows) for block in self.blocks]

    def decode_step(
        self, x: tf.Tensor, caches: list[BlockCache], position: tf.Tensor, mask_bias: tf.Tensor, memory_bias: tf.Tensor
    ) -> tuple[tf.Tensor, list[BlockCache]]:
        """Decodes one position.

        Args:
          x: [B, R, M], the embedded tokens at `position`.
          caches: one for each block.
          position: int32 scalar.
          mask_bias: float32, broadcastable to [B, 1, R, T * R]: masks the positions that have not been decoded yet and
            the other hypotheses.
          memory_bias: float32, broadcastable to [B, N, R, Lk].

        Returns:
          ([B, R, M], the caches after this position).
        """
        key_positions = tf.range(caches[0].self_attention.keys.shape[2]) // x.shape[1]
        self_biases = [self.position_bias(tf.reshape(position, [1]), key_positions) + mask_bias]
        x = self.cast(x)
        after = []
        for block, cache in zip(self.blocks, caches):
            x, cache = block.decode_step(x, cache, position, self_biases, memory_bias)
            after.append(cache)
        return self.final_norm(x), after
