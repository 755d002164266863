"""Multi-head attention as in T5: no biases; the query's initialization divides the logits by sqrt(d_kv)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from switch_tf.layers import initializers
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.dropout import Dropout
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes

# Large enough that softmax gives 0, small enough for bfloat16 and for the sum of several masks.
MASKED = -1e9
# Axis names of queries, keys and values.
HEAD_AXES = (axes.BATCH, axes.HEADS, axes.LENGTH, axes.KV)
# Axis names of attention weights, one for each query and key.
_WEIGHT_AXES = (axes.BATCH, axes.HEADS, axes.LENGTH, None)


class KeyValues(NamedTuple):
    """Projected keys and values, each [B, N, Lk, K]: of a memory, or of the tokens decoded so far.

    Heads come before positions, so that the matmuls of attention need no transpose, in training and in decoding.
    """

    keys: tf.Tensor
    values: tf.Tensor

    @classmethod
    def empty(cls, batch: int, length: int, num_heads: int, d_kv: int, dtype: Any) -> "KeyValues":
        """Returns the cache of a decoder before its first token."""
        zeros = tf.zeros([batch, num_heads, length, d_kv], dtype)
        return cls(zeros, zeros)

    def written(self, new: "KeyValues", position: tf.Tensor) -> "KeyValues":
        """Returns the cache with the keys and values of one more position.

        Args:
          new: of the R hypotheses of each sequence, [B, N, R, K].
          position: int32 scalar.

        Returns:
          A cache of the same shape, [B, N, T * R, K], whose entries at position * R + r are new.
        """
        written = _selected if axes.is_partitioned() else _scattered
        return KeyValues(*(written(old, tf.cast(one, old.dtype), position) for old, one in zip(self, new)))


def _selected(old: tf.Tensor, new: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Copies [B, N, T * R, K] with [B, N, R, K] at a position: a selection, which keeps every layout."""
    batch, heads, rows, width = new.shape
    length = old.shape[2] // rows
    is_new = tf.reshape(tf.equal(tf.range(length), position), [1, 1, length, 1, 1])
    old_rows = tf.reshape(old, [batch, heads, length, rows, width])
    return tf.reshape(tf.where(is_new, tf.expand_dims(new, 2), old_rows), old.shape)


def _scattered(old: tf.Tensor, new: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Writes [B, N, R, K] into [B, N, T * R, K] at a position: a scatter, for which a loop needs no copy."""
    batch, heads, rows, width = new.shape
    number, length = batch * heads, old.shape[2] // rows
    places = tf.stack([tf.range(number), tf.fill([number], position)], axis=1)
    together = tf.reshape(old, [number, length, rows * width])
    together = tf.tensor_scatter_nd_update(together, places, tf.reshape(new, [number, rows * width]))
    return tf.reshape(together, old.shape)


def padding_bias(key_mask: tf.Tensor) -> tf.Tensor:
    """Masks padding: bool [B, Lk] (True: a real token) -> float32 [B, 1, 1, Lk]."""
    hidden = tf.cast(tf.logical_not(key_mask), tf.float32) * MASKED
    return tf.expand_dims(tf.expand_dims(hidden, 1), 1)


def segment_bias(query_segments: tf.Tensor, key_segments: tf.Tensor) -> tf.Tensor:
    """Masks the other examples of a packed sequence: int32 [B, Lq] and [B, Lk] -> float32 [B, 1, Lq, Lk]."""
    differ = tf.not_equal(tf.expand_dims(query_segments, 2), tf.expand_dims(key_segments, 1))
    return tf.expand_dims(tf.cast(differ, tf.float32) * MASKED, 1)


def causal_bias(query_positions: tf.Tensor, key_positions: tf.Tensor) -> tf.Tensor:
    """Masks later positions: int32 [Lq] and [Lk] -> float32 [1, 1, Lq, Lk]."""
    later = tf.expand_dims(key_positions, 0) > tf.expand_dims(query_positions, 1)
    return tf.expand_dims(tf.expand_dims(tf.cast(later, tf.float32) * MASKED, 0), 0)


def ancestor_bias(ancestors: tf.Tensor) -> tf.Tensor:
    """Masks what other hypotheses decoded.

    Args:
      ancestors: int32 [B, R, T]: for each of R hypotheses of a sequence and each position, in which row that position
        was decoded.

    Returns:
      float32 [B, 1, R, T * R], for the keys of a cache with R rows for each position.
    """
    batch, rows, length = ancestors.shape
    is_own = tf.reshape(tf.one_hot(ancestors, rows), [batch, rows, length * rows])
    return tf.expand_dims((1.0 - is_own) * MASKED, 1)


class Attention(Layer):
    """softmax(q k^T + bias) v, in N heads of width K; a subclass projects queries, keys and values."""

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        d_kv: int,
        dropout_rate: float = 0.0,
        initializer_scale: float = 1.0,
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.d_model = d_model
        self.num_heads = num_heads
        self.d_kv = d_kv
        self.initializer_scale = initializer_scale
        # As in T5, all queries of a head share one mask.
        self.dropout = Dropout(dropout_rate, broadcast_axes=(2,), dtype=dtype, name="dropout")

    def build(self, input_shape: Any = None) -> None:
        initializer = initializers.variance_scaling(self.initializer_scale, self.num_heads * self.d_kv)
        shape = (self.num_heads, self.d_kv, self.d_model)
        self.out = self.weight("out", shape, (axes.HEADS, axes.KV, axes.EMBED), initializer)
        self.dropout.build()
        self.built = True

    def project_self(
        self, x: tf.Tensor, context: ForwardContext = INFERENCE
    ) -> tuple[tf.Tensor, KeyValues, Routing | None]:
        """Projects the same tokens to queries, keys and values, for self-attention.

        Args:
          x: [B, L, M].
          context: of the forward pass; experts read it.

        Returns:
          (queries [B, N, L, K], keys and values, the routing or None).
        """
        raise NotImplementedError

    def attend(
        self,
        query: tf.Tensor,
        key_values: KeyValues,
        biases: Sequence[tf.Tensor] = (),
        context: ForwardContext = INFERENCE,
    ) -> tf.Tensor:
        """Attends from queries to keys and values.

        Args:
          query: [B, N, Lq, K].
          key_values: keys and values [B, N, Lk, K].
          biases: float32, each broadcastable to [B, N, Lq, Lk]: position bias and masks. They are separate arguments so
            that each layer sums its gradient of the position bias over the batch.
          context: of the forward pass; dropout of the attention weights reads it.

        Returns:
          [B, Lq, M] in the compute dtype.
        """

        def attended(query: tf.Tensor, keys: tf.Tensor, values: tf.Tensor, *biases: tf.Tensor) -> tf.Tensor:
            logits = tf.cast(tf.matmul(query, keys, transpose_b=True), tf.float32)
            for bias in biases:
                logits += bias
            weights = self.dropout(self.cast(tf.nn.softmax(logits)), context=context, axes=_WEIGHT_AXES)
            return tf.matmul(weights, values)

        keys, values = self.cast(key_values.keys), self.cast(key_values.values)
        if query.shape[2] == 1:  # In decoding there are few weights to keep.
            heads = attended(query, keys, values, *biases)
        else:
            # The L^2 weights of each head would limit the length. The backward pass recomputes them, in about 3 % of a
            # training step's time (the whole model of docs/speed.md).
            heads = rematerialized(attended, [], [query], [keys, values, *biases])
        heads = axes.constrain(heads, HEAD_AXES)
        return tf.einsum("bnqk,nkm->bqm", heads, self.cast(self.out))


class MultiHeadAttention(Attention):
    """Attention with separate projections to queries, keys and values."""

    def build(self, input_shape: Any = None) -> None:
        scale = self.initializer_scale
        shape = (self.d_model, self.num_heads, self.d_kv)
        into = (axes.EMBED, axes.HEADS, axes.KV)
        from_model = initializers.variance_scaling(scale, self.d_model)
        # Divides the logits by sqrt(d_kv).
        self.query = self.weight("query", shape, into, initializers.variance_scaling(scale, self.d_model * self.d_kv))
        self.key = self.weight("key", shape, into, from_model)
        self.value = self.weight("value", shape, into, from_model)
        super().build(input_shape)

    def _project(self, x: tf.Tensor, kernel: keras.Variable) -> tf.Tensor:
        heads = tf.einsum("blm,mnk->bnlk", self.cast(x), self.cast(kernel))
        return axes.constrain(heads, HEAD_AXES)

    def project(self, memory: tf.Tensor) -> KeyValues:
        """Projects [B, Lk, M] to keys and values."""
        return KeyValues(self._project(memory, self.key), self._project(memory, self.value))

    def project_query(self, x: tf.Tensor) -> tf.Tensor:
        """Projects [B, Lq, M] to queries [B, N, Lq, K]."""
        return self._project(x, self.query)

    def project_self(
        self, x: tf.Tensor, context: ForwardContext = INFERENCE
    ) -> tuple[tf.Tensor, KeyValues, Routing | None]:
        """Projects [B, L, M] three times; nothing is routed."""
        del context
        return self.project_query(x), self.project(x), None
