"""Decoding one token after the other: the most probable one, or one that is drawn."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from switch_tf.decoding.cached_step import END_OF_SEQUENCE, Decoded, DecodingStep, log_probability, written_at
from switch_tf.layers.attention import KeyValues
from switch_tf.layers.embedding import sharded_argmax
from switch_tf.models.encoder_decoder import EncoderDecoder


def greedy(
    model: EncoderDecoder, encoder_input_tokens: tf.Tensor, max_length: int, end_of_sequence: int = END_OF_SEQUENCE
) -> tf.Tensor:
    """Decodes the most probable token at every position, until every sequence has ended.

    Args:
      model: built.
      encoder_input_tokens: int32 [B, L], padded with 0.
      max_length: the maximum number of tokens to decode.
      end_of_sequence: the id that ends a sequence.

    Returns:
      int32 [B, max_length], 0 after the end of a sequence.
    """
    step = DecodingStep(model, encoder_input_tokens, max_length)
    return tf.squeeze(one_by_one(step, most_probable, end_of_sequence).tokens, 1)


def most_probable(logits: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Chooses the token with the highest logit: float32 [B, V] -> int32 [B]."""
    del position
    return sharded_argmax(logits)


def one_by_one(
    step: DecodingStep,
    choose: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    end_of_sequence: int = END_OF_SEQUENCE,
) -> Decoded:
    """Decodes a token at every position, until every sequence has ended.

    Args:
      step: of one hypothesis for each sequence.
      choose: (float32 logits [B, V], position) -> int32 [B], the tokens at the position.
      end_of_sequence: the id that ends a sequence.

    Returns:
      One sequence for each row of the step's batch, and its log probability.
    """

    def is_unfinished(position: tf.Tensor, token: tf.Tensor, ended: tf.Tensor, *_: Any) -> tf.Tensor:
        del position, token
        return tf.logical_not(tf.reduce_all(ended))

    def body(
        position: tf.Tensor,
        token: tf.Tensor,
        ended: tf.Tensor,
        decoded: tf.Tensor,
        score: tf.Tensor,
        caches: list[KeyValues],
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, list[KeyValues]]:
        logits, caches = step(tf.expand_dims(token, 1), caches, position)
        logits = tf.squeeze(logits, 1)
        token = tf.where(ended, 0, choose(logits, position))
        score += tf.where(ended, 0.0, log_probability(logits, token))
        decoded = written_at(decoded, token, position)
        ended = tf.logical_or(ended, tf.equal(token, end_of_sequence))
        return position + 1, token, ended, decoded, score, caches

    start = (
        tf.constant(0),
        tf.zeros([step.batch], tf.int32),
        tf.logical_not(step.has_input),
        tf.zeros([step.batch, step.max_length], tf.int32),
        tf.zeros([step.batch]),
        step.start,
    )
    end = tf.while_loop(is_unfinished, body, start, maximum_iterations=step.max_length)
    return Decoded(tf.expand_dims(end[3], 1), tf.expand_dims(end[4], 1))
