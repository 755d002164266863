"""Hooks that watch the loss: too many skipped updates end a run, a spike sends it back to the checkpoint before."""

import collections
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import gin

from switch_tf.errors import SettingError
from switch_tf.runs.hooks import Hook
from switch_tf.runs.recorder import EVENTS, LAST_STEPS, read_csv
from switch_tf.training.step import StepMetrics

if TYPE_CHECKING:
    from switch_tf.runs.loop import TrainingLoop


def _is_skipped(row: Mapping[str, str]) -> bool:
    """Whether a row of metrics.csv is of a skipped update; earlier versions did not record it."""
    return float(row.get("skipped") or 0) > 0


@gin.configurable
class LimitSkippedUpdates(Hook):
    """Ends a run when too many updates in a row were skipped, because their loss or gradient was not finite."""

    def __init__(self, limit: int = 10):
        """Makes the hook.

        Args:
          limit: the run ends after so many skipped updates in a row; 1: after the first.

        Raises:
          SettingError: if the limit is out of range.
        """
        if not 1 <= limit <= LAST_STEPS:
            raise SettingError(f"MAX_SKIPPED_UPDATES = {limit} must be from 1 to {LAST_STEPS}.")
        self._limit = limit

    def on_start(self, loop: "TrainingLoop") -> None:
        rows = [] if loop.recorder is None else loop.recorder.last_steps
        made = [index for index, row in enumerate(rows) if not _is_skipped(row)]
        in_a_row = len(rows) - 1 - max(made, default=-1)
        (self._in_a_row,) = loop.run.engine.processes.broadcast_from_first([in_a_row])

    def on_metrics(self, loop: "TrainingLoop", steps: Sequence[tuple[int, StepMetrics]]) -> None:
        for step, metrics in steps:
            self._in_a_row = self._in_a_row + 1 if metrics.skipped else 0
            if self._in_a_row >= self._limit:
                loop.run.writer.finish()  # The sentence is about what is on the disk.
                loop.run.engine.processes.close()
                raise self._error(step, metrics, loop.run.checkpoints.latest() or 0)

    def _error(self, step: int, metrics: StepMetrics, saved: int) -> SettingError:
        what = "gradient" if math.isfinite(metrics.loss) else "loss"
        others = f", as of MAX_SKIPPED_UPDATES = {self._limit} in a row" if self._limit > 1 else ""
        return SettingError(
            f"The {what} of step {step} is not a number{others}; nothing was saved after step {saved}. Try "
            "ROUTER_DTYPE = 'float32', a smaller learning rate or ModelConfig.initializer_scale = 0.1."
        )


class Spike(NamedTuple):
    """A step whose loss is far above the median of the steps before.

    checkpoint: the step of the checkpoint before it, to which the run goes back.
    step: of the spike; the batches up to this step's are passed over.
    loss: of the step.
    median: of the losses before.
    """

    checkpoint: int
    step: int
    loss: float
    median: float


class GoBack(Exception):
    """A run goes on from its newest checkpoint, and passes over the batches up to a spike."""


def spikes_of(model_dir: str) -> dict[int, Spike]:
    """Returns the spikes that a run has gone back from, by the step of the checkpoint."""
    rows = read_csv(os.path.join(model_dir, EVENTS))
    spikes = (
        Spike(int(row["step"]), int(row["spike_step"]), float(row["loss"]), float(row["median_loss"])) for row in rows
    )
    return {spike.checkpoint: spike for spike in spikes}


@gin.configurable
class GoBackOnSpikes(Hook):
    """Goes back to the checkpoint before a spike of the loss and passes over the batches in between.

    As PaLM was trained (Chowdhery et al. 2022, Sec. 5.1): spikes come from certain batches in a certain state of the
    weights, and do not come back with other batches. A run goes back to each checkpoint once; a second spike before the
    next checkpoint is left alone.
    """

    def __init__(self, factor: float | None = None, window: int = 100):
        """Makes the hook.

        Args:
          factor: a step whose loss is more than so many times the median is a spike; None: none is.
          window: the number of steps before it whose losses have the median.

        Raises:
          SettingError: if a setting is out of range.
        """
        if factor is not None and not factor > 1:
            raise SettingError(f"SPIKE_FACTOR = {factor} must be more than 1, or None to go back from no spike.")
        if not 1 <= window <= LAST_STEPS:
            raise SettingError(f"GoBackOnSpikes.window = {window} must be from 1 to {LAST_STEPS}.")
        self._factor = factor
        self._window = window

    def on_start(self, loop: "TrainingLoop") -> None:
        if self._factor is None or loop.recorder is None:
            return
        losses = [math.nan if _is_skipped(row) else float(row["loss"]) for row in loop.recorder.last_steps]
        self._losses = collections.deque(losses, maxlen=self._window)
        self._gone_back = spikes_of(loop.run.experiment.model_dir).keys()
        self._left_alone: set[int | None] = set()

    def on_metrics(self, loop: "TrainingLoop", steps: Sequence[tuple[int, StepMetrics]]) -> None:
        if self._factor is None:
            return
        # The first process has the records, and decides for all.
        spike = None if loop.recorder is None else self._first_spike(loop, steps, self._factor)
        if spike is not None and loop.recorder is not None:
            loop.recorder.write_spike(spike.checkpoint, spike.step, spike.loss, spike.median)
            loop.progress.say(
                f"{_described(spike.step, spike.loss, spike.median)}: going back to the checkpoint of step "
                f"{spike.checkpoint}."
            )
        if loop.run.engine.processes.any_process(spike is not None):
            loop.run.writer.finish()
            raise GoBack

    def _first_spike(
        self, loop: "TrainingLoop", steps: Sequence[tuple[int, StepMetrics]], factor: float
    ) -> Spike | None:
        """Returns the first spike that has a checkpoint before it to which the run has not gone back."""
        for step, metrics in steps:
            loss, median = math.nan if metrics.skipped else float(metrics.loss), self._median()
            self._losses.append(loss)
            if loss > factor * median > 0:
                checkpoint = self._checkpoint_before(loop, step)
                if checkpoint is not None and checkpoint not in self._gone_back:
                    return Spike(checkpoint, step, loss, median)
                self._leave_alone(loop, _described(step, loss, median), checkpoint)
        return None

    def _median(self) -> float:
        """The median of the losses of the updates that were made; NaN before there are enough steps."""
        losses = [loss for loss in self._losses if not math.isnan(loss)]
        return statistics.median(losses) if losses and len(self._losses) == self._window else math.nan

    @staticmethod
    def _checkpoint_before(loop: "TrainingLoop", step: int) -> int | None:
        loop.run.writer.wait()  # It may still be on its way to the disk.
        checkpoints = loop.run.checkpoints
        newest = max((other for other in checkpoints.steps() if other < step), default=None)
        # One of weights alone does not say where the data stood.
        return None if newest is None or checkpoints.manifest(newest).has_weights_alone else newest

    def _leave_alone(self, loop: "TrainingLoop", description: str, checkpoint: int | None) -> None:
        """Says, once for each checkpoint, why the run does not go back."""
        if checkpoint not in self._left_alone:
            self._left_alone.add(checkpoint)
            reason = (
                "there is no checkpoint before it"
                if checkpoint is None
                else f"the run has gone back to the checkpoint of step {checkpoint} once"
            )
            loop.progress.say(f"{description}; {reason}, and goes on.")


def _described(step: int, loss: float, median: float) -> str:
    return f"step {step}: the loss is {loss:.4g}, {loss / median:.3g} times the median of the steps before"
