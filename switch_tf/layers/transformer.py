"""Blocks and stacks: pre-norm residual sub-layers, x + dropout(f(norm(x))), dense or sparse."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers.attention import Attention, KeyValues, MultiHeadAttention
from switch_tf.layers.base import Layer
from switch_tf.layers.dropout import Dropout
from switch_tf.layers.embedding import RelativePositionBias
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.moe import SwitchFeedForward
from switch_tf.layers.normalization import RMSNorm
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes

# Of what goes from block to block.
STATE_AXES = (axes.BATCH, axes.LENGTH, axes.EMBED)


class BlockCache(NamedTuple):
    """What a decoder block remembers between tokens: its own keys and values so far, and the memory's."""

    self_attention: KeyValues
    cross_attention: KeyValues


class Block(Layer):
    """Self-attention, then (in a decoder) cross-attention, then a feed-forward layer.

    `rematerialization` is that of `ModelConfig`; a feed-forward layer, and experts, are told by themselves
    (`rematerialize`) whether to make their hidden activations again.
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
        dtype=None,
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

    def build(self, input_shape=None):
        for part in (*self.norms, *self.sublayers, *self.dropouts):
            part.build()
        self.built = True

    def _residual(
        self,
        x: tf.Tensor,
        sublayer: Layer,
        function: Callable,
        other_states: Sequence[tf.Tensor] = (),
        biases: Sequence[tf.Tensor] = (),
        training: bool = False,
        seed: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """x + dropout(function(norm(x), *other_states, *biases))."""
        index = self.sublayers.index(sublayer)

        def transformed(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
            return function(self.norms[index](x), *others)

        # Not a sparse one, whose tokens would travel twice.
        if self.rematerialization == "sublayers" and training and isinstance(sublayer, MultiHeadAttention):
            weights = [*self.norms[index].variables, *sublayer.variables]
            y = rematerialized(transformed, weights, [x, *other_states], biases)
        else:
            y = transformed(x, *other_states, *biases)
        x = x + self.dropouts[index](y, axes=STATE_AXES, training=training, seed=seed)
        return axes.constrain(x, STATE_AXES)

    def call(
        self,
        x: tf.Tensor,
        *,
        self_biases: Sequence[tf.Tensor],
        memory: tf.Tensor | None = None,
        memory_bias: tf.Tensor | None = None,
        token_mask: tf.Tensor | None = None,
        training: bool = False,
        seed: int | tf.Tensor = 0,
        dropless: bool = False,
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        """Transforms whole sequences.

        Args:
          x: [B, L, M].
          self_biases: float32, each broadcastable to [B, N, L, L].
          memory: [B, Lk, M], the encoder's output, for a decoder.
          memory_bias: float32, broadcastable to [B, N, L, Lk].
          token_mask: bool [B, L], True for a real token.
          training: whether noise is on.
          seed: seed of the noise.
          dropless: whether every token gets its expert.

        Returns:
          ([B, L, M], the routings of sparse sub-layers by the sub-layer's name).
        """
        has_memory = self.cross_attention is not None

        def transformed(x: tf.Tensor, *others: tf.Tensor) -> tuple[tf.Tensor, dict[str, Routing]]:
            memory, biases = (others[0], others[1:]) if has_memory else (None, others)
            return self._transformed(x, memory, biases, memory_bias, token_mask, training, seed, dropless)

        states = [x, memory] if has_memory else [x]
        if self.rematerialization == "blocks" and training:
            return rematerialized(transformed, self.variables, states, self_biases)
        return transformed(*states, *self_biases)

    def _transformed(
        self,
        x: tf.Tensor,
        memory: tf.Tensor | None,
        self_biases: Sequence[tf.Tensor],
        memory_bias: tf.Tensor | None,
        token_mask: tf.Tensor | None,
        training: bool,
        seed: int | tf.Tensor,
        dropless: bool,
    ) -> tuple[tf.Tensor, dict[str, Routing]]:
        noise = {"training": training, "seed": seed}
        routed = {"token_mask": token_mask, "dropless": dropless, **noise}
        routings = {}

        def attend_to_self(y, *biases):
            query, key_values, routings["self_attention"] = self.self_attention.project_self(y, **routed)
            return self.self_attention.attend(query, key_values, biases, **noise)

        def attend_to_memory(y, memory):
            query, key_values = self.cross_attention.project_query(y), self.cross_attention.project(memory)
            return self.cross_attention.attend(query, key_values, [memory_bias], **noise)

        def feed_forward(y):
            y, routings["feed_forward"] = self.feed_forward(y, **routed)
            return y

        x = self._residual(x, self.self_attention, attend_to_self, biases=self_biases, **noise)
        if self.cross_attention is not None:
            x = self._residual(x, self.cross_attention, attend_to_memory, other_states=[memory], **noise)
        x = self._residual(x, self.feed_forward, feed_forward, **noise)
        return x, {name: routing for name, routing in routings.items() if routing is not None}

    def decode_step(
        self,
        x: tf.Tensor,
        cache: BlockCache,
        position: tf.Tensor,
        self_biases: Sequence[tf.Tensor],
        memory_bias: tf.Tensor,
    ) -> tuple[tf.Tensor, BlockCache]:
        """Decodes one position of every sequence: [B, 1, M] and a cache -> [B, 1, M] and the cache after it."""
        own = cache.self_attention

        def attend_to_self(y):
            nonlocal own
            query, key_values, _ = self.self_attention.project_self(y, dropless=True)
            own = own.written(key_values, position)
            return self.self_attention.attend(query, own, self_biases)

        def attend_to_memory(y):
            query = self.cross_attention.project_query(y)
            return self.cross_attention.attend(query, cache.cross_attention, [memory_bias])

        x = self._residual(x, self.self_attention, attend_to_self)
        x = self._residual(x, self.cross_attention, attend_to_memory)
        x = self._residual(x, self.feed_forward, lambda y: self.feed_forward(y, dropless=True)[0])
        return x, BlockCache(own, cache.cross_attention)


class Stack(Layer):
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
        dropless: bool = False,
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
          dropless: whether every token gets its expert.

        Returns:
          ([B, L, M] in the compute dtype, the routing of each sparse layer by its name: "encoder/layer_1", or
          "encoder/layer_1/self_attention").
        """
        positions = tf.range(x.shape[1])
        self_biases = [self.position_bias(positions, positions), mask_bias]
        x = self.input_dropout(self.cast(x), axes=STATE_AXES, training=training, seed=seed)
        routings = {}
        for block in self.blocks:
            x, routings_of_block = block(
                x,
                self_biases=self_biases,
                memory=memory,
                memory_bias=memory_bias,
                token_mask=token_mask,
                training=training,
                seed=seed,
                dropless=dropless,
            )
            for sublayer, routing in routings_of_block.items():
                name = f"{self.name}/{block.name}"
                routings[name if sublayer == "feed_forward" else f"{name}/{sublayer}"] = routing
        return self.output_dropout(self.final_norm(x), axes=STATE_AXES, training=training, seed=seed), routings

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
        length = caches[0].self_attention.keys.shape[2]
        self_biases = [self.position_bias(tf.reshape(position, [1]), tf.range(length)) + mask_bias]
        x = self.cast(x)
        after = []
        for block, cache in zip(self.blocks, caches):
            x, cache = block.decode_step(x, cache, position, self_biases, memory_bias)
            after.append(cache)
        return self.final_norm(x), after
