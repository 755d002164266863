"""The progress bar of a run, and the signals that stop it."""

import signal
import time
import types
from typing import Any

import tqdm

from switch_tf.training.step import StepMetrics


class Progress:
    """A progress bar: step, loss, tokens per second, time left. One of many processes shows it."""

    def __init__(self, start: int, total: int, is_shown: bool = True):
        self._is_shown = is_shown
        self._bar = tqdm.tqdm(
            initial=start, total=total, unit="step", dynamic_ncols=True, smoothing=0.05, disable=not is_shown
        )
        self._since = time.perf_counter()
        self._tokens = 0

    def advance(self, tokens: int) -> None:
        """Counts one step of so many tokens."""
        self._tokens += tokens
        self._bar.update()

    def report(self, metrics: StepMetrics) -> float:
        """Shows the newest numbers; returns the tokens per second since the last report."""
        now = time.perf_counter()
        speed = self._tokens / max(now - self._since, 1e-9)
        self._since, self._tokens = now, 0
        self._bar.set_postfix_str(f"loss {metrics.loss:.3f}, {speed:,.0f} tokens/s")
        return speed

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._is_shown:
            self._bar.write(line)

    def restart_clock(self) -> None:
        """Excludes the time since the last report (an evaluation, a checkpoint) from the next speed."""
        self._since = time.perf_counter()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


class StopSignals:
    """Records SIGTERM (a preemption) and the first SIGINT (Ctrl-C), for the loop to check between steps."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self.received = number
        # A second one has its usual effect.
        signal.signal(number, self._before[number])

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
