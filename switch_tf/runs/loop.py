"""The training loop: reads and assigns variables around the pure step, evaluates, saves, resumes, stops when told."""

import math
import signal
from collections.abc import Callable

import gin
import tensorflow as tf

from switch_tf.data.batches import EvaluationBatches, TrainingBatches, evaluation_batches
from switch_tf.errors import SettingError
from switch_tf.evaluation.likelihood import make_evaluator
from switch_tf.evaluation.tasks import TaskEvaluation, TaskEvaluator, flat, held_out_name
from switch_tf.planning.layout_checks import placement_notes
from switch_tf.runs.experiment import Experiment, Run, write_description
from switch_tf.runs.progress import Progress, StopSignals
from switch_tf.runs.recorder import RunRecorder, is_finite
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.step import make_train_step

_TOKEN_FEATURES = ("encoder_input_tokens", "decoder_target_tokens")


class Stopped(Exception):
    """The run was told to stop, and has saved a checkpoint; `signal_number` says by what."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def make_update(run: Run, objective: Objective, num_microbatches: int) -> Callable:
    """Compiles one update of a run's variables.

    Args:
      run: with an optimizer.
      objective: the auxiliary losses.
      num_microbatches: parts of a batch for the gradient.

    Returns:
      update(features) -> `StepMetrics` on the device; weights, slots and the step have been assigned.
    """
    step_function = make_train_step(run.model, run.optimizer, objective, num_microbatches)
    weights = run.model.trainable_variables
    slots = run.optimizer.slots

    def update(features):
        weight_values = [tf.convert_to_tensor(weight) for weight in weights]
        slot_values = [{name: tf.convert_to_tensor(slot) for name, slot in slot.items()} for slot in slots]
        new_weights, new_slots, metrics = step_function(
            weight_values, slot_values, run.step, features, run.experiment.seed
        )
        for weight, value in zip(weights, new_weights):
            weight.assign(value)
        for slot, values in zip(slots, new_slots):
            for name, value in values.items():
                slot[name].assign(value)
        run.step.assign_add(1)
        return metrics

    return run.engine.compile(update)


@gin.configurable
def train(
    experiment: Experiment = gin.REQUIRED,
    steps: int = gin.REQUIRED,
    optimizer: Callable[[], Adafactor] = gin.REQUIRED,
    objective: Objective = gin.REQUIRED,
    initial_checkpoint: str | None = None,
    num_microbatches: int = 1,
    eval_period: int = 1000,
    num_eval_batches: int | None = None,
    eval_split: str = "validation",
    task_evaluation: TaskEvaluation | None = None,
    checkpoint_period: int = 1000,
    keep_checkpoints: int = 3,
    log_period: int = 10,
) -> None:
    """Trains until `steps` updates have been made, from the newest checkpoint in the model directory if there is one.

    Args:
      experiment: model, data, directory, engine.
      steps: updates in all, those before a restart included.
      optimizer: makes T5's Adafactor, with its schedule: Keras makes variables with it, so the devices come first.
      objective: weights of z-loss and balance loss.
      initial_checkpoint: a model directory, or one of its checkpoints, whose weights the first step begins from.
      num_microbatches: gradient accumulation: parts of a batch that are in memory one after the other.
      eval_period: updates between evaluations on held-out data.
      num_eval_batches: batches of one evaluation; None for the whole split.
      eval_split: which split is held out.
      task_evaluation: which tasks are scored by their metrics at each evaluation, on the same split.
      checkpoint_period: updates between checkpoints.
      keep_checkpoints: how many of the newest checkpoints stay, besides the best one.
      log_period: updates between writes to the log files; every update gets its row.

    Raises:
      SettingError: if a setting, a file or the disk keeps the run from going on.
      Stopped: after SIGTERM or Ctrl-C, when a checkpoint has been saved.
    """
    for name, value in (
        ("EVAL_PERIOD", eval_period),
        ("CHECKPOINT_PERIOD", checkpoint_period),
        ("LOG_PERIOD", log_period),
    ):
        if value < 1:
            raise SettingError(f"{name} = {value} must be at least 1.")
    if task_evaluation is not None and task_evaluation.best_metric is not None and not task_evaluation.mixture_or_task:
        metric = task_evaluation.best_metric
        raise SettingError(f"BEST_METRIC = '{metric}' needs EVAL_TASK, the task that it is a metric of.")
    engine = experiment.make_engine(num_microbatches)
    for note in placement_notes(engine.layout, experiment.model) if engine.layout.num_devices > 1 else ():
        engine.say(f"Layout: {note}")
    with engine.first_process_first():
        experiment.install_vocabulary()
    batches = experiment.training_batches(engine)
    held_out = evaluation_batches(
        held_out_name(experiment.mixture_or_task, task_evaluation, eval_split),
        experiment.task_feature_lengths,
        experiment.batch_size,
        num_eval_batches,
        eval_split,
    )

    with engine.scope():
        run = Run(experiment, optimizer(), keep_checkpoints, engine)
    (start,) = engine.processes.broadcast_from_first([run.checkpoints.latest() or 0])
    if start:
        run.restore(start, batches)
        engine.say(f"Resuming {experiment.model_dir} from step {start}.")
    elif initial_checkpoint is not None:
        run.begin_from(initial_checkpoint)
        engine.say(f"Beginning from the weights of {initial_checkpoint}.")
    task_evaluator = None
    if task_evaluation is not None and task_evaluation.mixture_or_task is not None:
        task_evaluator = TaskEvaluator(run, task_evaluation, eval_split)
    if engine.is_first_process:
        write_description(experiment.model_dir)
    if start >= steps:
        engine.say(f"{experiment.model_dir} has been trained for {start} of {steps} steps: nothing to do.")
        engine.processes.close()
        return

    update = make_update(run, objective, num_microbatches)
    with StopSignals() as stop, Progress(start, steps, is_shown=engine.is_first_process) as progress:
        best = task_evaluation.best_name if task_evaluator is not None else None
        trainer = _Trainer(run, batches, held_out, update, progress, task_evaluator, best)
        try:
            stopped_by = trainer.run_until_done(steps, stop, eval_period, checkpoint_period, log_period)
        except tf.errors.OpError:
            engine.processes.exit_if_process_lost()
            raise
        finally:
            if trainer.recorder is not None:
                trainer.recorder.close()
    engine.processes.close()
    if stopped_by is not None:
        raise Stopped(
            f"Stopped by {signal.Signals(stopped_by).name} at step {trainer.step} of {steps}; a checkpoint is in "
            f"{run.checkpoints.folder}. Resume with the same command.",
            stopped_by,
        )


class _Trainer:
    """One process's loop: what it works on, and what it has not written yet."""

    def __init__(
        self,
        run: Run,
        batches: TrainingBatches,
        held_out: EvaluationBatches,
        update: Callable,
        progress: Progress,
        task_evaluator: TaskEvaluator | None,
        best_metric: str | None,
    ):
        self.run = run
        self.batches = batches
        self.held_out = held_out
        self.update = update
        self.evaluate = make_evaluator(run)
        self.task_evaluator = task_evaluator
        self.best_metric = best_metric
        self.best_value = run.checkpoints.best_value(best_metric) if best_metric is not None else None
        # Of the weights as they are now, by the best metric.
        self.score: dict[str, object] | None = None
        self.step = int(run.step.numpy())
        self.pending: list[tuple[int, object]] = []
        experiment = run.experiment
        # The first process writes for all of them.
        self.recorder = None
        if run.engine.is_first_process:
            self.recorder = RunRecorder(
                experiment.model_dir, experiment.model, self.step, scores_tasks=task_evaluator is not None
            )
        self.progress = progress

    def run_until_done(
        self, steps: int, stop: StopSignals, eval_period: int, checkpoint_period: int, log_period: int
    ) -> int | None:
        """Updates until all steps are made or a signal arrives, in any process; saves at the end either way.

        Returns:
          The signal, None where all steps have been made.
        """
        processes = self.run.engine.processes
        if self.step > 0 and self.step % eval_period == 0 and processes.any_process(self._lacks_evaluation()):
            # A signal came at this very step: it was saved at once, before the evaluation that was due.
            is_better = self.evaluate_held_out()
            if self.recorder is not None:
                self.recorder.copy_records()
            if is_better and self.run.engine.is_first_process:
                manifest = self.run.checkpoints.manifest(self.step) | {"score": self.score}
                self.run.checkpoints.complete(self.step, manifest)
        while self.step < steps:
            self.update_once()
            self.run.writer.check()
            # After the last step the run ends by itself, with its evaluation.
            if self.step < steps and processes.any_process(stop.received is not None):
                self.save()
                self.run.writer.finish()
                return stop.received or signal.SIGTERM
            is_last = self.step == steps
            if is_last or self.step % log_period == 0:
                self.flush()
            is_better = (is_last or self.step % eval_period == 0) and self.evaluate_held_out()
            if is_last or is_better or self.step % checkpoint_period == 0:
                self.save()
        self.run.writer.finish()
        return None

    def _lacks_evaluation(self) -> bool:
        return self.recorder is not None and not self.recorder.has_evaluation(self.step)

    def update_once(self) -> None:
        """Takes the next batch and makes one update; its metrics stay on the device until `flush`."""
        batch = next(self.batches)
        with self.run.engine.scope():
            metrics = self.update(self.run.engine.feed(batch))
        self.step += 1
        self.score = None
        self.pending.append((self.step, metrics))
        self.progress.advance(self.run.experiment.batch_size * sum(batch[name].shape[1] for name in _TOKEN_FEATURES))

    def flush(self) -> None:
        """Fetches and writes the metrics of all steps since the last time.

        Raises:
          SettingError: if a loss is not a number: the weights are then not worth saving.
        """
        if not self.pending:
            return
        fetched = [(step, self.run.engine.fetch(metrics)) for step, metrics in self.pending]
        self.pending = []
        speed = self.progress.report(fetched[-1][1])
        if self.recorder is not None:
            self.recorder.write(fetched, speed)
        for step, metrics in fetched:
            if not is_finite(metrics):
                self.run.writer.finish()  # The sentence is about what is on the disk.
                self.run.engine.processes.close()
                raise SettingError(
                    f"The loss of step {step} is not a number; nothing was saved after step "
                    f"{self.run.checkpoints.latest() or 0}. Try ROUTER_DTYPE = 'float32', a smaller learning rate or "
                    "ModelConfig.initializer_scale = 0.1."
                )

    def evaluate_held_out(self) -> bool:
        """Evaluates on the held-out batches and the tasks, and records the results.

        Returns:
          Whether the best metric is higher than ever.
        """
        self.flush()
        # Before `eval.csv` gets its row, which says that the evaluation is complete.
        is_better = self.task_evaluator is not None and self.score_tasks(self.task_evaluator)
        values = self.evaluate(self.held_out)
        if self.recorder is not None:
            self.recorder.write_evaluation(self.step, values)
        self.progress.say(
            f"step {self.step}: held-out negative log perplexity {values['neg_log_perplexity']:.4f}, "
            f"accuracy {values['accuracy']:.4f}"
        )
        self.progress.restart_clock()
        return is_better

    def score_tasks(self, task_evaluator: TaskEvaluator) -> bool:
        """Scores the tasks and records the scores; see `evaluate_held_out`."""
        scores = task_evaluator().scores
        if self.recorder is not None:
            self.recorder.write_task_scores(self.step, scores)
        values = flat(scores)
        self.progress.say(f"step {self.step}: " + ", ".join(f"{name} {value:.2f}" for name, value in values.items()))
        if self.best_metric is None:
            return False
        value = values[self.best_metric]
        is_number = not math.isnan(value)
        if is_number:
            self.score = {"metric": self.best_metric, "value": value}
        # A metric may draw samples (ROUGE does), and all processes must save or none.
        is_better = self.run.engine.processes.any_process(
            is_number and (self.best_value is None or value > self.best_value)
        )
        if is_better:
            self.best_value = value
        return is_better

    def save(self) -> None:
        """Begins with a checkpoint, after the rows of all steps that are in it."""
        self.flush()
        if self.recorder is not None:
            self.recorder.copy_records()
        self.run.save(self.batches, self.score)
        self.progress.restart_clock()
