"""Trains a tiny model for long, once undisturbed and once with many kills: nothing may grow, and nothing may be lost.

Run by `make soak`. The undisturbed run must keep its memory, its open files and its threads. The other one is killed by
SIGKILL at random moments, some of them while a checkpoint is written and some while the run starts, and is started
again each time; it must end bit for bit where the undisturbed one ends. Interrupted itself, the soak goes on where it
was; an undisturbed run that was interrupted starts over.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import pydoc_data.topics
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.process_usage import Usage, by_tenths, growth_after_the_first, usage_of
from switch_tf.cli import flags

ROOT = pathlib.Path(__file__).parents[1]
MEMORY_MAY_GROW_BY = 0.02
_SAMPLE_SECONDS = 0.05
_POLL_SECONDS = 0.0005
_RECORDS = ("metrics.csv", "eval.csv", "experts.csv", "findings.csv", "events.csv")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run; a folder holds the results of one plan.

    Attributes:
      steps: of each run.
      kills: of the second run, all together.
      kills_in_writes: those while a checkpoint is being written; as many more come while the run starts.
      seed: of the moments.
      gin_files: the experiment.
      bindings: `NAME = value` lines.
    """

    steps: int
    kills: int
    kills_in_writes: int
    seed: int
    gin_files: tuple[str, ...]
    bindings: tuple[str, ...]

    def moments(self) -> list[tuple[str, int]]:
        """Returns each kill's kind ("step", "write" or "start") and the step from which it is due, in order."""
        chosen = random.Random(self.seed)
        # After the last of them a checkpoint still has to be written.
        steps = sorted(chosen.randrange(1, self.steps * 9 // 10) for _ in range(self.kills))
        special = self.kills_in_writes
        kinds = ["write"] * special + ["start"] * min(special, self.kills - special)
        kinds += ["step"] * (self.kills - len(kinds))
        chosen.shuffle(kinds)
        return list(zip(kinds, steps))


class Soak:
    """The two runs in a folder."""

    def __init__(self, plan: Plan, folder: pathlib.Path):
        """Opens a folder, which may hold the beginning of the same plan.

        Args:
          plan: what to run.
          folder: for the runs, their logs, `progress.json` and `report.json`.

        Raises:
          SystemExit: if the folder holds another plan.
        """
        self.plan = plan
        self.folder = folder
        self._state: dict = {"plan": json.loads(json.dumps(dataclasses.asdict(plan))), "kills": []}
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "progress.json"
        if path.exists():
            before = json.loads(path.read_text())
            if before["plan"] != self._state["plan"]:
                sys.exit(f"{folder} holds a soak of other settings: remove it, or choose another --folder.")
            self._state = before
        # A document on each line.
        paragraphs = (text for _, topic in sorted(pydoc_data.topics.topics.items()) for text in topic.split("\n\n"))
        lines = "".join(" ".join(text.split()) + "\n" for text in paragraphs if text.strip())
        _write(folder / "text.txt", lines)

    def _save(self) -> None:
        _write(self.folder / "progress.json", json.dumps(self._state, indent=2))

    def model_dir(self, name: str) -> pathlib.Path:
        """Returns the model directory of "undisturbed" or "killed"."""
        return self.folder / name

    def _start(self, name: str) -> subprocess.Popen:
        settings = {
            "MODEL_DIR": str(self.model_dir(name)),
            "TRAIN_FILES": str(self.folder / "text.txt"),
            "TRAIN_STEPS": self.plan.steps,
        }
        bindings = [f"--gin.{key}={value!r}" for key, value in settings.items()]
        bindings += [f"--gin.{binding.replace(' = ', '=', 1)}" for binding in self.plan.bindings]
        files = [f"--gin_file={file}" for file in self.plan.gin_files]
        with open(self.folder / f"{name}.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "switch_tf.cli.main", "train", *files, *bindings],
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )

    def run_undisturbed(self) -> None:
        """Trains to the end and samples what the process uses, unless that has been done."""
        if "undisturbed" in self._state:
            return
        model_dir = self.model_dir("undisturbed")
        shutil.rmtree(model_dir, ignore_errors=True)
        usages: list[Usage] = []
        began, started = time.monotonic(), None
        process = self._start("undisturbed")
        try:
            while process.poll() is None:
                step = last_step(model_dir)
                if step is not None:
                    started = started or time.monotonic() - began
                    usage = usage_of(process.pid, step)
                    # After the last step the process closes what it has.
                    usages += [usage] if usage is not None and step < self.plan.steps else []
                time.sleep(_SAMPLE_SECONDS)
        finally:
            process.kill()
            figures = by_tenths(usages, self.plan.steps)
            print(f"undisturbed, until step {last_step(model_dir)}: {figures}", flush=True)
        self._check_end(process, "undisturbed")
        self._state["undisturbed"] = figures | {"seconds": time.monotonic() - began, "seconds_to_start": started}
        self._save()

    def run_with_kills(self) -> None:
        """Trains with kills, those that are left, and then to the end."""
        moments = self.plan.moments()
        while len(self._state["kills"]) < len(moments):
            number = len(self._state["kills"])
            kind, step = moments[number]
            kill = self._run_until_killed(kind, step, random.Random(f"{self.plan.seed} {number}"))
            self._state["kills"].append(kill)
            self._save()
            print(f"kill {number + 1} of {len(moments)}: {kill}", flush=True)
        process = self._start("killed")
        try:
            process.wait()
        finally:
            process.kill()
        self._check_end(process, "killed")

    def _run_until_killed(self, kind: str, step: int, chosen: random.Random) -> dict[str, object]:
        """Starts the run and kills it; returns what was hit."""
        model_dir = self.model_dir("killed")
        stale = unfinished(model_dir)
        process = self._start("killed")
        try:
            if kind == "start":
                time.sleep(chosen.random() * self._state["undisturbed"]["seconds_to_start"])
            else:
                while process.poll() is None and (last_step(model_dir) or 0) < step:
                    time.sleep(_SAMPLE_SECONDS)
                if kind == "step":
                    time.sleep(chosen.random() / 2)
                else:
                    while process.poll() is None and not unfinished(model_dir) - stale:
                        time.sleep(_POLL_SECONDS)
        finally:
            process.kill()
        status = process.wait()
        if status not in (0, -signal.SIGKILL):
            self._check_end(process, "killed")
        return {
            "kind": kind,
            "due": step,
            "step": last_step(model_dir),
            "was_killed": status == -signal.SIGKILL,
            "inside_a_write": bool(unfinished(model_dir) - stale),
        }

    def _check_end(self, process: subprocess.Popen, name: str) -> None:
        if process.wait() != 0:
            sys.exit(f"The {name} run ended with status {process.returncode}: see {self.folder / name}.log")

    def report(self) -> dict[str, object]:
        """Compares the two runs; returns and writes the figures."""
        undisturbed, kills = self._state["undisturbed"], self._state["kills"]
        memory = growth_after_the_first(undisturbed["resident"])
        checks = {
            "memory grows by less than 2 %": memory < MEMORY_MAY_GROW_BY,
            "no file stays open": growth_after_the_first(undisturbed["open_files"]) <= 0,
            "no thread is left": growth_after_the_first(undisturbed["threads"]) <= 0,
            "all kills were made": all(kill["was_killed"] for kill in kills),
            "enough of them inside writes": sum(kill["inside_a_write"] for kill in kills) >= self.plan.kills_in_writes,
        }
        checks |= comparison(self.model_dir("undisturbed"), self.model_dir("killed"), self.plan.steps)
        figures = {
            "plan": self._state["plan"],
            "passed": all(checks.values()),
            "checks": checks,
            "memory_growth": memory,
            "kills": len(kills),
            "kills_inside_writes": sum(kill["inside_a_write"] for kill in kills),
            "undisturbed": undisturbed,
        }
        _write(self.folder / "report.json", json.dumps(figures, indent=2) + "\n")
        return figures


def _write(path: pathlib.Path, text: str) -> None:
    unfinished = path.with_name(f"{path.name}.writing")
    unfinished.write_text(text)
    unfinished.replace(path)


def last_step(model_dir: pathlib.Path) -> int | None:
    """Returns the last step in a run's log; None where there is none yet."""
    try:
        with open(model_dir / "metrics.csv", "rb") as file:
            file.seek(max(0, os.path.getsize(file.fileno()) - 16384))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    first = lines[-2].partition(b",")[0] if len(lines) > 2 else b""
    return int(first) if first.isdigit() else None


def unfinished(model_dir: pathlib.Path) -> set[tuple[str, int]]:
    """Returns the checkpoints of a run that are being written, or were when it was killed: names and times."""
    found = set()
    for folder in (model_dir / "checkpoints").glob("step_*"):
        try:
            if not (folder / "manifest.json").exists():
                found.add((folder.name, folder.stat().st_mtime_ns))
        except FileNotFoundError:  # An old one that is being removed.
            continue
    return found


def comparison(one: pathlib.Path, other: pathlib.Path, step: int) -> dict[str, bool]:
    """Compares two runs of the same steps bit for bit.

    Args:
      one: a model directory.
      other: another one.
      step: of the checkpoints to compare.

    Returns:
      For each record and for the checkpoint (weights and slots) whether they are equal, and whether all that the second
      directory holds is whole.
    """
    from switch_tf.runs.verification import verify

    results = {f"{name} is equal": _rows(one / name) == _rows(other / name) for name in _RECORDS}
    tensors, others = (_tensors(model_dir / "checkpoints" / f"step_{step:08d}" / "state") for model_dir in (one, other))
    results["weights and slots are equal"] = len(tensors) > 1 and tensors == others
    results["every file is whole"] = all(finding.fault is None for finding in verify(str(other)))
    return results


def _rows(path: pathlib.Path) -> list[str]:
    """Returns the lines of a record, none where it is absent; in metrics.csv without the last column, the speed."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.rpartition(",")[0] for line in lines] if path.name == "metrics.csv" else lines


def _tensors(prefix: pathlib.Path) -> dict[str, bytes]:
    """Returns the bytes of every tensor of a checkpoint but for the position of the data, which has no fixed form."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(prefix))
    types = reader.get_variable_to_dtype_map()
    return {name: reader.get_tensor(name).tobytes() for name, dtype in types.items() if dtype != tf.variant}


def _parse(words: Sequence[str]) -> argparse.Namespace:
    bindings, others = flags.split_bindings(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=pathlib.Path, default="runs/soak", help="for both runs (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20_000, help="of each run (default: %(default)s)")
    parser.add_argument("--kills", type=int, default=100, help="of the second run (default: %(default)s)")
    parser.add_argument(
        "--kills_in_writes", type=int, default=10, help="while a checkpoint is written (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--gin_file", action="append", help="another model (default: benchmarks/soak.gin); repeatable")
    options = parser.parse_args(others)
    options.bindings = bindings
    return options


def main() -> None:
    """Runs the plan of the command line; exits with status 1 if a check fails."""
    options = _parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    files = tuple(options.gin_file or ["benchmarks/soak.gin"])
    plan = Plan(options.steps, options.kills, options.kills_in_writes, options.seed, files, tuple(options.bindings))
    soak = Soak(plan, options.folder.resolve())
    soak.run_undisturbed()
    soak.run_with_kills()
    figures = soak.report()
    print(json.dumps(figures, indent=2))
    sys.exit(0 if figures["passed"] else 1)


if __name__ == "__main__":
    # TensorFlow is imported for the comparison, after the runs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    main()
