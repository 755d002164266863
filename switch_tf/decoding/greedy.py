"""Greedy decoding with a cache."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from switch_tf.layers.attention import KeyValues
from switch_tf.layers.context import ForwardContext
from switch_tf.layers.embedding import sharded_argmax
from switch_tf.layers.transformer import BlockCache
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import Engine

END_OF_SEQUENCE = 1
_TOKENS = "encoder_input_tokens"


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
    batch = encoder_input_tokens.shape[0]
    memory_mask = tf.not_equal(encoder_input_tokens, 0)
    memory, _ = model.encode({_TOKENS: encoder_input_tokens}, ForwardContext(dropless=True))
    caches = model.start_decoding(memory, max_length)
    cross = [cache.cross_attention for cache in caches]

    def is_unfinished(position: tf.Tensor, token: tf.Tensor, ended: tf.Tensor, *_: Any) -> tf.Tensor:
        del position, token
        return tf.logical_not(tf.reduce_all(ended))

    def body(
        position: tf.Tensor, token: tf.Tensor, ended: tf.Tensor, decoded: tf.Tensor, own: list[KeyValues]
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor, list[KeyValues]]:
        before = [BlockCache(*pair) for pair in zip(own, cross)]
        logits, after = model.decode_step(token, before, position, memory_mask)
        token = tf.where(ended, 0, sharded_argmax(logits))
        is_here = tf.expand_dims(tf.one_hot(position, max_length, dtype=tf.int32), 0)
        decoded += tf.expand_dims(token, 1) * is_here
        ended = tf.logical_or(ended, tf.equal(token, end_of_sequence))
        return position + 1, token, ended, decoded, [cache.self_attention for cache in after]

    start = (
        tf.constant(0),
        tf.zeros([batch], tf.int32),
        tf.zeros([batch], tf.bool),
        tf.zeros([batch, max_length], tf.int32),
        [cache.self_attention for cache in caches],
    )
    return tf.while_loop(is_unfinished, body, start, maximum_iterations=max_length)[3]


def make_greedy(model: EncoderDecoder, max_length: int, engine: Engine) -> Callable[[np.ndarray], np.ndarray]:
    """Compiles `greedy` for batches of one shape.

    Args:
      model: built by the engine.
      max_length: the maximum number of tokens to decode.
      engine: that holds the model.

    Returns:
      decode(int32 [B, L]) -> int32 [B, max_length]; B is a multiple of the engine's `batch_multiple`.
    """
    compiled = engine.compile(lambda features: greedy(model, features[_TOKENS], max_length), gather=True)

    def decode(tokens: np.ndarray) -> np.ndarray:
        return engine.run(compiled, {_TOKENS: tokens})

    return decode
