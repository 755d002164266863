"""The progress bar's numbers, and signals that are recorded instead of ending the process."""

import os
import signal
import time
import types

import pytest

from switch_tf.runs.progress import Progress, StopSignals


@pytest.fixture
def clock(monkeypatch):
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(time, "perf_counter", lambda: now.seconds)
    return now


def test_speed_is_of_the_steps_since_the_last_report(clock, capsys):
    with Progress(0, 10) as progress:
        for _ in range(4):
            progress.advance(50)
            clock.seconds += 0.5
        assert progress.report(types.SimpleNamespace(loss=3.25)) == pytest.approx(100.0)
        progress.advance(50)
        clock.seconds += 0.25
        assert progress.report(types.SimpleNamespace(loss=3.0)) == pytest.approx(200.0)
    shown = capsys.readouterr().err
    assert "loss 3.250, 100 tokens/s" in shown and "5/10" in shown


def test_an_evaluation_is_left_out_of_the_speed(clock):
    with Progress(0, 10) as progress:
        clock.seconds += 60.0
        progress.restart_clock()
        progress.advance(100)
        clock.seconds += 1.0
        assert progress.report(types.SimpleNamespace(loss=1.0)) == pytest.approx(100.0)


def test_one_process_shows_the_bar(capsys):
    with Progress(0, 10, is_shown=False) as progress:
        progress.advance(50)
        progress.say("a line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_a_resumed_bar_begins_at_its_step(capsys):
    with Progress(7, 10) as progress:
        progress.say("step 7: a line")
    captured = capsys.readouterr()
    assert "7/10" in captured.err and "step 7: a line" in captured.out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_is_recorded_and_a_second_has_its_usual_effect(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append("usual"))
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), number)
            assert signals.received == number and not seen
            os.kill(os.getpid(), number)
            assert seen == ["usual"]
        os.kill(os.getpid(), number)
        assert seen == ["usual", "usual"]
    finally:
        signal.signal(number, before)
