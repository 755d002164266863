"""What happens around the updates of a training run. Each thing is a hook with its own period, made by gin.

A hook of your own is a gin-configurable subclass of `Hook` or `PeriodicHook`, listed in the macro `HOOKS`.
"""

import abc
import dataclasses
import math
import signal
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import gin
import tensorflow as tf

from switch_tf.checkpoints.manifest import Score
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.errors import SettingError
from switch_tf.evaluation.likelihood import make_evaluator
from switch_tf.evaluation.tasks import TaskEvaluation, TaskEvaluator, flat, held_out_name
from switch_tf.runs.progress import StopSignals
from switch_tf.runs.teachers import SHARE_OF_GAIN
from switch_tf.training.step import StepMetrics

if TYPE_CHECKING:
    from switch_tf.runs.loop import TrainingLoop


class Hook:
    """Called by the training loop; does nothing by itself. In many processes, all of them call every hook."""

    def setup(self, loop: "TrainingLoop") -> None:
        """Checks settings and opens what the hook needs; the weights are restored, no update has been made.

        Raises:
          SettingError: if a setting or a file is wrong.
        """

    def on_start(self, loop: "TrainingLoop") -> None:
        """Called before the first update, if there is one to make."""

    def after_step(self, loop: "TrainingLoop") -> None:
        """Called after every update."""

    def on_metrics(self, loop: "TrainingLoop", steps: Sequence[tuple[int, StepMetrics]]) -> None:
        """Called with the metrics of steps, as numpy, when they have been fetched and written."""

    def on_exit(self, loop: "TrainingLoop") -> None:
        """Called when the loop ends, by an error too."""


class PeriodicHook(Hook, abc.ABC):
    """Acts after every `period` steps, and when the loop ends."""

    setting: ClassVar[str] = "period"
    """The macro of the period, for errors."""

    def __init__(self, period: int = gin.REQUIRED):
        if period < 1:
            raise SettingError(f"{self.setting} = {period} must be at least 1.")
        self.period = period

    def is_due(self, loop: "TrainingLoop") -> bool:
        """Whether to act after this step."""
        return loop.is_ending or loop.step % self.period == 0

    def after_step(self, loop: "TrainingLoop") -> None:
        if self.is_due(loop):
            self.act(loop)

    @abc.abstractmethod
    def act(self, loop: "TrainingLoop") -> None:
        """Does what is due."""


@gin.configurable
class StopOnSignals(Hook):
    """Ends the loop after SIGTERM (a preemption) or Ctrl-C in any process; a checkpoint is saved then."""

    def __init__(self) -> None:
        self._signals = StopSignals()

    def on_start(self, loop: "TrainingLoop") -> None:
        self._signals.__enter__()

    def after_step(self, loop: "TrainingLoop") -> None:
        received = self._signals.received
        # After the last step the run ends by itself, with its evaluation.
        if not loop.is_last and loop.run.engine.processes.any_process(received is not None):
            loop.stopped_by = received or signal.SIGTERM

    def on_exit(self, loop: "TrainingLoop") -> None:
        self._signals.__exit__()


@gin.configurable
class RecordMetrics(PeriodicHook):
    """Writes the metrics of all steps since the last time to the CSV files, TensorBoard and the progress bar."""

    setting = "LOG_PERIOD"

    def act(self, loop: "TrainingLoop") -> None:
        loop.write_metrics()


class _EvaluationHook(PeriodicHook):
    """Measures the weights. A run that is stopped at a step whose evaluation is due is evaluated when it resumes."""

    setting = "EVAL_PERIOD"

    def is_due(self, loop: "TrainingLoop") -> bool:
        return loop.stopped_by is None and super().is_due(loop)

    def is_missing(self, loop: "TrainingLoop") -> bool:
        """Whether the run was stopped at this very step, before the evaluation that was due."""
        return loop.lacks_evaluation and loop.step % self.period == 0


@gin.configurable
class ScoreTasks(_EvaluationHook):
    """Scores tasks by their own metrics; a checkpoint whose best metric is higher than ever is saved, and stays.

    Comes before `EvaluateHeldOut`, whose row in `eval.csv` says that the evaluation of a step is complete.
    """

    def __init__(self, period: int = gin.REQUIRED, tasks: TaskEvaluation = gin.REQUIRED, split: str = "validation"):
        """Makes the hook.

        Args:
          period: updates between evaluations.
          tasks: which tasks; none where it names none.
          split: which split of them.

        Raises:
          SettingError: if a setting is out of range.
        """
        super().__init__(period)
        if tasks.best_metric is not None and tasks.mixture_or_task is None:
            raise SettingError(f"BEST_METRIC = '{tasks.best_metric}' needs EVAL_TASK, the task that it is a metric of.")
        self._tasks = tasks
        self._split = split
        self._evaluate: TaskEvaluator | None = None
        self._best_value: float | None = None

    def setup(self, loop: "TrainingLoop") -> None:
        if self._tasks.mixture_or_task is None:
            return
        run, experiment = loop.run, loop.run.experiment
        self._evaluate = TaskEvaluator(
            run.model,
            run.engine,
            self._tasks,
            experiment.mixture_or_task,
            experiment.task_feature_lengths,
            self._split,
        )
        if self._tasks.best_name is not None:
            self._best_value = run.checkpoints.best_value(self._tasks.best_name)

    def on_start(self, loop: "TrainingLoop") -> None:
        if self._evaluate is None or not self.is_missing(loop) or not self._score(loop, self._evaluate):
            return
        if loop.recorder is not None:
            loop.recorder.copy_records()
            checkpoints = loop.run.checkpoints
            checkpoints.complete(loop.step, dataclasses.replace(checkpoints.manifest(loop.step), score=loop.score))

    def act(self, loop: "TrainingLoop") -> None:
        if self._evaluate is not None:
            loop.write_metrics()
            loop.checkpoint_requested |= self._score(loop, self._evaluate)

    def _score(self, loop: "TrainingLoop", evaluate: TaskEvaluator) -> bool:
        """Scores and records; returns whether the best metric is higher than ever."""
        scores = evaluate().scores
        if loop.recorder is not None:
            loop.recorder.write_task_scores(loop.step, scores)
        values = flat(scores)
        loop.progress.say(f"step {loop.step}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
        loop.progress.restart_clock()
        name = self._tasks.best_name
        if name is None:
            return False
        value = values[name]
        is_number = not math.isnan(value)
        if is_number:
            loop.score = Score(name, value)
        # A metric may draw samples (ROUGE does), and all processes must save or none.
        is_higher = is_number and (self._best_value is None or value > self._best_value)
        is_better = loop.run.engine.processes.any_process(is_higher)
        if is_better:
            self._best_value = value
        return is_better


@gin.configurable
class EvaluateHeldOut(_EvaluationHook):
    """Measures the likelihood of held-out data."""

    def __init__(
        self,
        period: int = gin.REQUIRED,
        num_batches: int | None = None,
        tasks: TaskEvaluation | None = None,
        split: str = "validation",
    ):
        """Makes the hook.

        Args:
          period: updates between evaluations.
          num_batches: batches of one evaluation; None for the whole split.
          tasks: those that are scored; their data are measured where the training data lack the split.
          split: which split is held out.

        Raises:
          SettingError: if the period is not positive.
        """
        super().__init__(period)
        self._num_batches = num_batches
        self._tasks = tasks
        self._split = split

    def setup(self, loop: "TrainingLoop") -> None:
        experiment = loop.run.experiment
        self._batches = evaluation_batches(
            held_out_name(experiment.mixture_or_task, self._tasks, self._split),
            experiment.task_feature_lengths,
            experiment.batch_size,
            self._num_batches,
            self._split,
            cache=experiment.cache,
        )
        run = loop.run
        teacher, weights = (None, ()) if run.teacher is None else (run.teacher.model_teacher, run.teacher.weights)
        self._evaluate = make_evaluator(run.model, run.engine, teacher, weights)

    def on_start(self, loop: "TrainingLoop") -> None:
        if self.is_missing(loop):
            self._measure(loop)
            if loop.recorder is not None:
                loop.recorder.copy_records()

    def act(self, loop: "TrainingLoop") -> None:
        loop.write_metrics()
        self._measure(loop)

    def _measure(self, loop: "TrainingLoop") -> None:
        values = self._evaluate(self._batches)
        if loop.run.teacher is not None:
            values = loop.run.teacher.with_share_of_gain(values)
        if loop.recorder is not None:
            loop.recorder.write_evaluation(loop.step, values)
        loop.progress.say(
            f"step {loop.step}: held-out negative log perplexity {values['neg_log_perplexity']:.4f}, "
            f"accuracy {values['accuracy']:.4f}{_of_teacher(values)}"
        )
        loop.progress.restart_clock()


def _of_teacher(values: Mapping[str, float]) -> str:
    """What an evaluation measured of a teacher, as the end of a sentence."""
    text = ""
    if "teacher_neg_log_perplexity" in values:
        text += f"; teacher {values['teacher_neg_log_perplexity']:.4f}, agreement {values['teacher_agreement']:.4f}"
    return text + (f", share of gain {values[SHARE_OF_GAIN]:.3f}" if SHARE_OF_GAIN in values else "")


@gin.configurable
class SaveCheckpoints(PeriodicHook):
    """Saves checkpoints: on its period, where another hook has asked for one, and when the loop ends."""

    setting = "CHECKPOINT_PERIOD"

    def __init__(self, period: int = gin.REQUIRED, keep: int = 3):
        """Makes the hook.

        Args:
          period: updates between checkpoints.
          keep: how many of the newest checkpoints stay, besides the best one.

        Raises:
          SettingError: if a setting is not positive.
        """
        super().__init__(period)
        self._keep = keep

    def setup(self, loop: "TrainingLoop") -> None:
        loop.run.checkpoints.keep_newest(self._keep)

    def is_due(self, loop: "TrainingLoop") -> bool:
        return loop.checkpoint_requested or super().is_due(loop)

    def after_step(self, loop: "TrainingLoop") -> None:
        loop.run.writer.check()
        super().after_step(loop)

    def act(self, loop: "TrainingLoop") -> None:
        # The rows of all steps that are in the checkpoint come first.
        loop.write_metrics()
        if loop.recorder is not None:
            loop.recorder.copy_records()
        loop.run.save(loop.batches, loop.score)
        loop.checkpoint_requested = False
        loop.progress.restart_clock()


@gin.configurable
class ProfileSteps(Hook):
    """Writes a profile of some steps into the model directory, for TensorBoard's profiler."""

    def __init__(self, steps: tuple[int, int] | None = None):
        """Makes the hook.

        Args:
          steps: the first and the last step of the profile; None for no profile.

        Raises:
          SettingError: if that is no range of steps.
        """
        is_range = steps is None or (len(steps) == 2 and 1 <= steps[0] <= steps[1])
        if not is_range:
            raise SettingError(f"PROFILE_STEPS = {steps} must be a first and a last step, (101, 105), or None.")
        self._steps = steps
        self._is_on = False

    def on_start(self, loop: "TrainingLoop") -> None:
        self._start_before(loop, loop.step + 1)

    def after_step(self, loop: "TrainingLoop") -> None:
        if self._is_on and self._steps is not None and loop.step == self._steps[1]:
            self._stop()
        self._start_before(loop, loop.step + 1)

    def on_exit(self, loop: "TrainingLoop") -> None:
        if self._is_on:
            self._stop()

    def _start_before(self, loop: "TrainingLoop", step: int) -> None:
        if self._steps is not None and step == self._steps[0] and loop.run.engine.is_first_process:
            tf.profiler.experimental.start(loop.run.experiment.model_dir)
            self._is_on = True

    def _stop(self) -> None:
        self._is_on = False
        tf.profiler.experimental.stop()
