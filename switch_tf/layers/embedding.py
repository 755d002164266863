"""Token embedding, tied and untied logits, and T5's relative position bias."""

import math
from typing import Any

import tensorflow as tf

from switch_tf.layers import initializers
from switch_tf.layers.base import Layer
from switch_tf.partitioning import axes


class TokenEmbedder(Layer):
    """The token table [V, M]: ids to vectors and, where logits are tied, vectors to logits."""

    def __init__(self, vocab_size: int, d_model: int, *, dtype: Any = None, name: str | None = None):
        super().__init__(dtype=dtype, name=name)
        self.vocab_size = vocab_size
        self.d_model = d_model

    def build(self, input_shape: Any = None) -> None:
        shape = (self.vocab_size, self.d_model)
        self.embedding = self.weight("embedding", shape, (axes.VOCAB, axes.EMBED), initializers.unit_normal)
        self.built = True

    def call(self, tokens: tf.Tensor) -> tf.Tensor:
        """Looks up int32 ids [B, L]; returns [B, L, M] in the compute dtype."""
        if axes.num_shards(axes.VOCAB) == 1:
            return self.cast(tf.gather(tf.convert_to_tensor(self.embedding), tokens))
        # With a sharded table, a one-hot matmul instead of a gather: each device looks up the rows of its shard and an
        # all-reduce adds them up. A gather would all-gather the table.
        one_hot = tf.one_hot(tokens, self.vocab_size, dtype=self.compute_dtype)
        one_hot = axes.constrain(one_hot, (axes.BATCH, axes.LENGTH, axes.VOCAB))
        return tf.einsum("blv,vm->blm", one_hot, self.cast(self.embedding))

    def attend(self, x: tf.Tensor) -> tf.Tensor:
        """Logits from the transposed table: [B, L, M] -> float32 [B, L, V], scaled by M^-0.5 as in T5."""
        logits = tf.einsum("blm,vm->blv", self.cast(x) * self.d_model**-0.5, self.cast(self.embedding))
        return tf.cast(logits, tf.float32)


class LogitsProjection(Layer):
    """Untied logits (T5 1.1): a separate table, [M, V]."""

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        *,
        initializer_scale: float = 1.0,
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.vocab_size = vocab_size
        self.d_model = d_model
        self.initializer_scale = initializer_scale

    def build(self, input_shape: Any = None) -> None:
        initializer = initializers.variance_scaling(self.initializer_scale, self.d_model)
        self.kernel = self.weight("kernel", (self.d_model, self.vocab_size), (axes.EMBED, axes.VOCAB), initializer)
        self.built = True

    def call(self, x: tf.Tensor) -> tf.Tensor:
        """[B, L, M] -> float32 logits [B, L, V]."""
        return tf.cast(tf.einsum("blm,mv->blv", self.cast(x), self.cast(self.kernel)), tf.float32)


def sharded_argmax(logits: tf.Tensor) -> tf.Tensor:
    """Returns the index of the highest logit, the first one of equals, like argmax.

    With a sharded vocabulary it takes maxima only, first within each shard; argmax would all-gather the logits.

    Args:
      logits: float [..., V].

    Returns:
      int32 [...].
    """
    if axes.num_shards(axes.VOCAB) == 1:
        return tf.argmax(logits, axis=-1, output_type=tf.int32)
    vocab_size = logits.shape[-1]
    is_highest = tf.equal(logits, tf.reduce_max(logits, axis=-1, keepdims=True))
    # Numbered backwards, so that the maximum is the first of equals.
    number = tf.reshape(tf.range(vocab_size, 0, -1), [1] * (logits.shape.rank - 1) + [vocab_size])
    return vocab_size - tf.reduce_max(tf.where(is_highest, number, 0), axis=-1)


def relative_position_bucket(
    distance: tf.Tensor, *, bidirectional: bool, num_buckets: int, max_distance: int
) -> tf.Tensor:
    """Maps key position minus query position to a bucket (T5, Raffel et al. 2020, Sec. 2.1).

    Half of the buckets hold one distance each, the others logarithmically growing ranges up to `max_distance`.

    Args:
      distance: int32, key position - query position.
      bidirectional: whether keys after the query have separate buckets (encoder) or share the bucket of 0 (decoder).
      num_buckets: how many buckets there are in all.
      max_distance: all distances from this one on share the last bucket.

    Returns:
      int32 of the same shape, in [0, num_buckets).
    """
    offset = tf.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = tf.cast(distance > 0, tf.int32) * num_buckets
        distance = tf.abs(distance)
    else:
        distance = tf.maximum(-distance, 0)
    num_exact = num_buckets // 2
    # The epsilon keeps log(0) finite; distances below num_exact do not use this branch.
    ratio = tf.cast(distance, tf.float32) / num_exact + 1e-6
    logarithmic = num_exact + tf.cast(
        tf.math.log(ratio) / math.log(max_distance / num_exact) * (num_buckets - num_exact), tf.int32
    )
    return offset + tf.where(distance < num_exact, distance, tf.minimum(logarithmic, num_buckets - 1))


class RelativePositionBias(Layer):
    """One learned scalar for each head and bucket of relative positions, shared by all layers of a stack."""

    def __init__(
        self,
        num_heads: int,
        *,
        bidirectional: bool,
        num_buckets: int = 32,
        max_distance: int = 128,
        initializer_scale: float = 1.0,
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.num_heads = num_heads
        self.bidirectional = bidirectional
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.initializer_scale = initializer_scale

    def build(self, input_shape: Any = None) -> None:
        # Fan-average of [buckets, heads], as in T5X.
        initializer = initializers.variance_scaling(self.initializer_scale, (self.num_buckets + self.num_heads) // 2)
        self.embedding = self.weight("embedding", (self.num_buckets, self.num_heads), (None, axes.HEADS), initializer)
        self.built = True

    def call(self, query_positions: tf.Tensor, key_positions: tf.Tensor) -> tf.Tensor:
        """Returns the bias of attention logits.

        Args:
          query_positions: int32 [Lq].
          key_positions: int32 [Lk].

        Returns:
          [1, N, Lq, Lk] in float32.
        """
        distance = tf.expand_dims(key_positions, 0) - tf.expand_dims(query_positions, 1)
        buckets = relative_position_bucket(
            distance,
            bidirectional=self.bidirectional,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
        )
        # A one-hot matmul instead of a gather: its gradient is a matmul too, which keeps its layout on every mesh.
        one_hot = tf.one_hot(buckets, self.num_buckets, dtype=tf.float32)
        bias = tf.einsum("qkr,rn->nqk", one_hot, tf.convert_to_tensor(self.embedding))
        return tf.expand_dims(bias, 0)
