"""Runs the command line in the test's own process."""

import gin
import pytest

from switch_tf.cli import main as command_line


def run(*arguments: str) -> None:
    """Runs a command."""
    gin.clear_config()
    command_line.main(list(arguments))


def call(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Runs a command and returns its output."""
    capsys.readouterr()
    run(*arguments)
    return capsys.readouterr().out


def fails(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    """Runs a command that must end with status 2 and one line; returns that line."""
    capsys.readouterr()
    gin.clear_config()
    with pytest.raises(SystemExit) as exit_:
        command_line.main(list(arguments))
    assert exit_.value.code == 2
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    # A progress bar may have begun the line.
    lines = [line for line in errors.replace("\r", "\n").splitlines() if "switch-tf: error: " in line]
    assert len(lines) == 1, errors
    return lines[0].partition("switch-tf: error: ")[2]
