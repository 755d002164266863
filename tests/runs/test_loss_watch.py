"""A run ends after too many skipped updates, and goes back from spikes, whenever it is killed or stopped."""

import dataclasses
import math
import os
import signal

import pytest

from switch_tf.errors import SettingError
from switch_tf.runs.hooks import Hook, RecordMetrics, SaveCheckpoints, StopOnSignals
from switch_tf.runs.loss_watch import GoBackOnSpikes, LimitSkippedUpdates
from switch_tf.runs.recorder import read_csv
from tests.support.fake_loop import make_loop, metrics_of, run_to_the_end

STEPS = 14


class Killed(Exception):
    pass


class At(Hook):
    """Does something after so many updates."""

    def __init__(self, updates: int, action):
        self.updates, self.action = updates, action

    def after_step(self, loop):
        self.updates -= 1
        if self.updates == 0:
            self.action()


def kill():
    raise Killed


def stop():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def dense_config(tiny_config):
    return dataclasses.replace(tiny_config, num_experts=0)


def rows(model_dir, name: str = "metrics.csv") -> list[dict[str, str]]:
    """The rows of a file, without the speed."""
    found = read_csv(str(model_dir / name))
    return [{column: value for column, value in row.items() if column != "tokens_per_second"} for row in found]


@pytest.mark.parametrize(("limit", "bad"), [(1, [3]), (3, [2, 3, 5, 6, 7])])
def test_a_run_ends_after_so_many_skipped_updates_in_a_row(tmp_path, dense_config, limit, bad):
    hooks = [RecordMetrics(1), LimitSkippedUpdates(limit), SaveCheckpoints(2)]
    loop = make_loop(tmp_path, dense_config, hooks, steps=9)
    with pytest.raises(SettingError) as caught:
        run_to_the_end(loop, lambda batch: metrics_of(math.nan if batch in bad else 1.0, skipped=batch in bad))
    of_step = {
        1: "The loss of step 3 is not a number; nothing was saved after step 2",
        3: "The loss of step 7 is not a number, as of MAX_SKIPPED_UPDATES = 3 in a row; nothing was saved after step 6",
    }[limit]
    assert str(caught.value).startswith(f"{of_step}. Try ROUTER_DTYPE")
    assert [row["step"] for row in rows(tmp_path) if float(row["skipped"])] == [str(step) for step in bad]


def test_a_resumed_run_counts_skipped_updates_on(tmp_path, dense_config):
    hooks = [RecordMetrics(1), LimitSkippedUpdates(4), SaveCheckpoints(2)]
    metrics = lambda batch: metrics_of(1.0, skipped=batch > 1)  # noqa: E731
    killed = make_loop(tmp_path, dense_config, [*hooks, At(3, kill)], steps=9)
    with pytest.raises(Killed):
        run_to_the_end(killed, metrics)
    with pytest.raises(
        SettingError, match="gradient of step 5 is not a number, as of MAX_SKIPPED_UPDATES = 4 in a row"
    ):
        run_to_the_end(make_loop(tmp_path, dense_config, hooks, 9, saved=killed.run.saved), metrics)


def hooks_of(log_period: int = 1, factor: float | None = 3.0, window: int = 3) -> list[Hook]:
    return [StopOnSignals(), RecordMetrics(log_period), GoBackOnSpikes(factor, window), SaveCheckpoints(4)]


def spike_at(*bad: int):
    """Metrics of batches of which some have a loss of 9; the others' is about 1."""
    return lambda batch: metrics_of(9.0 if batch in bad else 1.0 + batch / 128)


def assert_went_back_once(model_dir, weights: list[int]) -> None:
    """From the spike at batch 10 to the checkpoint of step 8: batches 9 and 10 are passed over."""
    assert weights == [*range(1, 9), *range(11, STEPS + 3)]
    losses = [float(row["loss"]) for row in rows(model_dir)]
    assert losses == [1.0 + batch / 128 for batch in weights]
    assert [row["step"] for row in rows(model_dir)] == [str(step) for step in range(1, STEPS + 1)]
    (event,) = rows(model_dir, "events.csv")
    assert event == {
        "step": "8",
        "event": "went_back",
        "spike_step": "10",
        "loss": "9.0",
        "median_loss": str(1.0 + 8 / 128),
    }


@pytest.mark.parametrize("log_period", [1, 2, 3, 7])
def test_a_run_goes_back_from_a_spike_and_passes_over_its_batches(tmp_path, dense_config, capsys, log_period):
    loop = make_loop(tmp_path, dense_config, hooks_of(log_period), STEPS)
    loop = run_to_the_end(loop, spike_at(10))
    assert loop.is_last
    assert_went_back_once(tmp_path, loop.run.weights)
    said = capsys.readouterr().out
    assert "step 10: the loss is 9, 8.47 times the median of the steps before: going back to" in said
    assert "The batches of steps 9 to 10 are passed over." in said


@pytest.mark.parametrize(("how", "log_period"), [(kill, 1), (kill, 3), (stop, 1), (stop, 4)])
def test_killed_or_stopped_after_any_update_it_goes_back_to_the_same_weights(tmp_path, dense_config, how, log_period):
    for updates in range(7, 14):
        model_dir = tmp_path / str(updates)
        model_dir.mkdir()
        loop = make_loop(model_dir, dense_config, [*hooks_of(log_period), At(updates, how)], STEPS)
        try:
            run_to_the_end(loop, spike_at(10))
        except Killed:
            assert how is kill
        resumed = make_loop(model_dir, dense_config, hooks_of(log_period), STEPS, saved=loop.run.saved)
        resumed = run_to_the_end(resumed, spike_at(10))
        if how is stop and updates == 8:  # It stopped at step 9, whose checkpoint is the one before the spike.
            assert resumed.run.weights == [*range(1, 10), *range(11, STEPS + 2)]
        else:
            assert_went_back_once(model_dir, resumed.run.weights)


def test_a_run_goes_back_to_a_checkpoint_once(tmp_path, dense_config, capsys):
    """After it has passed over batches 9 and 10, batch 13 is that of step 11 and batch 17 that of step 15."""
    loop = run_to_the_end(make_loop(tmp_path, dense_config, hooks_of(), steps=18), spike_at(10, 13, 17))
    assert loop.run.weights == [*range(1, 9), *range(11, 15), *range(18, 24)]
    said = capsys.readouterr().out
    assert said.count("gone back to the checkpoint of step 8 once, and goes on.") == 1
    assert [row["step"] for row in rows(tmp_path, "events.csv")] == ["8", "12"]


def test_a_spike_without_a_checkpoint_before_it_is_left_alone(tmp_path, dense_config, capsys):
    loop = run_to_the_end(make_loop(tmp_path, dense_config, hooks_of(window=1), steps=5), spike_at(2, 4))
    assert loop.run.weights == [1, 2, 3, 4, 5]
    assert capsys.readouterr().out.count("there is no checkpoint before it, and goes on.") == 1
    assert not (tmp_path / "events.csv").exists()


def test_without_a_factor_a_run_never_goes_back(tmp_path, dense_config):
    loop = run_to_the_end(make_loop(tmp_path, dense_config, hooks_of(factor=None), STEPS), spike_at(10))
    assert loop.run.weights == [*range(1, STEPS + 1)]


def test_skipped_updates_are_no_spikes_and_do_not_move_the_median(tmp_path, dense_config):
    metrics = lambda batch: metrics_of(math.inf, skipped=True) if batch in (8, 9) else spike_at(11)(batch)  # noqa: E731
    loop = run_to_the_end(make_loop(tmp_path, dense_config, hooks_of(), STEPS), metrics)
    assert loop.run.weights == [*range(1, 9), *range(12, STEPS + 4)]
    assert [row["median_loss"] for row in rows(tmp_path, "events.csv")] == [str(1.0 + 10 / 128)]


def test_settings_are_in_their_ranges():
    for factor in (1.0, -3, 0, math.nan):
        with pytest.raises(SettingError, match=f"SPIKE_FACTOR = {factor} must be more than 1"):
            GoBackOnSpikes(factor)
    for count in (0, 101, -1):
        with pytest.raises(SettingError, match=rf"GoBackOnSpikes\.window = {count} must be from 1 to 100"):
            GoBackOnSpikes(3.0, count)
        with pytest.raises(SettingError, match=f"MAX_SKIPPED_UPDATES = {count} must be from 1 to 100"):
            LimitSkippedUpdates(count)
