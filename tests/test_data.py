"""Batches: lengths, determinism, resumption, and what is refused."""

import numpy as np
import pytest
import seqio
import t5.data.preprocessors
import tensorflow as tf

import tests.tiny_task  # noqa: F401 (registers tasks)
from switch_tf import data
from switch_tf.errors import SettingError
from tasks import vocabularies

TASK = "tiny_span_corruption"
LENGTHS = {"inputs": 64, "targets": 16}


@pytest.fixture(scope="module", autouse=True)
def vocabulary(tmp_path_factory) -> seqio.Vocabulary:
    """A vocabulary of 400 pieces and 100 sentinels, trained on the task."""
    vocabularies.TrainedVocabulary(task=TASK, num_pieces=400).install(str(tmp_path_factory.mktemp("run")))
    return data.vocabulary_of(TASK)


def batches(seed: int, count: int) -> list[dict]:
    iterator = data.training_dataset(TASK, LENGTHS, 4, seed).as_numpy_iterator()
    return [next(iterator) for _ in range(count)]


def assert_equal(ours: list[dict], theirs: list[dict]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_span_corruption_lengths_of_t5():
    helper = t5.data.preprocessors.random_spans_helper
    settings = {"extra_tokens_per_span_inputs": 1, "extra_tokens_per_span_targets": 1}
    settings |= {"noise_density": 0.15, "mean_noise_span_length": 3.0}
    for inputs, raw, targets in ((512, 568, 114), (128, 141, 29), (1024, 1137, 229)):
        assert helper(inputs_length=inputs, **settings) == (raw, targets)


@pytest.mark.parametrize(("inputs", "targets"), [(512, 114), (128, 29), (64, 16)])
def test_examples_fill_their_lengths_and_end(inputs, targets, vocabulary):
    iterator = data.training_dataset(TASK, {"inputs": inputs, "targets": targets}, 4, 0).as_numpy_iterator()
    batch = next(iterator)
    assert batch["encoder_input_tokens"].shape == (4, inputs)
    assert batch["decoder_target_tokens"].shape == (4, targets)
    full = np.all(batch["encoder_input_tokens"] != 0, axis=1)
    assert full.sum() >= 3  # The end of a document may be shorter.
    for tokens in batch["encoder_input_tokens"][full]:
        assert tokens[-1] == vocabulary.eos_id
    # The targets begin with the first sentinel, <extra_id_0>, the highest id.
    np.testing.assert_array_equal(batch["decoder_target_tokens"][:, 0], vocabulary.vocab_size - 1)


def test_inputs_and_targets_together_are_the_text(vocabulary):
    """What span corruption takes out of the inputs stands in the targets, at its sentinel."""
    batch = batches(0, 1)[0]
    sentinels = range(vocabulary.vocab_size - 1, vocabulary.vocab_size - 101, -1)
    for inputs, targets in zip(batch["encoder_input_tokens"], batch["decoder_target_tokens"]):
        spans, sentinel = {}, None
        for token in targets[targets > 1]:
            if token in sentinels:
                sentinel = token
            spans.setdefault(sentinel, []).append(token)
        used = [token for token in inputs if token in sentinels]
        assert used == list(sentinels[: len(used)]) == list(spans)
        text = [t for token in inputs[inputs > 1] for t in (spans[token][1:] if token in spans else [token])]
        noise = sum(len(span) - 1 for span in spans.values())
        assert noise == pytest.approx(0.15 * len(text), abs=1)


def test_same_seed_same_batches_other_seed_others():
    first = batches(0, 5)
    assert_equal(first, batches(0, 5))
    assert not np.array_equal(first[0]["encoder_input_tokens"], batches(1, 1)[0]["encoder_input_tokens"])


def test_an_iterator_resumes_exactly_from_a_checkpoint(tmp_path):
    iterator = iter(data.training_dataset(TASK, LENGTHS, 4, 0))
    for _ in range(40):  # More than an epoch.
        next(iterator)
    path = tf.train.Checkpoint(iterator=iterator).write(str(tmp_path / "iterator"))
    expected = [tf.nest.map_structure(lambda t: t.numpy(), next(iterator)) for _ in range(5)]
    fresh = iter(data.training_dataset(TASK, LENGTHS, 4, 0))
    tf.train.Checkpoint(iterator=fresh).read(path).assert_consumed()
    assert_equal([tf.nest.map_structure(lambda t: t.numpy(), next(fresh)) for _ in range(5)], expected)


def test_evaluation_batches_are_always_the_same_and_padded_to_one_shape():
    first = data.evaluation_batches(TASK, LENGTHS, 7, None)
    assert_equal(first, data.evaluation_batches(TASK, LENGTHS, 7, None))
    assert {batch["encoder_input_tokens"].shape for batch in first} == {(7, 64)}
    examples = sum(np.any(batch["decoder_target_tokens"] != 0, axis=1).sum() for batch in first)
    by_one = data.evaluation_batches(TASK, LENGTHS, 1, None)
    assert examples == len(by_one)
    assert len(data.evaluation_batches(TASK, LENGTHS, 1, 3)) == 3


def test_an_empty_corpus_is_refused():
    dataset = data.training_dataset("empty_span_corruption", LENGTHS, 4, 0)
    with pytest.raises(SettingError, match="'empty_span_corruption' yields no example in its split 'train'"):
        data.checked_iterator(dataset, "empty_span_corruption")
    with pytest.raises(SettingError, match="yields no example in its split 'validation'"):
        data.evaluation_batches("empty_span_corruption", LENGTHS, 4, None)


@pytest.mark.parametrize(
    ("task", "lengths", "split", "message"),
    [
        ("tiny_span_coruption", LENGTHS, "train", "not registered.*did you mean 'tiny_span_corruption'"),
        (TASK, {"inputs": 64}, "train", "TASK_FEATURE_LENGTHS.*names no length for targets"),
        (TASK, {"inputs": 512, "targets": 64}, "train", "TASK_FEATURE_LENGTHS.*114"),
        (TASK, LENGTHS, "test", "has no split 'test': it has train, validation"),
    ],
)
def test_wrong_settings_are_refused(task, lengths, split, message):
    with pytest.raises(SettingError, match=message):
        data.training_dataset(task, lengths, 4, 0, split)


def test_a_vocabulary_larger_than_the_model_is_refused():
    data.check_vocabulary(TASK, 500)
    with pytest.raises(SettingError, match=r"VOCAB_SIZE = 499 is too small.*500 ids.*VOCAB_SIZE = 512"):
        data.check_vocabulary(TASK, 499)
