"""Runs the command line as a user would, in a process of its own."""

import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping

ROOT = pathlib.Path(__file__).parents[2]
TINY = ("--gin_file=tests/support/tiny.gin",)


def arguments(model_dir: pathlib.Path | str, *bindings: str) -> list[str]:
    """The tiny training run's arguments."""
    return ["train", *TINY, f'--gin.MODEL_DIR="{model_dir}"', *(f"--gin.{binding}" for binding in bindings)]


SWITCH_TF = "switch_tf.cli.main"


def start(
    *arguments: str, program: str = SWITCH_TF, environment: Mapping[str, str] | None = None, **options
) -> subprocess.Popen:
    """Starts `switch-tf` with arguments, or instead of it a module of tests/programs that runs it in its own way."""
    return subprocess.Popen(
        [sys.executable, "-m", program, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
        **options,
    )


def run(*arguments: str, program: str = SWITCH_TF) -> subprocess.CompletedProcess:
    """Runs `switch-tf` with arguments to its end."""
    process = start(*arguments, program=program)
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def losses(model_dir: pathlib.Path) -> dict[str, dict[str, str]]:
    """Every row of metrics.csv by its step, without the speed, which is never the same; two rows for one step fail."""
    return losses_of((model_dir / "metrics.csv").read_text())


def losses_of(metrics: str) -> dict[str, dict[str, str]]:
    """The same of a file's text."""
    lines = metrics.splitlines()
    header = lines[0].split(",")
    rows = {}
    for line in lines[1:]:
        row = dict(zip(header, line.split(","), strict=True))
        row.pop("tokens_per_second")
        assert row["step"] not in rows, f"two rows for step {row['step']}"
        rows[row["step"]] = row
    return rows
