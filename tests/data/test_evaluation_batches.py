"""Evaluation batches: always the same, padded, kept in memory or read again."""

import numpy as np
import pytest

import tests.support.tiny_task  # noqa: F401 (registers tasks)
from switch_tf.data import evaluation_batches as module
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.errors import SettingError
from tasks import vocabularies

TASK = "tiny_span_corruption"
LENGTHS = {"inputs": 64, "targets": 16}


@pytest.fixture(scope="module", autouse=True)
def _vocabulary(tmp_path_factory) -> None:
    vocabularies.TrainedVocabulary(task=TASK, num_pieces=400).install(str(tmp_path_factory.mktemp("run")))


def assert_equal(ours: list[dict], theirs: list[dict]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_they_are_always_the_same_and_padded_to_one_shape():
    batches = evaluation_batches(TASK, LENGTHS, 7, None)
    first = list(batches)
    assert_equal(first, list(batches))
    assert_equal(first, list(evaluation_batches(TASK, LENGTHS, 7, None)))
    assert {batch["encoder_input_tokens"].shape for batch in first} == {(7, 64)}
    examples = sum(np.any(batch["decoder_target_tokens"] != 0, axis=1).sum() for batch in first)
    assert examples == sum(1 for _ in evaluation_batches(TASK, LENGTHS, 1, None))
    assert sum(1 for _ in evaluation_batches(TASK, LENGTHS, 1, 3)) == 3


def test_batches_that_are_large_are_read_again(monkeypatch):
    opened = []
    dataset = module.example_dataset
    monkeypatch.setattr(module, "example_dataset", lambda *a, **k: opened.append(1) or dataset(*a, **k))
    few = evaluation_batches(TASK, LENGTHS, 7, None)
    expected = list(few)
    list(few)
    assert len(opened) == 1
    size = sum(array.nbytes for batch in expected for array in batch.values())
    monkeypatch.setattr(module, "_KEPT_BYTES", size - 1)
    many = evaluation_batches(TASK, LENGTHS, 7, None)
    next(iter(many))  # Given up in the middle: nothing of it may be missing in the next.
    for _ in range(2):
        assert_equal(list(many), expected)
    assert many._kept is None and len(opened) == 1 + 3


def test_an_empty_split_is_refused():
    with pytest.raises(SettingError, match="yields no example in its split 'validation'"):
        evaluation_batches("empty_span_corruption", LENGTHS, 4, None)
