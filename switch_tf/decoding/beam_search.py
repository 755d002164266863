"""Beam search as T5 decodes: the scores and the stopping rule of Mesh TensorFlow and T5X.

A sequence of `length` tokens, the end of sequence included, scores log p / ((5 + length) / 6)^alpha (the brevity
penalty of Wu et al. 2016, Eq. 14). At each position the 2k best continuations of k beams are found; those that end are
kept if they are among the k best ended ones, and the k best of the others go on. The search ends when no beam can
become better than the worst ended sequence. (Hugging Face divides by length^alpha, and lets a continuation end only if
it is among the k best, not 2k.)
"""

from typing import NamedTuple

import tensorflow as tf

from switch_tf.decoding.cached_step import END_OF_SEQUENCE, Decoded, DecodingStep, written_at
from switch_tf.layers.attention import MASKED, KeyValues
from switch_tf.partitioning import axes

# Scores below are of hypotheses that do not exist: beams before the first position, and masked tokens.
_NONE = MASKED / 2


class Beams(NamedTuple):
    """k hypotheses for each sequence, the best first.

    tokens: int32 [B, k, T].
    scores: float32 [B, k]; below `_NONE` where there is none.
    """

    tokens: tf.Tensor
    scores: tf.Tensor


class _State(NamedTuple):
    """What a step of the search hands to the next.

    position: int32 scalar.
    last: int32 [B, k], the last token of each hypothesis.
    alive: hypotheses that have not ended, by their log probabilities.
    ended: those that have, by their scores.
    ancestors: int32 [B, k, T]; see `EncoderDecoder.decode_step`.
    caches: of the decoder.
    """

    position: tf.Tensor
    last: tf.Tensor
    alive: Beams
    ended: Beams
    ancestors: tf.Tensor
    caches: list[KeyValues]


def length_penalty(length: tf.Tensor, alpha: float) -> tf.Tensor:
    """Returns ((5 + length) / 6)^alpha in float32."""
    return ((5.0 + tf.cast(length, tf.float32)) / 6.0) ** alpha


def beam_search(step: DecodingStep, alpha: float = 0.6, end_of_sequence: int = END_OF_SEQUENCE) -> Decoded:
    """Searches for the sequences with the highest scores.

    Args:
      step: with k > 1 rows.
      alpha: of the length penalty; 0: log probabilities alone.
      end_of_sequence: the id that ends a sequence.

    Returns:
      k sequences for each input, the best first: those that have ended or, where none has within the maximum length,
      those that are alive. (T5X gives the latter their log probabilities as scores, here all have a length penalty.)
    """
    max_penalty = length_penalty(step.num_free(step.max_length), alpha)

    def is_unfinished(state: _State) -> tf.Tensor:
        best_to_come = state.alive.scores[:, :1] / max_penalty
        may_improve = best_to_come >= state.ended.scores[:, -1:]
        return tf.reduce_any(tf.logical_and(may_improve, tf.expand_dims(step.has_input, 1)))

    def body(state: _State) -> tuple[_State]:
        logits, caches = step(state.last, state.caches, state.position, state.ancestors)
        log_probabilities = tf.nn.log_softmax(logits) + tf.expand_dims(state.alive.scores, 2)
        scores, parents, tokens = _best_continuations(log_probabilities, 2 * step.rows)
        sequences = written_at(_rows_at(state.alive.tokens, parents), tokens, state.position)
        is_end = tf.equal(tokens, end_of_sequence)

        penalty = length_penalty(step.num_free(state.position + 1), alpha)
        is_real_end = tf.logical_and(is_end, scores > _NONE)
        new = Beams(sequences, tf.where(is_real_end, scores / penalty, MASKED))
        both = Beams(*(tf.concat(pair, axis=1) for pair in zip(state.ended, new)))
        ended, _ = _best(both, step.rows)
        alive, chosen = _best(Beams(sequences, tf.where(is_end, MASKED, scores)), step.rows)

        ancestors = _rows_at(state.ancestors, _at(parents, chosen))
        return (
            _State(
                state.position + 1,
                _at(tokens, chosen),
                alive,
                ended,
                _decoded_in_own_row(ancestors, state.position + 1),
                caches,
            ),
        )

    (end,) = tf.while_loop(is_unfinished, body, (_start(step),), maximum_iterations=step.max_length)
    has_ended = end.ended.scores[:, :1] > _NONE
    tokens = tf.where(tf.expand_dims(has_ended, 2), end.ended.tokens, end.alive.tokens)
    scores = tf.where(has_ended, end.ended.scores, end.alive.scores / max_penalty)
    has_input = tf.expand_dims(step.has_input, 1)
    return Decoded(tf.where(tf.expand_dims(has_input, 2), tokens, 0), tf.where(has_input, scores, 0.0))


def _start(step: DecodingStep) -> _State:
    shape = [step.batch, step.rows]
    empty = tf.zeros([*shape, step.max_length], tf.int32)
    # All beams are equal at first: only the first one goes on.
    is_first = tf.one_hot(tf.zeros([step.batch], tf.int32), step.rows)
    return _State(
        position=tf.constant(0),
        last=tf.zeros(shape, tf.int32),
        alive=Beams(empty, (1.0 - is_first) * MASKED),
        ended=Beams(empty, tf.fill(shape, float(MASKED))),
        ancestors=_decoded_in_own_row(empty, tf.constant(0)),
        caches=step.start,
    )


def _decoded_in_own_row(ancestors: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Notes that every hypothesis decodes `position` in the row where it stands."""
    _, rows, length = ancestors.shape
    is_here = tf.reshape(tf.one_hot(position, length, dtype=tf.int32), [1, 1, length])
    return ancestors * (1 - is_here) + tf.reshape(tf.range(rows), [1, rows, 1]) * is_here


def _best_continuations(log_probabilities: tf.Tensor, number: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Finds the best continuations of all beams: float32 [B, k, V] -> log probabilities, beams, tokens, all [B, n].

    First within each beam, so that what is sorted in the end is small.
    """
    batch, rows, vocab_size = log_probabilities.shape
    # Sorting needs the whole vocabulary.
    log_probabilities = axes.constrain(log_probabilities, (axes.BATCH, None, None))
    of_each = min(number, vocab_size)
    values, tokens = tf.math.top_k(log_probabilities, of_each)
    scores, places = tf.math.top_k(tf.reshape(values, [batch, rows * of_each]), number)
    return scores, places // of_each, _at(tf.reshape(tokens, [batch, rows * of_each]), places)


def _best(beams: Beams, number: int) -> tuple[Beams, tf.Tensor]:
    """Returns the hypotheses with the highest scores, and where they were: int32 [B, number]."""
    scores, places = tf.math.top_k(beams.scores, number)
    return Beams(_rows_at(beams.tokens, places), scores), places


def _at(values: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Takes int32 [B, n] at places int32 [B, m]: [B, m]."""
    return tf.squeeze(_rows_at(tf.expand_dims(values, 2), places), 2)


def _rows_at(rows: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Takes the rows of int32 [B, n, T] at places int32 [B, m]: [B, m, T].

    A sum over a one-hot mask instead of a gather, which would all-gather a sharded batch.
    """
    is_taken = tf.one_hot(places, rows.shape[1], dtype=tf.int32)
    return tf.reduce_sum(tf.expand_dims(is_taken, 3) * tf.expand_dims(rows, 1), axis=2)
