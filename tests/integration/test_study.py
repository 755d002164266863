"""A study of two tiny runs: killed in the middle it resumes, and a wrong binding is refused before the first run."""

import csv
import pathlib
import shlex
import signal
import time

import pytest

from switch_tf.cli import main as command_line
from tests.support import commands, launch

STUDY = "tests/support/tiny_study.gin"


def arguments(folder: pathlib.Path, *others: str) -> list[str]:
    return ["study", STUDY, f'--gin.FOLDER="{folder}"', *others]


def rows(path: pathlib.Path) -> list[dict[str, str]]:
    with open(path) as file:
        return list(csv.DictReader(file))


def test_a_study_trains_its_variants_and_compares_them(tmp_path, capsys):
    """Both variants are the same run, so that they end alike."""
    table = commands.call(capsys, *arguments(tmp_path))
    curves = rows(tmp_path / "curves.csv")
    of = {name: [row for row in curves if row["variant"] == name] for name in ("quiet", "killed")}
    assert [row["step"] for row in of["quiet"]] == ["4", "8", "12"]
    assert [row["tokens"] for row in of["quiet"]] == [str(8 * (32 + 10) * step) for step in (4, 8, 12)]
    for column in ("seed", "step", "tokens", "neg_log_perplexity", "accuracy"):
        assert [row[column] for row in of["quiet"]] == [row[column] for row in of["killed"]]
    lead = [row["lead"] for row in rows(tmp_path / "summary.csv")]
    assert lead == ["0.000000", "0.000000"] and "killed" in table
    assert (tmp_path / "curves.png").stat().st_size > 10_000

    written = (tmp_path / "curves.csv").read_bytes()
    command_line.main(arguments(tmp_path))
    assert (tmp_path / "curves.csv").read_bytes() == written


@pytest.mark.slow
def test_a_killed_study_resumes_and_ends_with_the_same_numbers(tmp_path, capsys):
    quiet, _ = commands.call(capsys, *arguments(tmp_path, "--print")).splitlines()
    commands.run(*shlex.split(quiet)[1:])  # A study leaves a run alone that is finished.

    study = launch.start(*arguments(tmp_path))
    log = tmp_path / "killed-seed0" / "metrics.csv"
    while study.poll() is None and not (log.exists() and "\n3," in log.read_text()):
        time.sleep(0.05)
    study.send_signal(signal.SIGTERM)
    study.communicate(timeout=120)
    assert study.returncode == 128 + signal.SIGTERM
    assert len(launch.losses(log.parent)) < 12

    (command,) = commands.call(capsys, *arguments(tmp_path, "--print")).splitlines()
    assert command.startswith("switch-tf train --gin_file=tests/support/tiny.gin ") and "killed-seed0" in command

    commands.call(capsys, *arguments(tmp_path))
    numbers = {"quiet": [], "killed": []}
    for row in rows(tmp_path / "curves.csv"):
        numbers[row["variant"]].append([row[name] for name in ("step", "neg_log_perplexity", "accuracy")])
    assert len(numbers["quiet"]) == 3 and numbers["quiet"] == numbers["killed"]


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--gin.Study.variants={'wide': {'ModelConfig.d_wide': 3}}", "Study variant 'wide': "),
        ("--gin.Study.variants={'none': {'NUM_EXPERT': 3}}", "NUM_EXPERT is set, but nothing"),
        ("--gin.Study.variants={'bad': {'NUM_EXPERTS': -1}}", "num_experts = -1"),
        ("--gin.Study.gin_files=['gin/models/t5_tinny.gin']", "t5_tiny.gin"),
        ("--gin.Study.baseline='dense'", "'dense' is no variant"),
        ("--jobs=1000", "--jobs=1000"),
        ("--report", "No run"),
    ],
)
def test_a_mistake_is_refused_before_the_first_run(tmp_path, capsys, flag, sentence):
    with pytest.raises(SystemExit) as exit_:
        command_line.main(arguments(tmp_path / "study", flag))
    assert exit_.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "study").exists()
