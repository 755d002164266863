"""The one step that all decoders repeat: the model's logits of the next token, from caches."""

from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers.attention import MASKED, KeyValues
from switch_tf.layers.context import ForwardContext
from switch_tf.layers.transformer import BlockCache
from switch_tf.models.encoder_decoder import EncoderDecoder

END_OF_SEQUENCE = 1
INPUTS = "encoder_input_tokens"


class Decoded(NamedTuple):
    """What a decoder found, n sequences for each input.

    tokens: int32 [B, n, T], 0 after the end of a sequence.
    scores: float32 [B, n], log probabilities in nats, the forced prefix left out; those of beam search are divided by
      its length penalty.
    """

    tokens: tf.Tensor
    scores: tf.Tensor


class DecodingStep:
    """Encodes a batch once; then predicts one position after the other, for R hypotheses of each sequence.

    Expert layers are dropless, so that a prediction depends neither on the other sequences of the batch nor on the
    other hypotheses.

    Attributes:
      batch: how many sequences are decoded, B.
      rows: R.
      max_length: T.
      has_input: bool [B], False for a row of padding, for which nothing is decoded.
      start: the empty caches of self-attention.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        encoder_input_tokens: tf.Tensor,
        max_length: int,
        *,
        rows: int = 1,
        repeats: int = 1,
        prefix: tf.Tensor | None = None,
    ):
        """Encodes the inputs.

        Args:
          model: built.
          encoder_input_tokens: int32 [B, L], padded with 0.
          max_length: the maximum number of tokens to decode.
          rows: hypotheses that share a memory and may change places, as beams do.
          repeats: decodes each sequence this many times, as a batch of B * repeats.
          prefix: int32 [B, P], the tokens that each target starts with, padded with 0; None: nothing is forced.
        """
        memory, _ = model.encode({INPUTS: encoder_input_tokens}, ForwardContext(dropless=True))
        self._model = model
        self._memory_mask = _repeated(tf.not_equal(encoder_input_tokens, 0), repeats)
        self._prefix = None if prefix is None else _repeated(prefix, repeats)
        self.batch = encoder_input_tokens.shape[0] * repeats
        self.rows = rows
        self.max_length = max_length
        self.has_input = tf.reduce_any(self._memory_mask, axis=-1)
        caches = model.start_decoding(_repeated(memory, repeats), max_length, rows)
        self._memory = [cache.cross_attention for cache in caches]
        self.start = [cache.self_attention for cache in caches]

    def __call__(
        self, tokens: tf.Tensor, caches: list[KeyValues], position: tf.Tensor, ancestors: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, list[KeyValues]]:
        """Predicts the tokens that follow `tokens`.

        Args:
          tokens: int32 [B, R], the last ones; 0 at the start.
          caches: of the earlier positions.
          position: int32 scalar, how many tokens have been decoded.
          ancestors: int32 [B, R, T]; see `EncoderDecoder.decode_step`.

        Returns:
          (float32 logits [B, R, V], where the prefix goes on those of its token alone; the caches with this position).
        """
        before = [BlockCache(*pair) for pair in zip(caches, self._memory)]
        logits, after = self._model.decode_step(tokens, before, position, self._memory_mask, ancestors)
        if self._prefix is not None:
            logits = _forced(logits, self._prefix, position)
        return logits, [cache.self_attention for cache in after]

    def num_free(self, num_decoded: tf.Tensor | int) -> tf.Tensor:
        """Returns how many of the first `num_decoded` tokens of each sequence are not forced: int32 [B, 1]."""
        if self._prefix is None:
            return tf.fill([self.batch, 1], num_decoded)
        num_forced = tf.reduce_sum(tf.cast(tf.not_equal(self._prefix, 0), tf.int32), axis=1, keepdims=True)
        return tf.maximum(num_decoded - num_forced, 0)


def log_probability(logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Returns the log probabilities of tokens: float32 [..., V] and int32 [...] -> float32 [...]."""
    # A one-hot sum instead of a gather, which keeps a sharded vocabulary where it is.
    chosen = tf.reduce_sum(logits * tf.one_hot(tokens, logits.shape[-1]), axis=-1)
    return chosen - tf.reduce_logsumexp(logits, axis=-1)


def written_at(sequences: tf.Tensor, tokens: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Writes tokens into sequences that are 0 at a position: int32 [..., T] and [...] -> [..., T]."""
    is_here = tf.one_hot(position, sequences.shape[-1], dtype=tf.int32)
    return sequences + tf.expand_dims(tokens, -1) * is_here


def _repeated(tensor: tf.Tensor, repeats: int) -> tf.Tensor:
    return tensor if repeats == 1 else tf.repeat(tensor, repeats, axis=0)


def _forced(logits: tf.Tensor, prefix: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Masks every token but the prefix's, where there is one at the position: log probability 0 for it."""
    is_here = tf.one_hot(position, prefix.shape[1], dtype=tf.int32)
    token = tf.reshape(tf.reduce_sum(prefix * is_here, axis=1), [-1, 1, 1])
    is_other = tf.not_equal(token, tf.reshape(tf.range(logits.shape[-1]), [1, 1, -1]))
    return logits + tf.cast(tf.logical_and(tf.not_equal(token, 0), is_other), tf.float32) * MASKED


def encoder_output(model: EncoderDecoder, encoder_input_tokens: tf.Tensor) -> tf.Tensor:
    """Encodes with dropless experts: int32 [B, L] -> float32 [B, L, M]."""
    memory, _ = model.encode({INPUTS: encoder_input_tokens}, ForwardContext(dropless=True))
    return tf.cast(memory, tf.float32)
