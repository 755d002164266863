"""How long a user waits for a command, compared with `import tensorflow` alone.

Run by `make bench`. Each round runs every command once, in turn, in a process of its own; ratios are taken within a
round. The files that they read have been read once before.
"""

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.measuring import spread

ROOT = pathlib.Path(__file__).parents[1]
SWITCH_TF = (sys.executable, "-m", "switch_tf.cli.main")
BASELINE = "import tensorflow"
# The first update of the model that `make quickstart` trains: the command goes on, and is ended.
TRAIN = "train: first step"
FIRST_STEP = re.compile(rb"\b1/\d+ \[[^\r]*step")


class Run(NamedTuple):
    """One run of a command: seconds by the clock and of all its threads, and peak memory in bytes."""

    seconds: float
    cpu: float
    memory: int


def commands_of(folder: str) -> dict[str, Sequence[str]]:
    """Returns the commands by name.

    Args:
      folder: where training writes.
    """
    quickstart = ("--gin_file=gin/models/switch_nano_16.gin", "--gin_file=gin/runs/installed_docs.gin")
    text = "Returns the <extra_id_0> of the list."
    return {
        BASELINE: (sys.executable, "-c", "import tensorflow"),
        "--help": (*SWITCH_TF, "--help"),
        "describe": (*SWITCH_TF, "describe", "--gin_file=gin/models/switch_tiny_8.gin"),
        "predict": (*SWITCH_TF, "predict", "--model_dir=pretrained/switch_nano_16", text),
        TRAIN: (*SWITCH_TF, "train", *quickstart, f"--gin.MODEL_DIR='{folder}'"),
    }


def timed(command: Sequence[str], until: re.Pattern[bytes] | None = None) -> Run:
    """Runs a command.

    Args:
      command: to run.
      until: in its standard error, at which the clock stops and the command is killed; None: at its end.

    Raises:
      RuntimeError: if it fails.
    """
    start = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = b""
        while chunk := process.stderr.read1():  # type: ignore[attr-defined]  # of a buffered pipe
            said += chunk
            if until is not None and until.search(said):
                break
        is_over = chunk == b""
        if not is_over:
            process.kill()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
    if is_over and (until is not None or process.returncode):
        raise RuntimeError(f"{' '.join(command)}: {said.decode(errors='replace')}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def measure(rounds: int) -> list[dict]:
    """Runs all commands in turn, once more than is counted.

    Args:
      rounds: how many times each is measured.

    Returns:
      A row for each: spreads of the seconds, of their ratio to the baseline's, of CPU seconds and of memory.
    """
    # As `make quickstart` does before it trains.
    subprocess.run([sys.executable, "-m", "tasks.docstrings"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    found: list[dict[str, Run]] = []
    for _ in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            ends = {TRAIN: FIRST_STEP}
            found.append({name: timed(words, ends.get(name)) for name, words in commands_of(folder).items()})
    counted = found[1:]
    return [
        {
            "command": name,
            **spread("seconds", [runs[name].seconds for runs in counted]),
            **spread("ratio", [runs[name].seconds / runs[BASELINE].seconds for runs in counted]),
            **spread("cpu", [runs[name].cpu for runs in counted]),
            **spread("cpu_ratio", [runs[name].cpu / runs[BASELINE].cpu for runs in counted]),
            **spread("memory", [runs[name].memory for runs in counted]),
        }
        for name in counted[0]
    ]


def main() -> None:
    """Measures, prints a table and saves it if requested."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="how often each command is run (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where to save the table")
    options = parser.parse_args()
    # What TensorFlow says when it is imported is no part of what is measured.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    rows = measure(options.rounds)
    print(f"{'command':>19}{'seconds':>9}{'ratio':>7}{'quartiles':>14}{'CPU s':>8}{'ratio':>7}{'peak MiB':>10}")
    for row in rows:
        print(
            f"{row['command']:>19}{row['seconds']:>9.2f}{row['ratio']:>7.2f}{row['ratio_low']:>7.2f} -"
            f"{row['ratio_high']:>5.2f}{row['cpu']:>8.2f}{row['cpu_ratio']:>7.2f}{row['memory'] / 2**20:>10,.0f}"
        )
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps({"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
