"""The progress of a job, read from its model directory: checkpoints, metrics, logs, outcomes."""

import csv
import json
import re
from typing import NamedTuple

from tpu.jobs.object_store import Storage
from tpu.jobs.request import attempt_folder

# Exit statuses after which another attempt may succeed: another process was lost (75), a host never started training
# (74; training on the other hosts then fails with a misleading status), or a signal killed the process (128 + n).
_LOST, _UNPREPARED, _FIRST_SIGNAL = 75, 74, 128
_FIRST_WORKER = "worker-000"
_BLOCK_BYTES = 65536


def last_checkpoint(storage: Storage) -> int | None:
    """Returns the step of the newest complete checkpoint; None if there is none."""
    pattern = re.compile(r"checkpoints/step_(\d+)/manifest\.json")
    steps = [int(found[1]) for found in map(pattern.fullmatch, storage.names("checkpoints/step_")) if found]
    return max(steps, default=None)


def last_metrics(storage: Storage) -> dict[str, float] | None:
    """Returns the last row of metrics.csv by column; None if there is none."""
    size = storage.size("metrics.csv")
    head = b""
    while b"\n" not in head and len(head) < size:
        head += storage.read_part("metrics.csv", len(head), len(head) + _BLOCK_BYTES)
    # A row is not much longer than the header.
    start = max(0, size - max(_BLOCK_BYTES, 8 * head.find(b"\n")))
    tail = storage.read_part("metrics.csv", start, size) if size else b""
    # The last row may be incomplete after a kill, and the first one starts before the block.
    rows = tail[: tail.rfind(b"\n") + 1].decode().splitlines()[1:]
    if not rows:
        return None
    header = head.split(b"\n")[0].decode()
    return {name: float(value) for name, value in next(csv.DictReader([header, rows[-1]])).items()}


class Outcome(NamedTuple):
    """How an attempt ended.

    Attributes:
      exit_status: of training, on the host that explains the end best.
      worker: that host: "worker-000".
      is_final: whether another attempt would be pointless: after success, or after an error.
    """

    exit_status: int
    worker: str
    is_final: bool


def outcome_of(storage: Storage, attempt: int) -> Outcome | None:
    """Combines the outcomes of an attempt's hosts.

    Args:
      storage: the model directory.
      attempt: 1, 2, ...

    Returns:
      The outcome; None while the attempt runs, or if its hosts were lost before they could write one.
    """
    folder = f"{attempt_folder(attempt)}/outcomes/"
    statuses: dict[str, int] = {}
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
    """Returns the name of a host's log, relative to the model directory."""
    return f"{attempt_folder(attempt)}/logs/worker-{worker:03}.txt"


def log_tail(storage: Storage, name: str, num_lines: int) -> tuple[str, int]:
    """Reads the last lines of a log.

    Args:
      storage: the model directory.
      name: of the log.
      num_lines: how many lines at most.

    Returns:
      The text, and the offset in bytes at which it ends.
    """
    size, text = storage.size(name), b""
    while text.count(b"\n") <= num_lines and len(text) < size:
        start = max(0, size - len(text) - _BLOCK_BYTES)
        text = storage.read_part(name, start, size - len(text)) + text
    return b"".join(text.splitlines(keepends=True)[-num_lines:]).decode(errors="replace"), size
