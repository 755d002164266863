"""The training loop: reads and assigns variables around the pure step. Everything periodic is a hook."""

import signal
from collections.abc import Callable, Sequence

import gin
import tensorflow as tf

from switch_tf import compat
from switch_tf.checkpoints.manifest import Score
from switch_tf.data.training_batches import TrainingBatches
from switch_tf.errors import SettingError
from switch_tf.partitioning import devices
from switch_tf.partitioning.processor import faster_dtype, is_slower_dtype
from switch_tf.planning.layout_checks import placement_notes
from switch_tf.runs import directory_lock, gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.hooks import Hook
from switch_tf.runs.loss_watch import GoBack
from switch_tf.runs.model_directory import check_links, write_description
from switch_tf.runs.progress import Progress
from switch_tf.runs.recorder import RunRecorder
from switch_tf.runs.resuming import restore_newest
from switch_tf.runs.run import Run
from switch_tf.runs.teacher_settings import TeacherSettings
from switch_tf.runs.teachers import RunTeacher
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.step import Features, StepMetrics, make_train_step

_TOKEN_FEATURES = ("encoder_input_tokens", "decoder_target_tokens")


class Stopped(Exception):
    """The run was told to stop, and has saved a checkpoint; `signal_number` says by what."""

    def __init__(self, message: str, signal_number: int):
        super().__init__(message)
        self.signal_number = signal_number


def make_update(run: Run, objective: Objective, num_microbatches: int) -> Callable:
    """Compiles one update of a run's variables.

    Args:
      run: with an optimizer, and perhaps a teacher.
      objective: the auxiliary losses.
      num_microbatches: microbatches of a batch; their gradients are accumulated.

    Returns:
      update(features) -> `StepMetrics` on the device; weights, slots and the step have been assigned.
    """
    optimizer = run.optimizer
    assert optimizer is not None, "A run that updates has an optimizer."
    distillation = None if run.teacher is None else run.teacher.distillation
    step_function = make_train_step(run.model, optimizer, objective, num_microbatches, distillation)
    weights, slots = run.model.trainable_variables, optimizer.slots
    teacher_weights = [] if run.teacher is None else run.teacher.weights

    def update(features: Features) -> StepMetrics:
        weight_values = [tf.convert_to_tensor(weight) for weight in weights]
        slot_values = [{name: tf.convert_to_tensor(slot) for name, slot in slot.items()} for slot in slots]
        teacher_values = [tf.convert_to_tensor(weight) for weight in teacher_weights]
        new_weights, new_slots, metrics = step_function(
            weight_values, slot_values, run.step, features, run.experiment.seed, teacher_values
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
    hooks: Sequence[Hook] = gin.REQUIRED,
    extra_hooks: Sequence[Hook] = (),
    initial_checkpoint: str | None = None,
    upcycle: bool = False,
    num_microbatches: int = 1,
    teacher: TeacherSettings | None = None,
) -> None:
    """Trains until `steps` updates have been made, from the newest checkpoint in the model directory if there is one.

    Args:
      experiment: model, data, directory, engine.
      steps: updates in all, those before a restart included.
      optimizer: makes T5's Adafactor, with its schedule: Keras makes variables with it, so the devices come first.
      objective: weights of z-loss and balance loss.
      hooks: what happens around the updates, in this order after each of them.
      extra_hooks: of the user's own, after those.
      initial_checkpoint: a model directory, or one of its checkpoints, whose weights the run starts from.
      upcycle: whether that checkpoint is of a dense model, whose feed-forward layers become the experts; the step, and
        with it the learning rate, goes on from there.
      num_microbatches: gradient accumulation: microbatches of a batch, one in memory at a time.
      teacher: whose probabilities the model learns from; None without one.

    Raises:
      SettingError: if a setting, a file or the disk keeps the run from going on, a live run holds the directory, or a
        folder in it leads elsewhere.
      Stopped: after SIGTERM or Ctrl-C, when a checkpoint has been saved.
    """
    check_links(experiment.model_dir)
    with directory_lock.held(experiment.model_dir):
        _train(
            *(experiment, steps, optimizer, objective, [*hooks, *extra_hooks]),
            *(initial_checkpoint, upcycle, num_microbatches, teacher),
        )


def _train(
    experiment: Experiment,
    steps: int,
    optimizer: Callable[[], Adafactor],
    objective: Objective,
    hooks: Sequence[Hook],
    initial_checkpoint: str | None,
    upcycle: bool,
    num_microbatches: int,
    teacher: TeacherSettings | None,
) -> None:
    if teacher is not None and teacher.initialize_student and initial_checkpoint is not None:
        raise SettingError(
            f"INITIAL_CHECKPOINT = '{initial_checkpoint}' and INITIALIZE_FROM_TEACHER = True both say what the student "
            "starts with: set the first to None or the second to False."
        )
    engine = experiment.make_engine(num_microbatches)
    for note in placement_notes(engine.layout, experiment.model) if engine.layout.num_devices > 1 else ():
        engine.say(f"Layout: {note}")
    if devices.are_processors() and is_slower_dtype(experiment.model.activation_dtype):
        engine.say(f"Speed: {faster_dtype()}.")
    with engine.first_process_first():
        experiment.install_vocabulary()
    opened = None if teacher is None else RunTeacher(teacher, experiment, engine.layout, num_microbatches)
    batches = experiment.training_batches(engine, None if teacher is None else teacher.cache)
    with engine.scope():
        run = Run(experiment, optimizer(), engine=engine, teacher=opened)
    start = _restore(run, batches, initial_checkpoint, upcycle)
    if opened is not None:
        opened.place(engine)
    loop = TrainingLoop(run, batches, steps, hooks)
    for hook in hooks:
        hook.setup(loop)
    if engine.is_first_process:
        write_description(experiment.model_dir)
    if start >= steps:
        engine.say(f"{experiment.model_dir} has been trained for {start} of {steps} steps: nothing to do.")
        engine.processes.close()
        return
    loop = run_through_spikes(loop, make_update(run, objective, num_microbatches))
    engine.processes.close()
    if loop.stopped_by is not None:
        raise Stopped(
            f"Stopped by {signal.Signals(loop.stopped_by).name} at step {loop.step} of {steps}; a checkpoint is in "
            f"{run.checkpoints.folder}. Resume with the same command.",
            loop.stopped_by,
        )


def _restore(run: Run, batches: TrainingBatches, initial_checkpoint: str | None, upcycle: bool) -> int:
    """Restores the newest checkpoint that is whole, or else initial weights; returns the number of updates made."""
    engine = run.engine
    if restore_newest(run, batches) is not None:
        return int(run.step.numpy())
    if initial_checkpoint is not None:
        run.start_from(initial_checkpoint, upcycle)
        engine.say(f"Starting from the weights of {initial_checkpoint}.")
    elif run.teacher is not None and run.teacher.settings.initialize_student:
        run.teacher.initialize(run.weights(), engine)
    elif upcycle:
        raise SettingError("UPCYCLE = True needs INITIAL_CHECKPOINT, a dense model's: set it, or UPCYCLE = False.")
    return int(run.step.numpy())


def run_through_spikes(loop: "TrainingLoop", update: Callable) -> "TrainingLoop":
    """Runs a loop to its end, and that of its threads; from a spike it goes on as a run that resumes from a checkpoint.

    Args:
      loop: whose hooks are set up.
      update: what `make_update` returns.

    Returns:
      The loop that came to the end.
    """
    try:
        while True:
            try:
                loop.run_until_done(update)
                return loop
            except GoBack:
                restore_newest(loop.run, loop.batches)
                loop = loop.restarted()
    finally:
        loop.run.writer.close()


class TrainingLoop:
    """One process's loop, and what its hooks share.

    Attributes:
      run: model, optimizer, engine, checkpoints.
      batches: the training data.
      step: updates that have been made, those before a restart included.
      steps: updates to make in all.
      score: of the current weights, by the best metric; None where they were not scored.
      checkpoint_requested: whether a hook has asked for a checkpoint of this step.
      stopped_by: the signal that ends the loop after this step; None as long as it goes on.
      lacks_evaluation: whether the step that the run resumes from has no row in `eval.csv`.
      progress: the bar at the terminal.
      recorder: writes the run's files; None but in the first process, which writes for all.
    """

    def __init__(self, run: Run, batches: TrainingBatches, steps: int, hooks: Sequence[Hook]):
        self.run = run
        self.batches = batches
        self.steps = steps
        self.step = self._first_step = int(run.step.numpy())
        self.score: Score | None = None
        self.checkpoint_requested = False
        self.stopped_by: int | None = None
        self.lacks_evaluation = False
        self.recorder: RunRecorder | None = None
        self._hooks = hooks
        self._pending: list[tuple[int, object]] = []

    def restarted(self) -> "TrainingLoop":
        """Returns a loop that goes on from the step that the run has been restored to; told to stop, it still is."""
        loop = TrainingLoop(self.run, self.batches, self.steps, self._hooks)
        loop.stopped_by = self.stopped_by
        return loop

    @property
    def is_last(self) -> bool:
        """Whether this was the last step."""
        return self.step == self.steps

    @property
    def is_ending(self) -> bool:
        """Whether no step follows, in this process at least."""
        return self.is_last or self.stopped_by is not None

    def run_until_done(self, update: Callable) -> None:
        """Updates until all steps are made or a hook stops the loop.

        Args:
          update: what `make_update` returns.
        """
        engine, experiment = self.run.engine, self.run.experiment
        if engine.is_first_process:
            teacher = self.run.teacher
            scalars = ((), ()) if teacher is None else (teacher.step_scalars, teacher.evaluation_scalars)
            self.recorder = RunRecorder(experiment.model_dir, experiment.model, self.step, *scalars)
            self.recorder.write_settings(gin_config.scalar_macros())
        lacks_row = self.recorder is not None and not self.recorder.has_evaluation(self.step)
        has_checkpoint = self.step > 0 and self.step in self.run.checkpoints.steps()
        self.lacks_evaluation = engine.processes.any_process(has_checkpoint and lacks_row)
        with Progress(self.step, self.steps, is_shown=engine.is_first_process) as self.progress:
            try:
                for hook in self._hooks:
                    hook.on_start(self)
                while not self.is_ending:
                    self.update_once(update)
                    for hook in self._hooks:
                        hook.after_step(self)
                self.run.writer.finish()
            except tf.errors.OpError:
                engine.processes.exit_if_process_lost()
                raise
            finally:
                for hook in self._hooks:
                    hook.on_exit(self)
                if self.recorder is not None:
                    self.recorder.close()

    def update_once(self, update: Callable) -> None:
        """Takes the next batch and makes one update; its metrics stay on the device until `write_metrics`."""
        batch = next(self.batches)
        metrics = self.run.engine.run_rows(update, batch)
        if self.step == self._first_step:
            compat.return_freed_memory()  # What compiling the update has left: some 80 MB.
        self.step += 1
        self.score = None
        self._pending.append((self.step, metrics))
        self.progress.advance(self.run.experiment.batch_size * sum(batch[name].shape[1] for name in _TOKEN_FEATURES))

    def write_metrics(self) -> None:
        """Fetches and writes the metrics of all steps since the last time."""
        if not self._pending:
            return
        fetched = [(step, self.run.engine.fetch(metrics)) for step, metrics in self._pending]
        self._pending = []
        speed = self.progress.report(fetched[-1][1])
        if self.recorder is not None:
            self.recorder.write(fetched, speed)
        for hook in self._hooks:
            hook.on_metrics(self, fetched)
