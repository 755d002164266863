"""Decodes with any decoder, and compiles it on an engine."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from switch_tf.decoding.beam_search import beam_search
from switch_tf.decoding.cached_step import END_OF_SEQUENCE, INPUTS, Decoded, DecodingStep, encoder_output
from switch_tf.decoding.greedy import most_probable, one_by_one
from switch_tf.decoding.sampling import sampler
from switch_tf.decoding.settings import Decoding
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning import axes
from switch_tf.partitioning.engine import Engine

# Features that a decoder reads besides the inputs.
PREFIX = "decoder_prefix_tokens"
EXAMPLES = "example_numbers"


def decode(
    model: EncoderDecoder,
    features: Mapping[str, tf.Tensor],
    settings: Decoding,
    max_length: int,
    end_of_sequence: int = END_OF_SEQUENCE,
) -> Decoded:
    """Decodes a batch.

    Args:
      model: built.
      features: `encoder_input_tokens`, int32 [B, L], padded with 0. Optional: `decoder_prefix_tokens`, int32 [B, P],
        what each target starts with, padded with 0; `example_numbers`, int32 [B, 1], a number for each example, of
        which its random draws are a function (by default, its index in the batch).
      settings: which decoder.
      max_length: the maximum number of tokens to decode, T, unless the settings have one.
      end_of_sequence: the id that ends a sequence.

    Returns:
      `settings.num_results` sequences for each row; a row of padding is decoded to nothing.
    """
    inputs, prefix = features[INPUTS], features.get(PREFIX)
    max_length = settings.max_length or max_length
    batch = inputs.shape[0]
    if settings.decoder == "beam" and settings.num_beams > 1:
        step = DecodingStep(model, inputs, max_length, rows=settings.num_beams, prefix=prefix)
        return beam_search(step, settings.length_penalty, end_of_sequence)
    if settings.decoder != "sample":
        return one_by_one(DecodingStep(model, inputs, max_length, prefix=prefix), most_probable, end_of_sequence)
    step = DecodingStep(model, inputs, max_length, repeats=settings.num_samples, prefix=prefix)
    examples = features.get(EXAMPLES)
    numbers = axes.global_indices((axes.BATCH,), 0, batch) if examples is None else tf.reshape(examples, [batch])
    tokens, scores = one_by_one(step, sampler(settings, numbers), end_of_sequence)
    shape = [batch, settings.num_samples]
    return Decoded(tf.reshape(tokens, [*shape, max_length]), tf.reshape(scores, shape))


def make_decoder(
    model: EncoderDecoder, settings: Decoding, max_length: int, engine: Engine
) -> Callable[[Mapping[str, np.ndarray]], Decoded]:
    """Compiles `decode` for batches of one shape.

    Args:
      model: built by the engine.
      settings: which decoder.
      max_length: the maximum number of tokens to decode, unless the settings have one.
      engine: that holds the model.

    Returns:
      decode(features) -> numpy arrays; features as those of `decode`, int32 [B, ...] arrays, where B is a multiple of
      the engine's `batch_multiple`; others than it reads are allowed.
    """
    compiled = engine.compile(lambda features: decode(model, features, settings, max_length), gather=True)

    def run(features: Mapping[str, np.ndarray]) -> Decoded:
        return engine.run(compiled, {name: features[name] for name in (INPUTS, PREFIX, EXAMPLES) if name in features})

    return run


def make_encoder(model: EncoderDecoder, engine: Engine) -> Callable[[Mapping[str, np.ndarray]], np.ndarray]:
    """Compiles the encoder, with dropless experts.

    Args:
      model: built by the engine.
      engine: that holds the model.

    Returns:
      encode(features with `encoder_input_tokens`, int32 [B, L]) -> float32 [B, L, M].
    """
    compiled = engine.compile(lambda features: encoder_output(model, features[INPUTS]), gather=True)
    return lambda features: engine.run(compiled, {INPUTS: features[INPUTS]})
