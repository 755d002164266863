"""Checkpoints are written while training goes on, by many processes, and hold the state at their step."""

import dataclasses
import itertools
import json
import os
import pathlib
import threading

import gin
import numpy as np
import pytest
import tensorflow as tf

import tasks.multilingual  # noqa: F401 (registers tasks)
import tests.support.tiny_task  # noqa: F401 (registers tasks)
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints import writer as saving
from switch_tf.checkpoints.folder import CheckpointFolder
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.checkpoints.tensor_bundle import Shard
from switch_tf.checkpoints.writer import CheckpointWriter
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.partitioning.axes import ShardIndex
from switch_tf.partitioning.engine import SingleEngine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.loop import make_update
from switch_tf.runs.run import Run
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from tasks.vocabularies import TrainedVocabulary

TASK = "tiny_span_corruption"
MANIFEST = Manifest(step=10)


class HalvesEngine(SingleEngine):
    """One of two "processes" (threads, in these tests), each with its half of every table and of the batch."""

    def __init__(self, process_index: int, barrier: threading.Barrier):
        super().__init__(Layout.parse("data:2", "batch:data"), processes=Processes(("a:1", "b:1"), process_index))
        self._barrier = barrier

    def barrier(self) -> None:
        self._barrier.wait(timeout=30)

    def shards(self, variable):
        shape = tuple(variable.shape)
        if not shape or shape[0] % 2:
            return super().shards(variable) if self.process_index == 0 else []
        block = ShardIndex((self.process_index * shape[0] // 2, *(0 for _ in shape[1:])), (shape[0] // 2, *shape[1:]))
        return [(block, variable.numpy()[block.start[0] : block.start[0] + block.shape[0]].copy())]

    def load(self, variable, read):
        """Reads half of the columns at a time: blocks that nobody wrote as such."""
        *rows, columns = tuple(variable.shape) or (1,)
        if columns % 2:
            super().load(variable, read)
            return
        starts = [(*(0 for _ in rows), column) for column in (0, columns // 2)]
        variable.assign(np.concatenate([read(ShardIndex(start, (*rows, columns // 2))) for start in starts], axis=-1))


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory) -> str:
    """The model directory that keeps the vocabulary."""
    folder = tmp_path_factory.mktemp("vocabulary")
    TrainedVocabulary(task=TASK, num_pieces=400).install(str(folder))
    return str(folder)


@pytest.fixture
def experiment(tiny_config, vocabulary, tmp_path) -> Experiment:
    config = ModelConfig(**{**vars(tiny_config), "vocab_size": 512})
    return Experiment(config, str(tmp_path / "run"), TASK, {"inputs": 32, "targets": 10}, 8, num_data_shards=2)


def run_of(experiment: Experiment, engine: SingleEngine | None = None) -> Run:
    return Run(experiment, Adafactor(learning_rate=0.1), engine=engine)


def values_of(run: Run) -> dict[str, np.ndarray]:
    return {name: np.array(variable.numpy()) for name, variable in run.variables().items()}


def assert_equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


@pytest.fixture
def blocked(monkeypatch) -> threading.Event:
    """An event without which nothing is written."""
    event, write_shards = threading.Event(), tensor_bundle.write_shards

    def wait_and_write(*arguments):
        assert event.wait(timeout=60)
        write_shards(*arguments)

    monkeypatch.setattr(tensor_bundle, "write_shards", wait_and_write)
    return event


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_the_state_at_its_step(experiment, blocked):
    run = run_of(experiment)
    batches = experiment.training_batches(run.engine)
    update = make_update(run, Objective(), 1)
    update(run.engine.feed(next(batches)))
    saved = values_of(run)
    run.save(batches)
    following = [next(batches) for _ in range(3)]
    for batch in following:
        update(run.engine.feed(batch))
    run.writer.check()
    assert run.checkpoints.latest() is None
    assert int(run.step.numpy()) == 4
    blocked.set()
    run.writer.wait()
    assert run.checkpoints.steps() == [1]

    resumed = run_of(experiment)
    fresh = experiment.training_batches(resumed.engine)
    resumed.restore(1, fresh)
    assert_equal(values_of(resumed), saved)
    assert not any(np.array_equal(values, saved[name]) for name, values in values_of(run).items())
    for batch in following:
        assert_equal(next(fresh), batch)


def test_the_next_checkpoint_waits_for_the_one_before(experiment, blocked):
    run = run_of(experiment)
    batches = experiment.training_batches(run.engine)
    run.save(batches)
    run.step.assign_add(1)
    second = threading.Thread(target=run.save, args=(batches,))
    second.start()
    second.join(timeout=0.2)
    assert second.is_alive()
    blocked.set()
    second.join()
    run.writer.finish()
    assert run.checkpoints.steps() == [0, 1]


def test_an_error_of_the_thread_is_raised_at_the_next_look_and_the_rest_is_left_alone(tmp_path, monkeypatch):
    folder = CheckpointFolder(str(tmp_path), keep=1)
    writer = CheckpointWriter(folder, SingleEngine(Layout({}, {})))
    writer.start(10, [Shard("a", "", np.ones(3))], MANIFEST)
    writer.wait()

    def fail(prefix, process, shards):
        raise tf.errors.ResourceExhaustedError(None, None, "state.data; No space left on device")

    monkeypatch.setattr(tensor_bundle, "write_shards", fail)
    writer.start(20, [Shard("a", "", np.ones(3))], MANIFEST)
    with pytest.raises(SettingError, match=r"No space left on device.*checkpoint of step 10 is safe.*Free some space"):
        for _ in iter(lambda: threading.Event().wait(0.01), True):
            writer.check()
    assert folder.steps() == [10] and not os.path.exists(folder.path(20))
    writer.check()  # Once is enough.


def test_two_processes_write_what_one_reads_and_back(experiment):
    one, barrier = run_of(experiment), threading.Barrier(2)
    batches = experiment.training_batches(one.engine)
    # Of the same weights, each process saves its half.
    two = [run_of(experiment, HalvesEngine(process, barrier)) for process in range(2)]
    halves = [experiment.training_batches(run.engine) for run in two]
    expected = [next(batches) for _ in range(6)]
    weights = values_of(one)

    def save(process: int) -> None:
        two[process].save(halves[process])
        two[process].writer.finish()

    assert_rows([[next(half) for _ in range(2)] for half in halves], expected[:2])
    threads = [threading.Thread(target=save, args=(process,)) for process in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert one.checkpoints.steps() == [0]
    assert sorted(os.listdir(one.checkpoints.path(0))) == [
        "manifest.json",
        "state.data-00000-of-00002",
        "state.data-00001-of-00002",
        "state.index",
    ]

    for variable in one.variables().values():
        variable.assign(tf.zeros_like(variable))
    one.restore(0, batches)
    assert_equal(values_of(one), weights)
    for batch in expected[2:4]:
        assert_equal(next(batches), batch)
    one.step.assign(5)
    one.save(batches)
    one.writer.finish()

    for run, half in zip(two, halves):
        for variable in run.variables().values():
            variable.assign(tf.zeros_like(variable))
        run.restore(5, half)
        assert_equal(values_of(run), values_of(one))
    assert_rows([[next(half) for _ in range(2)] for half in halves], expected[4:])


def assert_rows(parts: list[list[dict]], whole: list[dict]) -> None:
    for first, second, batch in zip(*parts, whole, strict=True):
        assert_equal({name: np.concatenate([first[name], second[name]]) for name in first}, batch)


def test_a_process_that_does_not_write_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "_TIMEOUT_SECONDS", 0.2)
    folder = CheckpointFolder(str(tmp_path), keep=1)
    engine = SingleEngine(Layout({}, {}), processes=Processes(("a:1", "b:1", "c:1"), 0))
    writer = CheckpointWriter(folder, engine)
    writer.start(10, [Shard("a", "", np.ones(3))], MANIFEST)
    tensor_bundle.write_shards(folder.prefix(10), 1, [])
    with pytest.raises(SettingError, match="step_00000010 lacks the shards of process 2"):
        writer.wait()
    assert folder.latest() is None


class NoBatches:
    """Training data that nobody takes."""

    def positions(self) -> dict[str, tf.Tensor]:
        return {}


@pytest.fixture
def saved(experiment) -> Run:
    """A run on some of mC4's languages, and its checkpoint of step 0."""
    gin.bind_parameter("Languages.codes", ["de", "sw"])
    gin.bind_parameter("power_law.alpha", 0.3)
    run = run_of(dataclasses.replace(experiment, mixture_or_task="mc4"))
    run.save(NoBatches())
    run.writer.finish()
    run.check(0)
    return run


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("Languages.codes = None", r"LANGUAGES = \['de', 'sw'\], not None"),
        ("power_law.alpha = 0.5", "ALPHA = 0.3, not 0.5"),
        ("Languages.block_size = 4", "BLOCK_SIZE = 16, not 4"),
        ("Languages.shares = @unimax\nunimax.budget = 10", "SHARES = 'power_law', not 'unimax'"),
    ],
)
def test_other_settings_of_the_data_are_refused(saved, binding, message):
    gin.parse_config(binding)
    changed = run_of(saved.experiment)
    with pytest.raises(SettingError, match=f"holds a run with {message}: set it back, or use another MODEL_DIR"):
        changed.check(0)


def test_a_checkpoint_without_settings_of_the_data_is_read(saved):
    path = pathlib.Path(saved.checkpoints.path(0)) / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["data"], manifest["digest"]
    path.write_text(json.dumps(manifest))
    gin.parse_config("Languages.block_size = 4")
    run_of(saved.experiment).check(0)


def test_evaluation_reads_no_slots(experiment):
    run = run_of(experiment)
    run.save(experiment.training_batches(run.engine))
    run.writer.finish()
    weights = Run(experiment)
    weights.restore(0)
    assert not any("/slots/" in name for name in weights.variables())
    for name, variable in itertools.islice(weights.variables().items(), 5):
        np.testing.assert_array_equal(variable, run.variables()[name])
