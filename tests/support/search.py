"""Decoding in plain Python, one input at a time and without caches, from the definitions: what decoders must find."""

import functools
import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

END = 1
# Log probabilities of the next token, float64 [V], after the tokens of a target.
NextToken = Callable[[tuple[int, ...]], np.ndarray]


def teacher_forcing(model, length: int) -> Callable[[np.ndarray], NextToken]:
    """Makes next_token(inputs, int32 [L]): the model's predictions for one input, by teacher forcing."""

    @tf.function(autograph=False)
    def all_logits(inputs: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        return model({"encoder_input_tokens": inputs, "decoder_input_tokens": tokens})

    def of_input(inputs: np.ndarray) -> NextToken:
        @functools.cache
        def next_token(tokens: tuple[int, ...]) -> np.ndarray:
            given = np.zeros([1, length], np.int32)
            given[0, 1 : len(tokens) + 1] = tokens
            logits = all_logits(tf.constant(inputs.reshape(1, -1)), tf.constant(given)).numpy()[0, len(tokens)]
            return logits - np.logaddexp.reduce(logits.astype(np.float64))

        return next_token

    return of_input


def likelihood(next_token: NextToken, tokens: Iterable[int]) -> float:
    """The log probability of a sequence."""
    tokens = tuple(tokens)
    return float(sum(next_token(tokens[:index])[token] for index, token in enumerate(tokens)))


def penalty(length: int, alpha: float) -> float:
    """T5's length penalty."""
    return math.pow((5 + length) / 6, alpha)


def beam_search(
    next_token: NextToken, num_beams: int, length: int, alpha: float, prefix: tuple[int, ...] = ()
) -> list[tuple[tuple[int, ...], float]]:
    """The sequences that T5's beam search finds with their scores, best first, without its stopping rule."""
    alive, ended = [(0.0, prefix)], []
    for number in range(1, length - len(prefix) + 1):
        continuations = [
            (score + value, (*tokens, token))
            for score, tokens in alive
            for token, value in enumerate(next_token(tokens).tolist())
        ]
        continuations = sorted(continuations, reverse=True)[: 2 * num_beams]
        ended += [(score / penalty(number, alpha), tokens) for score, tokens in continuations if tokens[-1] == END]
        ended = sorted(ended, reverse=True)[:num_beams]
        alive = [pair for pair in continuations if pair[1][-1] != END][:num_beams]
    found = ended or [(score / penalty(length - len(prefix), alpha), tokens) for score, tokens in alive]
    return [(tokens, score) for score, tokens in found]


def best_of_all(
    next_token: NextToken, vocab_size: int, length: int, alpha: float
) -> list[tuple[tuple[int, ...], float]]:
    """All sequences that end within a length with their scores, best first."""
    others = [token for token in range(vocab_size) if token != END]
    bodies = itertools.chain.from_iterable(itertools.product(others, repeat=number) for number in range(length))
    scored = [(likelihood(next_token, (*body, END)) / penalty(len(body) + 1, alpha), (*body, END)) for body in bodies]
    return [(tokens, score) for score, tokens in sorted(scored, reverse=True)]
