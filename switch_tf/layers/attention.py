"""Multi-head attention as in T5: no biases, logits not divided by sqrt(d_kv) (the query's initialisation does it)."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers import initializers
from switch_tf.layers.base import Layer
from switch_tf.layers.dropout import Dropout
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes

# Large enough to end a softmax, small enough for bfloat16 and for sums of several masks.
MASKED = -1e9
# Of queries, keys and values.
HEAD_AXES = (axes.BATCH, axes.HEADS, axes.LENGTH, axes.KV)
# Of attention weights, for each query and key.
_WEIGHT_AXES = (axes.BATCH, axes.HEADS, axes.LENGTH, None)


class KeyValues(NamedTuple):
    """Projected keys and values, each [B, N, Lk, K]: of a memory, or of what has been decoded so far.

    Heads come before positions: the products of attention then copy nothing, in training and at each decoded token.
    """

    keys: tf.Tensor
    values: tf.Tensor

    @classmethod
    def empty(cls, batch: int, length: int, num_heads: int, d_kv: int, dtype) -> "KeyValues":
        """Returns the cache of a decoder that has decoded nothing yet."""
        zeros = tf.zeros([batch, num_heads, length, d_kv], dtype)
        return cls(zeros, zeros)

    def written(self, new: "KeyValues", position: tf.Tensor) -> "KeyValues":
        """Returns the cache with `new` ([B, N, 1, K]) at `position` (int32 scalar).

        A choice for each position: it keeps every layout and needs no scatter.
        """
        length = self.keys.shape[2]
        here = tf.reshape(tf.equal(tf.range(length), position), [1, 1, length, 1])
        return KeyValues(*(tf.where(here, tf.cast(one, old.dtype), old) for old, one in zip(self, new)))


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


class Attention(Layer):
    """softmax(q k^T + bias) v, in N heads of width K; a subclass says where queries, keys and values come from."""

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
        initializer = initializers.variance_scaling(self.initializer_scale, self.num_heads * self.d_kv)
        shape = (self.num_heads, self.d_kv, self.d_model)
        self.out = self.weight("out", shape, (axes.HEADS, axes.KV, axes.EMBED), initializer)
        self.dropout.build()
        self.built = True

    def project_self(
        self,
        x: tf.Tensor,
        token_mask: tf.Tensor | None = None,
        training: bool = False,
        seed: int | tf.Tensor = 0,
        dropless: bool = False,
    ) -> tuple[tf.Tensor, KeyValues, Routing | None]:
        """Makes queries, keys and values of the same tokens, for self-attention.

        Args:
          x: [B, L, M].
          token_mask: bool [B, L], True for a real token; None where all are.
          training: whether noise is on.
          seed: seed of the noise.
          dropless: whether every token gets its expert, where there are experts.

        Returns:
          (queries [B, N, L, K], keys and values, the routing or None).
        """
        raise NotImplementedError

    def attend(
        self,
        query: tf.Tensor,
        key_values: KeyValues,
        biases: Sequence[tf.Tensor] = (),
        training: bool = False,
        seed: int | tf.Tensor = 0,
    ) -> tf.Tensor:
        """Attends from queries to keys and values.

        Args:
          query: [B, N, Lq, K].
          key_values: keys and values [B, N, Lk, K].
          biases: float32, each broadcastable to [B, N, Lq, Lk]: positions and masks, apart from each other so that the
            gradient of the positions' bias is summed over the batch layer by layer.
          training: whether dropout of the attention weights is on.
          seed: seed of the dropout mask.

        Returns:
          [B, Lq, M] in the compute dtype.
        """

        def product(query, keys, values, *biases):
            logits = tf.cast(tf.matmul(query, keys, transpose_b=True), tf.float32)
            for bias in biases:
                logits += bias
            weights = self.dropout(self.cast(tf.nn.softmax(logits)), axes=_WEIGHT_AXES, training=training, seed=seed)
            return tf.matmul(weights, values)

        keys, values = self.cast(key_values.keys), self.cast(key_values.values)
        if query.shape[2] == 1:  # As in decoding: there are few weights.
            heads = product(query, keys, values, *biases)
        else:
            # The weights, L^2 numbers for each head, are not kept for the gradient: their memory is what limits the
            # length, and to make them again takes about a thirtieth of a training step's time (docs/speed.md's whole
            # model).
            heads = rematerialized(product, [], [query], [keys, values, *biases])
        heads = axes.constrain(heads, HEAD_AXES)
        return tf.einsum("bnqk,nkm->bqm", heads, self.cast(self.out))


class MultiHeadAttention(Attention):
    """Attention with one projection each for queries, keys and values."""

    def build(self, input_shape=None):
        scale = self.initializer_scale
        shape = (self.d_model, self.num_heads, self.d_kv)
        into = (axes.EMBED, axes.HEADS, axes.KV)
        from_model = initializers.variance_scaling(scale, self.d_model)
        # The missing division of the logits by sqrt(d_kv) is folded in here.
        self.query = self.weight("query", shape, into, initializers.variance_scaling(scale, self.d_model * self.d_kv))
        self.key = self.weight("key", shape, into, from_model)
        self.value = self.weight("value", shape, into, from_model)
        super().build(input_shape)

    def _project(self, x: tf.Tensor, kernel) -> tf.Tensor:
        heads = tf.einsum("blm,mnk->bnlk", self.cast(x), self.cast(kernel))
        return axes.constrain(heads, HEAD_AXES)

    def project(self, memory: tf.Tensor) -> KeyValues:
        """Projects [B, Lk, M] to keys and values."""
        return KeyValues(self._project(memory, self.key), self._project(memory, self.value))

    def project_query(self, x: tf.Tensor) -> tf.Tensor:
        """Projects [B, Lq, M] to queries [B, N, Lq, K]."""
        return self._project(x, self.query)

    def project_self(
        self,
        x: tf.Tensor,
        token_mask: tf.Tensor | None = None,
        training: bool = False,
        seed: int | tf.Tensor = 0,
        dropless: bool = False,
    ) -> tuple[tf.Tensor, KeyValues, Routing | None]:
        """Projects [B, L, M] three times; nothing is routed."""
        del token_mask, training, seed, dropless
        return self.project_query(x), self.project(x), None
