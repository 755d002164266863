"""What a training process uses while it runs: resident memory, open files and threads, as Linux counts them."""

import os
import pathlib
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Usage(NamedTuple):
    """A sample of one process.

    Attributes:
      step: the last step in its log.
      resident: bytes of resident memory.
      open_files: file descriptors.
      threads: of the operating system, those of TensorFlow too.
    """

    step: int
    resident: int
    open_files: int
    threads: int


def usage_of(process: int, step: int) -> Usage | None:
    """Samples a process; None if it has ended.

    Args:
      process: its number.
      step: the last step in its log.
    """
    folder = pathlib.Path("/proc") / str(process)
    try:
        resident = int((folder / "statm").read_text().split()[1]) * _PAGE
        open_files, threads = (len(os.listdir(folder / name)) for name in ("fd", "task"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if threads == 0 else Usage(step, resident, open_files, threads)


def by_tenths(usages: Sequence[Usage], steps: int) -> dict[str, list[int]]:
    """Summarizes each tenth of a run that has samples.

    Args:
      usages: samples of one process.
      steps: of the whole run.

    Returns:
      `resident`, the median of each tenth; `open_files` and `threads`, the fewest, since a checkpoint that is being
      written and an evaluation have some for a while.
    """
    tenths: list[list[Usage]] = [[] for _ in range(10)]
    for usage in usages:
        tenths[min(9, usage.step * 10 // steps)].append(usage)
    sampled = [tenth for tenth in tenths if tenth]
    return {
        "resident": [int(statistics.median(usage.resident for usage in tenth)) for tenth in sampled],
        "open_files": [min(usage.open_files for usage in tenth) for tenth in sampled],
        "threads": [min(usage.threads for usage in tenth) for tenth in sampled],
    }


def growth_after_the_first(values: Sequence[int]) -> float:
    """Returns by which share the largest of the tenths exceeds the second one: the first one holds the start."""
    later = values[1:] or values
    return max(later) / later[0] - 1
