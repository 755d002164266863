"""Multi-head attention as in T5: no biases, logits not divided by sqrt(d_kv) (the query's initialisation does it)."""

from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers import layer
from switch_tf.layers.dropout import Dropout
from switch_tf.partitioning import axes

# Large enough to end a softmax, small enough for bfloat16 and for sums of several masks.
MASKED = -1e9


class KeyValues(NamedTuple):
    """Projected keys and values, each [B, Lk, N, K]: of a memory, or of what has been decoded so far."""

    keys: tf.Tensor
    values: tf.Tensor

    @classmethod
    def empty(cls, batch: int, length: int, num_heads: int, d_kv: int, dtype) -> "KeyValues":
        """Returns the cache of a decoder that has decoded nothing yet."""
        zeros = tf.zeros([batch, length, num_heads, d_kv], dtype)
        return cls(zeros, zeros)

    def written(self, new: "KeyValues", position: tf.Tensor) -> "KeyValues":
        """Returns the cache with `new` ([B, 1, N, K]) at `position` (int32 scalar).

        A one-hot write: it keeps every layout and needs no scatter.
        """
        length = self.keys.shape[1]
        here = tf.reshape(tf.one_hot(position, length, dtype=self.keys.dtype), [1, length, 1, 1])
        return KeyValues(*(old * (1 - here) + tf.cast(one, old.dtype) * here for old, one in zip(self, new)))


def padding_bias(key_mask: tf.Tensor) -> tf.Tensor:
    """Hides padding: bool [B, Lk] (True: a real token) -> float32 [B, 1, 1, Lk]."""
    hidden = tf.cast(tf.logical_not(key_mask), tf.float32) * MASKED
    return tf.expand_dims(tf.expand_dims(hidden, 1), 1)


def segment_bias(query_segments: tf.Tensor, key_segments: tf.Tensor) -> tf.Tensor:
    """Keeps packed examples apart: int32 [B, Lq] and [B, Lk] -> float32 [B, 1, Lq, Lk]."""
    differ = tf.not_equal(tf.expand_dims(query_segments, 2), tf.expand_dims(key_segments, 1))
    return tf.expand_dims(tf.cast(differ, tf.float32) * MASKED, 1)


def causal_bias(query_positions: tf.Tensor, key_positions: tf.Tensor) -> tf.Tensor:
    """Hides the future: int32 [Lq] and [Lk] -> float32 [1, 1, Lq, Lk]."""
    later = tf.expand_dims(key_positions, 0) > tf.expand_dims(query_positions, 1)
    return tf.expand_dims(tf.expand_dims(tf.cast(later, tf.float32) * MASKED, 0), 0)


class MultiHeadAttention(layer.Layer):
    """softmax(q k^T + bias) v, in N heads of width K."""

    def __init__(
        self,
        *,
        d_model: int,
        num_heads: int,
        d_kv: int,
        dropout_rate: float = 0.0,
        initializer_scale: float = 1.0,
        dtype=None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.d_model = d_model
        self.num_heads = num_heads
        self.d_kv = d_kv
        self.initializer_scale = initializer_scale
        # As in T5, one mask for all queries of a head.
        self.dropout = Dropout(dropout_rate, broadcast_axes=(2,), dtype=dtype, name="dropout")

    def build(self, input_shape=None):
        scale = self.initializer_scale
        shape = (self.d_model, self.num_heads, self.d_kv)
        into = (axes.EMBED, axes.HEADS, axes.KV)
        from_model = layer.variance_scaling(scale, self.d_model)
        from_heads = layer.variance_scaling(scale, self.num_heads * self.d_kv)
        # The missing division of the logits by sqrt(d_kv) is folded in here.
        self.query = self.weight("query", shape, into, layer.variance_scaling(scale, self.d_model * self.d_kv))
        self.key = self.weight("key", shape, into, from_model)
        self.value = self.weight("value", shape, into, from_model)
        out_shape = (self.num_heads, self.d_kv, self.d_model)
        self.out = self.weight("out", out_shape, (axes.HEADS, axes.KV, axes.EMBED), from_heads)
        self.dropout.build()
        self.built = True

    def _project(self, x: tf.Tensor, kernel) -> tf.Tensor:
        heads = tf.einsum("blm,mnk->blnk", self.cast(x), self.cast(kernel))
        return axes.constrain(heads, (axes.BATCH, axes.LENGTH, axes.HEADS, axes.KV))

    def project(self, memory: tf.Tensor) -> KeyValues:
        """Projects [B, Lk, M] to keys and values."""
        return KeyValues(self._project(memory, self.key), self._project(memory, self.value))

    def call(
        self,
        x: tf.Tensor,
        key_values: KeyValues,
        bias: tf.Tensor | None = None,
        training: bool = False,
        seed: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """Attends from `x` to `key_values`.

        Args:
          x: [B, Lq, M], queries before their projection.
          key_values: keys and values [B, Lk, N, K], from `project`.
          bias: float32, broadcastable to [B, N, Lq, Lk]: positions and masks.
          training: whether dropout of the attention weights is on.
          seed: seed of the dropout mask.

        Returns:
          [B, Lq, M] in the compute dtype.
        """
        query = self._project(x, self.query)
        logits = tf.cast(tf.einsum("bqnk,bsnk->bnqs", query, self.cast(key_values.keys)), tf.float32)
        if bias is not None:
            logits += bias
        weights = self.dropout(self.cast(tf.nn.softmax(logits)), training=training, seed=seed)
        heads = tf.einsum("bnqs,bsnk->bqnk", weights, self.cast(key_values.values))
        heads = axes.constrain(heads, (axes.BATCH, axes.LENGTH, axes.HEADS, axes.KV))
        return tf.einsum("bqnk,nkm->bqm", heads, self.cast(self.out))
