"""Tokens drawn from the model's probabilities, all of them or the most probable ones.

Noise is a hash of the seed, the example's number, the sample's number, the position and the token: the same draws in
every batch and on every mesh.
"""

from collections.abc import Callable

import tensorflow as tf

from switch_tf.decoding.settings import Decoding
from switch_tf.layers import randomness
from switch_tf.layers.attention import MASKED
from switch_tf.layers.embedding import sharded_argmax
from switch_tf.partitioning import axes


def sampler(settings: Decoding, examples: tf.Tensor) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """Makes the choice of tokens that `one_by_one` takes, for `settings.num_samples` draws of each example.

    Args:
      settings: temperature, top-k, top-p and seed.
      examples: int32 [B], a number for each example; those with one number have the same noise.

    Returns:
      choose(float32 logits [B * n, V], position) -> int32 [B * n]; the n draws of an example stand one after the other.
    """
    number = settings.num_samples
    batch = examples.shape[0]
    example = tf.reshape(tf.repeat(examples, number), [batch * number, 1])
    sample = tf.reshape(tf.tile(tf.range(number), [batch]), [batch * number, 1])

    def choose(logits: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        token = tf.expand_dims(tf.range(logits.shape[-1]), 0)
        seed = randomness.fold_in(settings.seed, position)
        uniform = randomness.uniform_of(randomness.bits_at([example, sample, token], seed))
        # The argmax of logits plus Gumbel noise is a draw from their softmax.
        return sharded_argmax(filtered(logits, settings) - tf.math.log(-tf.math.log(uniform)))

    return choose


def filtered(logits: tf.Tensor, settings: Decoding) -> tf.Tensor:
    """Divides logits by the temperature, then masks those that top-k and then top-p leave out.

    Args:
      logits: float32 [B, V].
      settings: of sampling.

    Returns:
      float32 [B, V].
    """
    logits = logits / settings.temperature
    vocab_size = logits.shape[-1]
    if settings.top_k is not None and settings.top_k < vocab_size:
        lowest = tf.math.top_k(_whole(logits), settings.top_k).values[:, -1:]
        logits = tf.where(logits < lowest, MASKED, logits)
    if settings.top_p is not None and settings.top_p < 1:
        descending = tf.math.top_k(_whole(logits), vocab_size).values
        # The most probable token stays in any case: there is nothing before it.
        before = tf.cumsum(tf.nn.softmax(descending), axis=-1, exclusive=True)
        lowest = tf.reduce_min(tf.where(before < settings.top_p, descending, float("inf")), axis=-1, keepdims=True)
        logits = tf.where(logits < lowest, MASKED, logits)
    return logits


def _whole(logits: tf.Tensor) -> tf.Tensor:
    """Gathers a sharded vocabulary, which sorting needs."""
    return axes.constrain(logits, (axes.BATCH, None))
