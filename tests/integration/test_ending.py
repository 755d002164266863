"""A command that has said what is wrong ends, and so does one that has done its work."""

import json
import os
import subprocess
import sys

import pytest

from tests.support import launch

# Not a bound on the time of a command, but on waiting for one that would never end.
NEVER = 300


def corpus(folder, bad_line: int | None) -> list[str]:
    path = folder / "text.jsonl"
    lines = [json.dumps({"text": f"line {number} of a corpus about a tiny model " * 4}) for number in range(2000)]
    if bad_line is not None:
        lines[bad_line] = "{"
    path.write_text("".join(f"{line}\n" for line in lines))
    (folder / "files.gin").write_text("import tasks.files\n")
    return ["MIXTURE_OR_TASK='files_span_corruption'", f"own_files.train='{path}'", "TRAIN_STEPS=3"]


def ended(*arguments: str, program: str) -> subprocess.CompletedProcess:
    process = launch.start(*arguments, program=program)
    try:
        out, err = process.communicate(timeout=NEVER)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_bad_line_and_a_slow_reader(tmp_path, times):
    bindings = corpus(tmp_path, bad_line=40)
    for number in range(times):
        arguments = launch.arguments(tmp_path / str(number), *bindings)
        result = ended(*arguments, f"--gin_file={tmp_path}/files.gin", program="tests.programs.slow_reader")
        assert result.returncode == 2, result.stderr
        assert "text.jsonl, line 41 is not JSON" in result.stderr and "Traceback" not in result.stderr


def test_output_that_nobody_reads(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", "from switch_tf.cli.main import main; main()", "--help"],
        cwd=launch.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read() and process.wait(NEVER) in (0, 141)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no device that is always full")
def test_output_that_has_no_room():
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "switch_tf.cli.main", "--help"],
            cwd=launch.ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": ""},  # argparse ignores the error where Python does not buffer.
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert result.returncode == 2
    assert result.stderr == b"switch-tf: error: Standard output cannot be written (No space left on device).\n"


def test_an_argument_that_is_no_text():
    command = [sys.executable.encode(), b"-m", b"switch_tf.cli.main", b"describe", b"--gin_file=\xff.gin"]
    result = subprocess.run(
        command, cwd=launch.ROOT, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C.UTF-8"}
    )
    assert result.returncode == 2
    assert result.stderr == b"switch-tf: error: The argument '--gin_file=\\udcff.gin' is no UTF-8 text.\n"
