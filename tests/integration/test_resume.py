"""Killed at any step and started again, a run goes on as if nothing had happened: bit for bit."""

import pathlib
import random
import shutil
import signal
import time

import pytest

from tests.support import commands, launch

STEPS = 20
SETTINGS = (f"TRAIN_STEPS={STEPS}", "CHECKPOINT_PERIOD=3", "EVAL_PERIOD=10", "LOG_PERIOD=1")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    """The model directory of a run that nobody disturbed."""
    model_dir = tmp_path_factory.mktemp("uninterrupted")
    commands.run(*launch.arguments(model_dir, *SETTINGS))
    return model_dir


@pytest.fixture
def model_dir(uninterrupted, tmp_path) -> pathlib.Path:
    """A fresh model directory that already has the (same) vocabulary, which saves a second."""
    shutil.copytree(uninterrupted / "vocabulary", tmp_path / "run" / "vocabulary")
    return tmp_path / "run"


def kill_at(model_dir: pathlib.Path, step: int, signal_number: int):
    """Starts the run and sends a signal once `step` is in its log; returns the process and its output."""
    process = launch.start(*launch.arguments(model_dir, *SETTINGS))
    log = model_dir / "metrics.csv"
    while process.poll() is None and not (log.exists() and f"\n{step}," in log.read_text()):
        time.sleep(0.01)
    process.send_signal(signal_number)
    out, err = process.communicate(timeout=120)
    return process, out, err


def assert_same_run(model_dir: pathlib.Path, uninterrupted: pathlib.Path) -> None:
    assert launch.losses(model_dir) == launch.losses(uninterrupted)
    for name in ("eval.csv", "experts.csv"):
        assert (model_dir / name).read_text() == (uninterrupted / name).read_text()


def finish(capsys: pytest.CaptureFixture, model_dir: pathlib.Path) -> str:
    return commands.call(capsys, *launch.arguments(model_dir, *SETTINGS))


def test_every_step_has_its_row(uninterrupted):
    assert list(launch.losses(uninterrupted)) == [str(step) for step in range(1, STEPS + 1)]
    first, last = (float(launch.losses(uninterrupted)[step]["loss"]) for step in ("1", str(STEPS)))
    assert last < first - 0.5


@pytest.mark.slow  # test_bucket.py kills a run while it saves, too.
def test_killed_in_the_middle_of_a_checkpoint(model_dir, uninterrupted, capsys):
    killed = launch.run(*launch.arguments(model_dir, *SETTINGS), program="tests.programs.killed_while_saving")
    assert killed.returncode == -signal.SIGKILL
    assert (model_dir / "checkpoints" / "step_00000009").is_dir()
    assert "from step 6" in finish(capsys, model_dir)
    assert_same_run(model_dir, uninterrupted)


def test_sigterm_saves_and_says_how_to_resume(model_dir, uninterrupted, capsys):
    process, _, err = kill_at(model_dir, 4, signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    message = err.splitlines()[-1]
    assert "Stopped by SIGTERM at step" in message and "Resume with the same command" in message
    step = int(message.split("at step ")[1].split()[0])
    assert f"from step {step}" in finish(capsys, model_dir)
    assert_same_run(model_dir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "signals", "status"),
    [
        ("start", "SIGTERM", -signal.SIGTERM),
        ("start", "SIGINT", 128 + signal.SIGINT),
        ("compile", "SIGTERM", 128 + signal.SIGTERM),
        ("compile", "SIGINT,SIGINT", 128 + signal.SIGINT),
        ("evaluation", "SIGTERM", 128 + signal.SIGTERM),
        ("evaluation", "SIGINT,SIGINT", 128 + signal.SIGINT),
        ("save", "SIGTERM", 128 + signal.SIGTERM),
        ("save", "SIGINT", 128 + signal.SIGINT),
        ("save", "SIGTERM,SIGTERM", -signal.SIGTERM),
    ],
)
def test_a_signal_at_any_moment(model_dir, uninterrupted, capsys, moment, signals, status):
    """One signal ends the run with a checkpoint, a second one at once; what follows is the undisturbed run."""
    done = launch.run(moment, signals, *launch.arguments(model_dir, *SETTINGS), program="tests.programs.signalled")
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    if "," not in signals and moment != "start":
        assert f"Stopped by {signals} at step" in done.stderr.splitlines()[-1]
    finish(capsys, model_dir)
    assert_same_run(model_dir, uninterrupted)


@pytest.mark.slow
def test_output_that_is_read_for_a_line(model_dir, uninterrupted, capsys):
    """`switch-tf train | head -1`: the command ends as others do, and the run can be resumed."""
    process = launch.start(*launch.arguments(model_dir, *SETTINGS))
    assert process.stdout.readline()
    process.stdout.close()
    errors = process.stderr.read()
    assert process.wait(120) == 128 + signal.SIGPIPE and "Traceback" not in errors, errors
    finish(capsys, model_dir)
    assert_same_run(model_dir, uninterrupted)


@pytest.mark.slow
def test_killed_at_a_random_step(model_dir, uninterrupted, capsys):
    step = random.randrange(1, STEPS)
    process, _, _ = kill_at(model_dir, step, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"was to be killed at step {step}"
    finish(capsys, model_dir)
    assert_same_run(model_dir, uninterrupted)


@pytest.mark.slow
def test_killed_ten_times_in_one_run(model_dir, uninterrupted, capsys):
    """Ten kills at random steps, one after the other, each in a run that goes on from the last."""
    steps = sorted(random.sample(range(1, STEPS), 10))
    for step in steps:
        process, _, err = kill_at(model_dir, step, signal.SIGKILL)
        assert process.returncode in (-signal.SIGKILL, 0), err
    finish(capsys, model_dir)
    print(f"killed at steps {steps}")
    assert_same_run(model_dir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(10))
def test_killed_once_at_ten_random_steps(model_dir, uninterrupted, capsys, kill):
    step = random.randrange(1 + kill * STEPS // 10, 1 + (kill + 1) * STEPS // 10 - 1)
    process, _, _ = kill_at(model_dir, step, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, f"was to be killed at step {step}"
    finish(capsys, model_dir)
    assert_same_run(model_dir, uninterrupted)
