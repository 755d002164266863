"""Odd environments: locales, names, clocks, and what a run must not write down."""

import os
import subprocess
import sys

import pytest

from tests.support import launch, namespaces

SECRETS = {
    "HTTPS_PROXY": "http://user:the-secret-1@127.0.0.1:9",
    "HF_TOKEN": "the-secret-2",
    "GOOGLE_APPLICATION_CREDENTIALS": "/the-secret-3.json",
    "AWS_SECRET_ACCESS_KEY": "the-secret-4",
}
# Of a machine that nobody has set up. Python would take the locale C for UTF-8, but not if it is told so.
BARE = {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_no_home_no_utf8_a_jumping_clock_and_names_of_all_kinds(tiny_run, tmp_path):
    model_dir = tmp_path / "größe of 文字" / "it's [1]"
    done = subprocess.run(
        [sys.executable, "-m", "tests.programs.jumping_clock", *launch.arguments(model_dir)],
        cwd=launch.ROOT,
        env={**BARE, **SECRETS, "PYTHONPATH": os.pathsep.join(sys.path), "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert launch.losses(model_dir) == launch.losses(tiny_run)
    assert (model_dir / "eval.csv").read_text() == (tiny_run / "eval.csv").read_text()
    # One folder by each name, whoever made it.
    assert [list(path.iterdir()) for path in (tmp_path, model_dir.parent)] == [[model_dir.parent], [model_dir]]
    written = [path.read_bytes() for path in model_dir.rglob("*") if path.is_file()]
    assert len(written) > 10
    assert not [text for text in (done.stdout, done.stderr, *written) if b"the-secret" in text]


@pytest.mark.skipif(not namespaces.are_allowed(), reason="this system allows no mount namespaces")
def test_a_full_disk_loses_nothing_of_any_kind_of_file(tmp_path):
    results = namespaces.results_of("tests.programs.full_disks", str(tmp_path / "disk"))
    assert len(results) == 7
    for kind, (message, was_whole, works_again) in results.items():
        assert "No space left on device" in message and message.isprintable(), kind
        assert was_whole and works_again, kind


@pytest.mark.slow
@pytest.mark.skipif(not namespaces.are_allowed(), reason="this system allows no mount namespaces")
def test_a_run_whose_disk_is_full_goes_on_once_there_is_room(tmp_path):
    results = namespaces.results_of("tests.programs.full_disk_runs", str(tmp_path / "disk"), "training")
    assert len(results) == 8
    for kind, (failed, num_checkpoints, finished, is_same) in results.items():
        assert_one_line(kind, failed, "No space left on device")
        # Most kinds fail after the first checkpoint.
        assert num_checkpoints == (0 if kind in ("vocabulary", "config.gin", "records") else 1), kind
        assert finished[0] == 0 and is_same, (kind, finished)


@pytest.mark.slow
@pytest.mark.skipif(not namespaces.are_allowed(), reason="this system allows no mount namespaces")
def test_commands_whose_disk_is_full(tmp_path):
    results = namespaces.results_of("tests.programs.full_disk_runs", str(tmp_path / "disk"), "commands")
    assert len(results) == 9
    for name, ended in results.items():
        assert_one_line(name, ended, "No space left on device")


@pytest.mark.slow
@pytest.mark.skipif(not namespaces.are_allowed(), reason="this system allows no mount namespaces")
def test_commands_on_a_read_only_disk(tmp_path):
    results = namespaces.results_of("tests.programs.full_disk_runs", str(tmp_path / "disk"), "read_only")
    assert_one_line("train", results.pop("train"), "Read-only file system")
    assert len(results) == 12
    assert {name: ended for name, ended in results.items() if ended[0] != 0} == {}


def assert_one_line(name: str, ended: tuple[int, str], reason: str) -> None:
    """A command that has ended with status 2 and one sentence."""
    status, errors = ended
    sentences = [line for line in errors.replace("\r", "\n").splitlines() if "switch-tf: error: " in line]
    assert status == 2 and len(sentences) == 1 and reason in sentences[0], (name, status, errors)
    assert "Traceback" not in errors, (name, errors)
