"""Decoders against plain Python without caches, exhaustive search, and the model's own probabilities."""

import dataclasses
import functools

import gin
import numpy as np
import pytest
import tensorflow as tf

from switch_tf.decoding.decoder import decode
from switch_tf.decoding.greedy import greedy
from switch_tf.decoding.sampling import filtered
from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from tests.support import search
from tests.support.features import random_features

LENGTH = 7


def built(config: ModelConfig, sharpness: float = 2.0) -> EncoderDecoder:
    """A model whose probabilities differ, and that ends about every fourth sequence it starts."""
    model = EncoderDecoder(dataclasses.replace(config, tied_logits=False, eval_capacity_factor=None), seed=2)
    model.build()
    model.logits.kernel.assign(model.logits.kernel * sharpness)
    return model


@pytest.fixture(scope="module")
def model(tiny_config):
    return built(dataclasses.replace(tiny_config, vocab_size=12))


@pytest.fixture(scope="module")
def next_token_of(model):
    return search.teacher_forcing(model, LENGTH)


@functools.cache
def compiled(model, settings, length):
    return tf.function(lambda features: decode(model, features, settings, length), autograph=False)


def decoded(model, features, length=LENGTH, **settings):
    run = compiled(model, Decoding(**settings), length)
    tokens, scores = run({name: tf.constant(array) for name, array in features.items()})
    return tokens.numpy(), scores.numpy()


@functools.cache
def inputs(rows: int = 4) -> dict[str, np.ndarray]:
    return {"encoder_input_tokens": random_features(batch=rows, inputs=9, vocab_size=12)["encoder_input_tokens"]}


def padded(tokens, length=LENGTH):
    return [*tokens, *[0] * (length - len(tokens))]


def assert_found(tokens, scores, expected):
    for row, row_scores, pairs in zip(tokens, scores, expected):
        assert row[: len(pairs)].tolist() == [padded(sequence, tokens.shape[-1]) for sequence, _ in pairs]
        np.testing.assert_allclose(row_scores[: len(pairs)], [score for _, score in pairs], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("num_beams", "alpha"), [(2, 0.6), (3, 0.0), (4, 1.0)])
def test_beams_are_those_of_a_search_without_caches(model, next_token_of, num_beams, alpha):
    found = decoded(model, inputs(), decoder="beam", num_beams=num_beams, length_penalty=alpha)
    expected = [
        search.beam_search(next_token_of(row), num_beams, LENGTH, alpha) for row in inputs()["encoder_input_tokens"]
    ]
    assert_found(*found, expected)
    assert any(sequence[-1] == search.END for pairs in expected for sequence, _ in pairs)


def test_many_beams_find_the_best_of_all_sequences(model, next_token_of):
    found = decoded(model, inputs(), length=3, decoder="beam", num_beams=121)
    for row, tokens, scores in zip(inputs()["encoder_input_tokens"], *found):
        best = search.best_of_all(next_token_of(row), 12, 3, 0.6)[:20]
        assert_found(tokens[:1].reshape(1, 1, -1), scores[:1].reshape(1, 1), [best[:1]])
        assert_found(tokens.reshape(1, 121, -1), scores.reshape(1, 121), [best])


def test_beams_that_do_not_end_are_returned_where_none_does(model, next_token_of):
    kernel = model.logits.kernel
    before = kernel.numpy()
    kernel.assign(np.where(np.arange(12) == search.END, 0.0, before))  # Logit 0: never among the best.
    kernel.assign(kernel * 3.0)
    found = decoded(model, inputs(), decoder="beam", num_beams=2)
    expected = [search.beam_search(next_token_of(row), 2, LENGTH, 0.6) for row in inputs()["encoder_input_tokens"]]
    kernel.assign(before)
    assert any(sequence[-1] != search.END for pairs in expected for sequence, _ in pairs)
    assert_found(*found, expected)


def test_one_beam_is_greedy_and_greedy_takes_the_most_probable(model, next_token_of):
    by_beam = decoded(model, inputs(), decoder="beam", num_beams=1)
    tokens, scores = decoded(model, inputs())
    np.testing.assert_array_equal(by_beam[0], tokens)
    np.testing.assert_array_equal(tokens[:, 0], greedy(model, tf.constant(inputs()["encoder_input_tokens"]), LENGTH))
    for row, sequence, score in zip(inputs()["encoder_input_tokens"], tokens[:, 0].tolist(), scores[:, 0]):
        next_token = next_token_of(row)
        length = sequence.index(search.END) + 1 if search.END in sequence else LENGTH
        for position in range(length):
            assert sequence[position] == np.argmax(next_token(tuple(sequence[:position])))
        assert not any(sequence[length:])
        np.testing.assert_allclose(score, search.likelihood(next_token, sequence[:length]), rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"decoder": "beam", "num_beams": 3}, {"decoder": "sample", "num_samples": 3}])
def test_nothing_depends_on_the_rest_of_the_batch(model, settings):
    features = inputs() | {"example_numbers": np.arange(4, dtype=np.int32).reshape(4, 1)}
    together = decoded(model, features, **settings)
    for row in range(4):
        # With rows of padding, which are decoded to nothing.
        alone = {name: np.pad(array[row : row + 1], [(0, 2), (0, 0)]) for name, array in features.items()}
        tokens, scores = decoded(model, alone, **settings)
        np.testing.assert_array_equal(tokens[0], together[0][row])
        np.testing.assert_allclose(scores[0], together[1][row], rtol=1e-4)
        assert not tokens[1:].any() and not scores[1:].any()


def test_prefixes_are_forced_and_do_not_count(model, next_token_of):
    prefixes = np.array([[5, 7, 3], [4, 0, 0], [0, 0, 0], [9, 9, 0]], np.int32)
    features = inputs() | {"decoder_prefix_tokens": prefixes}
    given = [tuple(token for token in prefix if token) for prefix in prefixes.tolist()]
    rows = inputs()["encoder_input_tokens"]
    expected = [search.beam_search(next_token_of(row), 3, LENGTH, 0.6, prefix) for row, prefix in zip(rows, given)]
    assert_found(*decoded(model, features, decoder="beam", num_beams=3), expected)
    tokens, scores = decoded(model, features)
    for row, prefix, sequence, score in zip(rows, given, tokens[:, 0].tolist(), scores[:, 0]):
        assert tuple(sequence[: len(prefix)]) == prefix
        next_token = next_token_of(row)
        sequence = [token for token in sequence if token]
        free = search.likelihood(next_token, sequence) - search.likelihood(next_token, prefix)
        np.testing.assert_allclose(score, free, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [({}, 12), ({"temperature": 0.7}, 12), ({"top_k": 3}, 3), ({"top_p": 0.8, "temperature": 1.5}, None)],
)
def test_draws_have_the_probabilities_of_the_model(model, next_token_of, settings, allowed):
    number = 10_000
    row = inputs()["encoder_input_tokens"][:1]
    tokens, _ = decoded(
        model, {"encoder_input_tokens": row}, length=2, decoder="sample", num_samples=number, seed=5, **settings
    )
    next_token = next_token_of(row[0])

    def probabilities(tokens: tuple[int, ...]) -> np.ndarray:
        """Worked out from the definitions, in numpy."""
        scaled = np.exp(next_token(tokens) / settings.get("temperature", 1.0))
        scaled /= scaled.sum()
        order = np.argsort(-scaled)
        kept = settings.get("top_k", 12)
        if "top_p" in settings:
            kept = 1 + int(np.sum(np.cumsum(scaled[order]) < settings["top_p"]))
        chosen = np.zeros(12)
        chosen[order[:kept]] = scaled[order[:kept]]
        return chosen / chosen.sum()

    first = probabilities(())
    if allowed is not None:
        assert np.count_nonzero(first) == allowed
    expected = {}
    for token in np.flatnonzero(first).tolist():
        if token == search.END:
            expected[token, 0] = first[token]
            continue
        for second, probability in enumerate(probabilities((token,)).tolist()):
            expected[token, second] = first[token] * probability
    pairs, counts = np.unique(tokens[0], axis=0, return_counts=True)
    counts = {tuple(pair): count for pair, count in zip(pairs.tolist(), counts.tolist())}
    assert counts.keys() <= {pair for pair, probability in expected.items() if probability > 0}
    for pair, probability in expected.items():
        error = np.sqrt(probability * (1 - probability) / number)
        # A count below 1 in 10,000 is not normal: one draw is allowed.
        assert abs(counts.get(pair, 0) / number - probability) <= 4 * error + 1 / number, pair


def test_draws_repeat_by_their_seed(model):
    settings = {"decoder": "sample", "num_samples": 3}
    first, again, other = (decoded(model, inputs(), seed=seed, length=3, **settings)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other) and len(np.unique(first[0], axis=0)) > 1


def test_of_equal_logits_top_p_keeps_at_least_the_best():
    logits = tf.constant([[4.0, 1.0, 1.0, 1.0]])
    kept = filtered(logits, Decoding(decoder="sample", top_p=0.01)).numpy()
    assert (kept > -1e8).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"decoder": "beams"}, "DECODER = 'beams' is unknown; choose one of greedy, sample, beam"),
        ({"num_beams": 0}, "NUM_BEAMS = 0"),
        ({"temperature": 0.0}, "TEMPERATURE = 0.0 must be above 0"),
        ({"top_p": 1.5}, "TOP_P = 1.5"),
        ({"top_k": 0}, "TOP_K = 0"),
        ({"length_penalty": -1.0}, "LENGTH_PENALTY"),
        ({"max_length": 0}, "MAX_DECODE_LENGTH = 0"),
        ({"top_k": "5"}, "Decoding.top_k"),
    ],
)
def test_settings_that_make_no_sense_are_errors(settings, sentence):
    gin.bind_parameter("Decoding.seed", 3)
    assert Decoding().seed == 3
    with pytest.raises(SettingError, match=sentence):
        Decoding(**settings)
