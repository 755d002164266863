"""How far a job has come, read from its model directory alone: checkpoints, metrics, logs, outcomes."""

import csv
import json
import re
from typing import NamedTuple

from tpu.jobs.object_store import Storage
from tpu.jobs.request import attempt_folder

# An exit status after which another attempt may go on: another process has ended (75), a signal has killed this one, or
# the machine never came as far as training (74), which the others then call a mistake of theirs.
_LOST, _UNPREPARED, _FIRST_SIGNAL = 75, 74, 128
_FIRST_WORKER = "worker-000"
_BLOCK = 65536


def last_checkpoint(storage: Storage) -> int | None:
    """Returns the step of the newest complete checkpoint; None where there is none."""
    pattern = re.compile(r"checkpoints/step_(\d+)/manifest\.json")
    steps = [int(found[1]) for found in map(pattern.fullmatch, storage.names("checkpoints/step_")) if found]
    return max(steps, default=None)


def last_metrics(storage: Storage) -> dict[str, float] | None:
    """Returns the last row of metrics.csv by column; None where there is none."""
    size = storage.size("metrics.csv")
    head = b""
    while b"\n" not in head and len(head) < size:
        head += storage.read_part("metrics.csv", len(head), len(head) + _BLOCK)
    # A row is no longer than a few of the header's lines.
    start = max(0, size - max(_BLOCK, 8 * head.find(b"\n")))
    tail = storage.read_part("metrics.csv", start, size) if size else b""
    # What a kill cut off has no end; what the start of the block cut off has no beginning.
    rows = tail[: tail.rfind(b"\n") + 1].decode().splitlines()[1:]
    if not rows:
        return None
    header = head.split(b"\n")[0].decode()
    return {name: float(value) for name, value in next(csv.DictReader([header, rows[-1]])).items()}


class Outcome(NamedTuple):
    """How an attempt ended on its machines.

    Attributes:
      exit_status: of training, on the machine that tells most.
      worker: which machine.
      is_final: whether trying again would not help, as after success.
    """

    exit_status: int
    worker: str
    is_final: bool


def outcome_of(storage: Storage, attempt: int) -> Outcome | None:
    """Returns how an attempt ended; None while it goes on, or where nobody could write it down.

    Args:
      storage: the model directory.
      attempt: 1, 2, ...
    """
    folder = f"{attempt_folder(attempt)}/outcomes/"
    statuses = {}
    for name in storage.names(folder):
        file = storage.read(name)
        if file is not None:
            statuses[name.removeprefix(folder).removesuffix(".json")] = json.loads(file.data)["exit_status"]
    for worker, status in statuses.items():
        if status == _UNPREPARED:
            return Outcome(status, worker, False)
    for worker, status in statuses.items():
        if status not in (0, _LOST) and status < _FIRST_SIGNAL:
            return Outcome(status, worker, True)
    if statuses.get(_FIRST_WORKER) == 0:
        return Outcome(0, _FIRST_WORKER, True)
    for worker, status in statuses.items():
        if status != 0:
            return Outcome(status, worker, False)
    return None


def log_name(attempt: int, worker: int) -> str:
    """Names the log of a machine in the model directory."""
    return f"{attempt_folder(attempt)}/logs/worker-{worker:03}.txt"


def log_tail(storage: Storage, name: str, num_lines: int) -> tuple[str, int]:
    """Reads a log's last lines.

    Args:
      storage: the model directory.
      name: of the log.
      num_lines: at most.

    Returns:
      The text, and the place in the log that it ends at.
    """
    size, text = storage.size(name), b""
    while text.count(b"\n") <= num_lines and len(text) < size:
        start = max(0, size - len(text) - _BLOCK)
        text = storage.read_part(name, start, size - len(text)) + text
    return b"".join(text.splitlines(keepends=True)[-num_lines:]).decode(errors="replace"), size
