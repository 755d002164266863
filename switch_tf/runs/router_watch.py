"""The hook that judges routers while a run trains: a finding is printed when it begins and when it ends."""

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

import gin
import numpy as np

from switch_tf.errors import SettingError
from switch_tf.health.rules import AVERAGED, Active, Event, LayerWindow, Monitor, periods
from switch_tf.layers.routing import RoutingMetrics
from switch_tf.runs.hooks import Hook
from switch_tf.training.step import StepMetrics
from switch_tf.training.step_metrics import layer_scalars
from switch_tf.training.update_statistics import UpdateStatistics

if TYPE_CHECKING:
    from switch_tf.runs.loop import TrainingLoop


def layer_row(routing: RoutingMetrics, updates: UpdateStatistics) -> np.ndarray:
    """Returns what the rules need of a sparse layer's step: float64 [measures, then tokens, then loads]."""
    scalars = layer_scalars(routing) | updates._asdict()
    return np.array([*(scalars[name] for name in AVERAGED), routing.tokens, *routing.expert_load], np.float64)


def layer_window(rows: Sequence[np.ndarray]) -> LayerWindow:
    """Averages a sparse layer's steps.

    Args:
      rows: a `layer_row` of each step.

    Returns:
      The window that rules judge.
    """
    means = np.mean(rows, axis=0)
    num_measures = len(AVERAGED)
    return LayerWindow(
        expert_load=means[num_measures + 1 :],
        load_tokens=float(means[num_measures] * len(rows)),
        **dict(zip(AVERAGED, means[:num_measures].tolist())),
    )


@gin.configurable
class WatchRouters(Hook):
    """Judges every sparse layer by the rules of `switch_tf.health` on the last steps, whenever metrics are written.

    Findings go to the terminal, `findings.csv` and TensorBoard's text.
    """

    def __init__(self, window: int | None = None, settling: int | None = None):
        """Makes the hook.

        Args:
          window: the number of steps that are judged together; None: an eighth of the run, within 20 and 100.
          settling: the number of first steps that are not judged; None: an eighth of the run, within 50 and 1000.

        Raises:
          SettingError: if a number of steps is out of range.
        """
        if window is not None and window < 1:
            raise SettingError(f"WatchRouters.window = {window} must be at least 1.")
        if settling is not None and settling < 0:
            raise SettingError(f"WatchRouters.settling = {settling} must not be negative.")
        self._settings = settling, window

    def on_start(self, loop: "TrainingLoop") -> None:
        self._settling, self._window = (
            default if setting is None else setting for setting, default in zip(self._settings, periods(loop.steps))
        )
        self._steps: collections.deque[dict[str, np.ndarray]] = collections.deque(maxlen=self._window)
        self._monitor = Monitor(self._window, loop.run.experiment.model.capacity_factor)
        if loop.recorder is not None:
            for event in loop.recorder.findings():
                _replay(self._monitor, event, loop.step)

    def on_metrics(self, loop: "TrainingLoop", steps: Sequence[tuple[int, StepMetrics]]) -> None:
        if loop.recorder is None:
            return
        for step, metrics in steps:
            if step > self._settling and not metrics.skipped:
                rows = {layer: layer_row(metrics.routing[layer], updates) for layer, updates in metrics.updates.items()}
                self._steps.append(rows)
        if len(self._steps) < self._window:
            return
        windows = {layer: layer_window([rows[layer] for rows in self._steps]) for layer in self._steps[-1]}
        last_step, _ = steps[-1]
        events = self._monitor.check(last_step, windows)
        if events:
            loop.recorder.write_findings(events)
        for event in events:
            loop.progress.say(f"step {event.step}: {described(event)}")


def described(event: Event) -> str:
    """Returns what is printed of a finding."""
    return event.sentence if event.begins else f"{event.layer}: '{event.rule}' no longer holds."


def _replay(monitor: Monitor, event: Event, step: int) -> None:
    """Makes a finding of before a restart known to the monitor, or forgets one that has ended."""
    if event.begins:
        monitor.active[event.layer, event.rule] = Active(event.step, step, event.sentence)
    else:
        monitor.active.pop((event.layer, event.rule), None)
