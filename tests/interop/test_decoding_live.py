"""Decoders against Hugging Face's `generate`: make test-all."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.decoding.decoder import decode
from switch_tf.decoding.settings import Decoding
from switch_tf.interop.huggingface import from_huggingface
from tests.support.live_models import KINDS

pytestmark = pytest.mark.slow
LENGTH = 24


class LengthPenalty(float):
    """T5's length penalty where Hugging Face computes `length ** length_penalty`."""

    def __rpow__(self, length: int) -> float:
        return ((5 + length) / 6) ** float(self)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="the [interop] extra is not installed")


@pytest.fixture(scope="module")
def references(torch):
    from tests.support import references

    return references


@functools.cache
def both(references, kind: str):
    """A random model of Hugging Face's that ends some sequences, ours with its weights, and inputs."""
    import torch

    model_type, settings = KINDS[kind]
    theirs = references.random_model(model_type, **settings)
    with torch.no_grad():
        theirs.shared.weight.mul_(0.3)  # Or each token would call for itself again, through the tied head.
        theirs.lm_head.weight[1] *= 2.5
    inputs = references.random_batch(" ".join(["right"] * 24))["encoder_input_tokens"]
    return theirs, from_huggingface(theirs), inputs


def generated(theirs, inputs, **settings):
    import torch

    tokens = torch.tensor(inputs).long()
    return theirs.generate(tokens, attention_mask=(tokens != 0).long(), max_new_tokens=LENGTH, **settings)


def without_fill(tokens: np.ndarray) -> np.ndarray:
    """Sequences with 0 after their end, where theirs repeat the end of sequence: the id 0 is no padding to them."""
    is_end = tokens == 1
    return np.where(np.cumsum(is_end, axis=-1) - is_end > 0, 0, tokens)


def ours_by(model, inputs, **settings):
    decoding = Decoding(**settings)
    run = tf.function(lambda tokens: decode(model, {"encoder_input_tokens": tokens}, decoding, LENGTH), autograph=False)
    tokens, scores = run(tf.constant(inputs))
    return tokens.numpy(), scores.numpy()


@pytest.fixture
def all_may_end(monkeypatch):
    """Lets each of the 2k continuations end, as in T5, not the k best alone."""
    from transformers.generation.utils import GenerationMixin

    original = GenerationMixin._update_finished_beams

    def changed(self, *, top_num_beam_mask, **arguments):
        return original(self, top_num_beam_mask=top_num_beam_mask | True, **arguments)

    monkeypatch.setattr(GenerationMixin, "_update_finished_beams", changed)


@pytest.mark.parametrize("kind", ["switch", "t5_1_1", "t5_1_0"])
@pytest.mark.parametrize(("num_beams", "alpha"), [(2, 0.0), (4, 0.6), (5, 1.0)])
def test_beams_equal_theirs(references, all_may_end, kind, num_beams, alpha):
    theirs, model, inputs = both(references, kind)
    found = generated(
        theirs,
        inputs,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        length_penalty=LengthPenalty(alpha),
        early_stopping="never",
        do_sample=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    expected = without_fill(found.sequences[:, 1:].numpy()).reshape(len(inputs), num_beams, -1)
    scores = found.sequences_scores.numpy().reshape(len(inputs), num_beams)
    tokens, our_scores = ours_by(model, inputs, decoder="beam", num_beams=num_beams, length_penalty=alpha)
    compared = 0
    for row in range(len(inputs)):
        # Where theirs counts a beam that the maximum length has cut as ended, the definitions differ.
        if not np.all(np.any(expected[row] == 1, axis=-1)):
            continue
        compared += 1
        np.testing.assert_array_equal(tokens[row, :, : expected.shape[-1]], expected[row])
        np.testing.assert_allclose(our_scores[row], scores[row], rtol=1e-4)
    assert compared >= 8


@pytest.mark.parametrize("kind", ["switch", "mt5"])
def test_beams_that_cannot_end_equal_theirs(references, kind):
    theirs, model, inputs = both(references, kind)
    no_token = 4000
    settings = {"num_beams": 4, "num_return_sequences": 4, "length_penalty": LengthPenalty(0.6), "do_sample": False}
    found = generated(theirs, inputs, eos_token_id=no_token, **settings)
    expected = found[:, 1:].numpy().reshape(len(inputs), 4, LENGTH)
    features = {"encoder_input_tokens": tf.constant(inputs)}
    run = tf.function(lambda: decode(model, features, Decoding(decoder="beam"), LENGTH, no_token), autograph=False)
    np.testing.assert_array_equal(run().tokens, expected)


def test_one_beam_and_forced_prefixes_equal_theirs(torch, references):
    theirs, model, inputs = both(references, "switch")
    expected = generated(theirs, inputs, num_beams=1, do_sample=False)[:, 1:].numpy()
    tokens, _ = ours_by(model, inputs, decoder="beam", num_beams=1)
    np.testing.assert_array_equal(tokens[:, 0, : expected.shape[1]], expected)

    prefix = np.array([[7, 9]] * len(inputs), np.int32)
    start = torch.tensor(np.pad(prefix, [(0, 0), (1, 0)])).long()
    ids = torch.tensor(inputs).long()
    expected = theirs.generate(
        ids, attention_mask=(ids != 0).long(), decoder_input_ids=start, max_new_tokens=10, do_sample=False
    )[:, 1:].numpy()
    features = {"encoder_input_tokens": tf.constant(inputs), "decoder_prefix_tokens": tf.constant(prefix)}
    ours = decode(model, features, Decoding(), 12).tokens.numpy()[:, 0]
    np.testing.assert_array_equal(ours[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("settings", [{"temperature": 0.8}, {"top_k": 4}, {"top_p": 0.7}, {"top_k": 9, "top_p": 0.9}])
def test_probabilities_of_draws_equal_theirs(torch, references, settings):
    """The filters that `generate` applies before it draws, on the same logits."""
    from transformers.generation import logits_process

    from switch_tf.decoding.sampling import filtered

    logits = np.random.default_rng(0).normal(size=[16, 48]).astype(np.float32) * 2
    theirs = torch.tensor(logits)
    for name, kind in (
        ("temperature", logits_process.TemperatureLogitsWarper),
        ("top_k", logits_process.TopKLogitsWarper),
        ("top_p", logits_process.TopPLogitsWarper),
    ):
        if name in settings:
            theirs = kind(settings[name])(None, theirs)
    ours = tf.nn.softmax(filtered(tf.constant(logits), Decoding(decoder="sample", **settings)))
    np.testing.assert_allclose(ours, theirs.softmax(-1), atol=1e-6)
