"""Training batches: lengths, determinism, resumption, and what is refused."""

import itertools
import subprocess
import sys
import time

import numpy as np
import pytest
import seqio
import t5.data.preprocessors
import tensorflow as tf

import tasks.python_docs  # noqa: F401 (registers a task)
import tests.support.tiny_task  # noqa: F401 (registers tasks)
from switch_tf import compat
from switch_tf.data import training_batches
from switch_tf.data.task_lookup import find_task, vocabulary_of
from switch_tf.data.training_batches import TrainingBatches, training_dataset
from switch_tf.errors import SettingError
from tasks import vocabularies
from tests.support.launch import ROOT

TASK = "tiny_span_corruption"
LENGTHS = {"inputs": 64, "targets": 16}


@pytest.fixture(scope="module", autouse=True)
def vocabulary(tmp_path_factory) -> seqio.Vocabulary:
    """A vocabulary of 400 pieces and 100 sentinels, trained on the task."""
    vocabularies.TrainedVocabulary(task=TASK, num_pieces=400).install(str(tmp_path_factory.mktemp("run")))
    return vocabulary_of(TASK)


def batches(seed: int, count: int) -> list[dict]:
    iterator = training_dataset(TASK, LENGTHS, 4, seed).as_numpy_iterator()
    return [next(iterator) for _ in range(count)]


def assert_equal(ours: list[dict], theirs: list[dict]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_without_the_autotuner_positions_are_the_same():
    """TensorFlow's default is to tune, which makes the deletion of an iterator wait."""
    tuned = tf.data.Options()
    tuned.autotune.enabled = True
    # Two datasets: the iterators of one share its random generators.
    ours, theirs = (training_dataset(TASK, LENGTHS, 4, 0) for _ in range(2))
    assert ours.options().autotune.enabled is False
    ours, theirs = iter(ours), iter(theirs.with_options(tuned))
    next(theirs)
    compat.restore_iterator(ours, compat.iterator_position(theirs))
    assert_equal([next(ours)], [next(theirs)])


def test_span_corruption_lengths_of_t5():
    helper = t5.data.preprocessors.random_spans_helper
    settings = {"extra_tokens_per_span_inputs": 1, "extra_tokens_per_span_targets": 1}
    settings |= {"noise_density": 0.15, "mean_noise_span_length": 3.0}
    for inputs, raw, targets in ((512, 568, 114), (128, 141, 29), (1024, 1137, 229)):
        assert helper(inputs_length=inputs, **settings) == (raw, targets)


@pytest.mark.parametrize(("inputs", "targets"), [(512, 114), (128, 29), (64, 16)])
def test_examples_fill_their_lengths_and_end(inputs, targets, vocabulary):
    iterator = training_dataset(TASK, {"inputs": inputs, "targets": targets}, 4, 0).as_numpy_iterator()
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


def streams(num_shards: int, rows: list[slice] | None = None, process: int = 0) -> TrainingBatches:
    return TrainingBatches(TASK, LENGTHS, 4, 0, num_shards, rows, process)


HALVES = [slice(0, 2), slice(2, 4)]


@pytest.mark.parametrize("num_shards", [1, 2])
def test_positions_resume_exactly(num_shards):
    first = streams(num_shards)
    for _ in range(40):  # More than an epoch.
        next(first)
    positions = first.positions()
    assert list(positions) == [f"data/stream_{stream:05d}" for stream in range(num_shards)]
    expected = [next(first) for _ in range(5)]
    fresh = streams(num_shards)
    fresh.restore(positions.__getitem__)
    assert_equal([next(fresh) for _ in range(5)], expected)


def test_one_stream_is_the_dataset():
    one = streams(1)
    assert_equal([next(one) for _ in range(5)], batches(0, 5))


@pytest.mark.parametrize("num_shards", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_two_processes_see_the_batches_of_one(num_shards):
    one, two = streams(num_shards), [streams(num_shards, HALVES, process) for process in range(2)]

    def joined() -> dict:
        parts = [next(process) for process in two]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    assert_equal([joined() for _ in range(3)], [next(one) for _ in range(3)])
    saved_by_one, saved_by_two = one.positions(), [process.positions() for process in two]
    assert not saved_by_two[0].keys() & saved_by_two[1].keys()
    expected = [next(one) for _ in range(3)]
    for process in two:
        process.restore(saved_by_one.__getitem__)
    assert_equal([joined() for _ in range(3)], expected)
    one.restore({**saved_by_two[0], **saved_by_two[1]}.__getitem__)
    assert_equal([next(one) for _ in range(3)], expected)


def test_processes_with_the_same_rows_see_the_same_and_one_saves():
    rows = [slice(0, 2), slice(0, 2), slice(2, 4), slice(2, 4)]
    processes = [streams(2, rows, process) for process in range(4)]
    first, same, other, _ = [next(process) for process in processes]
    assert_equal([first], [same])
    assert not np.array_equal(first["encoder_input_tokens"], other["encoder_input_tokens"])
    saved = [list(process.positions()) for process in processes]
    assert saved == [["data/stream_00000"], [], ["data/stream_00001"], []]


def test_a_process_builds_its_own_streams_alone(monkeypatch):
    built = []
    monkeypatch.setattr(
        training_batches,
        "training_dataset",
        lambda *names, shard, **options: built.append(shard.index) or training_dataset(*names, shard=shard, **options),
    )
    streams(4, HALVES, 1)
    assert built == [2, 3]


@pytest.mark.parametrize("task", [TASK, pytest.param("python_docs_span_corruption", marks=pytest.mark.slow)])
def test_shards_together_are_every_document_once(task):
    """Both tasks have fewer files than shards: seqio gives each shard every num_shards-th document instead."""
    text = seqio.Feature(seqio.PassThroughVocabulary(0), dtype=tf.string, rank=0)
    raw = seqio.Task("raw", source=find_task(task).source, output_features={"text": text}, preprocessors=[])

    def documents(shard: seqio.ShardInfo | None) -> list[bytes]:
        dataset = raw.get_dataset(None, "train", shuffle=True, seed=1, shard_info=shard, num_epochs=1)
        return [example["text"] for example in dataset.as_numpy_iterator()]

    shards = [documents(seqio.ShardInfo(index, 3)) for index in range(3)]
    assert sorted(itertools.chain(*shards)) == sorted(documents(None))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_an_empty_corpus_is_refused():
    started = time.perf_counter()
    with pytest.raises(SettingError, match="'empty_span_corruption' yields no example in its split 'train': is its"):
        next(TrainingBatches("empty_span_corruption", LENGTHS, 4, 0))
    with pytest.raises(SettingError, match="split 'train' for one of NUM_DATA_SHARDS = 2"):
        next(TrainingBatches("empty_span_corruption", LENGTHS, 4, 0, num_shards=2))
    assert time.perf_counter() - started < 30  # It need not be waited for.


def test_data_that_a_filter_empties_in_every_epoch_are_refused(vocabulary):
    """In a process of its own: what waits for such data cannot be stopped, and must not keep a run from ending."""
    command = [sys.executable, "-m", "tests.programs.endlessly_empty", vocabulary.sentencepiece_model_file]
    finished = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=90)
    assert finished.returncode == 1
    assert "'blank' yields no example in its split 'train'" in finished.stderr


def test_slow_data_are_waited_for(monkeypatch):
    monkeypatch.setattr(training_batches, "_FIRST_BATCH_TIMEOUT", 0.0)
    one = streams(2)
    first = [next(one) for _ in range(3)]
    monkeypatch.undo()
    other = streams(2)
    assert_equal(first, [next(other) for _ in range(3)])


@pytest.mark.parametrize(
    ("task", "lengths", "split", "message"),
    [
        ("tiny_span_coruption", LENGTHS, "train", "not registered.*mean 'tiny_span_corruption'.*import tasks.all"),
        (TASK, {"inputs": 64}, "train", "TASK_FEATURE_LENGTHS.*names no length for targets"),
        (TASK, {"inputs": 512, "targets": 64}, "train", "TASK_FEATURE_LENGTHS.*114"),
        (TASK, LENGTHS, "test", "has no split 'test': it has train, validation"),
    ],
)
def test_wrong_settings_are_refused(task, lengths, split, message):
    with pytest.raises(SettingError, match=message):
        training_dataset(task, lengths, 4, 0, split)
