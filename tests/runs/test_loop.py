"""The loop calls its hooks in their order, writes every step once, and stops as it should."""

import dataclasses
import os
import signal

import pytest

from switch_tf import compat
from switch_tf.errors import SettingError
from switch_tf.runs.hooks import Hook, PeriodicHook, RecordMetrics, SaveCheckpoints, StopOnSignals
from switch_tf.runs.recorder import read_csv
from tests.support.fake_loop import make_loop, metrics_of, run_to_the_end


class Trace(Hook):
    """Notes what it is called for."""

    def __init__(self, notes: list):
        self.notes = notes

    def on_start(self, loop):
        self.notes.append("start")

    def after_step(self, loop):
        self.notes.append(loop.step)

    def on_exit(self, loop):
        self.notes.append("exit")


class At(Hook):
    """Does something after one step."""

    def __init__(self, step: int, action):
        self.step, self.action = step, action

    def after_step(self, loop):
        if loop.step == self.step:
            self.action(loop)


@pytest.fixture
def dense_config(tiny_config):
    return dataclasses.replace(tiny_config, num_experts=0)


def test_hooks_are_called_after_every_step_and_at_the_end(tmp_path, dense_config):
    notes = []
    loop = make_loop(tmp_path, dense_config, [Trace(notes)], steps=4, start=1)
    run_to_the_end(loop, lambda batch: metrics_of(2.0))
    assert notes == ["start", 2, 3, 4, "exit"]
    assert loop.is_last and loop.stopped_by is None


def test_hooks_end_when_an_update_fails(tmp_path, dense_config):
    notes = []

    def update(features):
        raise ZeroDivisionError

    loop = make_loop(tmp_path, dense_config, [Trace(notes)])
    with pytest.raises(ZeroDivisionError):
        loop.run_until_done(update)
    assert notes == ["start", "exit"]


def test_every_step_has_one_row_whatever_the_periods(tmp_path, dense_config):
    loop = make_loop(tmp_path, dense_config, [RecordMetrics(2), SaveCheckpoints(3)], steps=7)
    run_to_the_end(loop, lambda batch: metrics_of(batch - 1.0))
    rows = read_csv(str(tmp_path / "metrics.csv"))
    assert [(row["step"], float(row["loss"])) for row in rows] == [(str(step), step - 1.0) for step in range(1, 8)]
    assert list(loop.run.saved) == [3, 6, 7]  # The last step is saved whatever the period.


def test_a_hook_may_ask_for_a_checkpoint(tmp_path, dense_config):
    ask = At(2, lambda loop: setattr(loop, "checkpoint_requested", True))
    loop = make_loop(tmp_path, dense_config, [ask, SaveCheckpoints(4)], steps=5)
    run_to_the_end(loop, lambda batch: metrics_of(1.0))
    assert list(loop.run.saved) == [2, 4, 5]


def test_a_signal_ends_the_loop_with_a_checkpoint(tmp_path, dense_config):
    before = signal.getsignal(signal.SIGTERM)
    kill = At(2, lambda loop: os.kill(os.getpid(), signal.SIGTERM))
    loop = make_loop(tmp_path, dense_config, [kill, StopOnSignals(), RecordMetrics(10), SaveCheckpoints(10)])
    run_to_the_end(loop, lambda batch: metrics_of(1.0))
    assert (loop.stopped_by, loop.step, list(loop.run.saved)) == (signal.SIGTERM, 2, [2])
    assert [row["step"] for row in read_csv(str(tmp_path / "metrics.csv"))] == ["1", "2"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_signal_at_the_last_step_changes_nothing(tmp_path, dense_config):
    kill = At(3, lambda loop: os.kill(os.getpid(), signal.SIGTERM))
    loop = make_loop(tmp_path, dense_config, [kill, StopOnSignals()], steps=3)
    run_to_the_end(loop, lambda batch: metrics_of(1.0))
    assert loop.stopped_by is None and loop.is_last


@pytest.mark.parametrize("period", [0, -3])
def test_a_period_is_positive(period):
    for hook, setting in ((RecordMetrics, "LOG_PERIOD"), (SaveCheckpoints, "CHECKPOINT_PERIOD")):
        with pytest.raises(SettingError, match=f"{setting} = {period} must be at least 1"):
            hook(period)


def test_a_hook_of_ones_own_has_a_period(tmp_path, dense_config):
    seen = []

    class Every(PeriodicHook):
        def act(self, loop):
            seen.append(loop.step)

    run_to_the_end(make_loop(tmp_path, dense_config, [Every(2)], steps=5), lambda batch: metrics_of(1.0))
    assert seen == [2, 4, 5]


def test_memory_is_returned_once_the_update_is_compiled(tmp_path, dense_config, monkeypatch):
    steps = []
    loop = make_loop(tmp_path, dense_config, [], steps=4, start=1)
    monkeypatch.setattr(compat, "return_freed_memory", lambda: steps.append("returned"))

    def update(batch):
        steps.append("update")
        return metrics_of(2.0)

    run_to_the_end(loop, update)
    assert steps == ["update", "returned", "update", "update"]
