"""A run: a model with its optimizer on an engine, and its checkpoints. Training and everything after it work on one."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder, checkpoints_of, find_checkpoint
from switch_tf.checkpoints.manifest import SLOTS, Manifest, Score
from switch_tf.checkpoints.writer import CheckpointWriter
from switch_tf.data.resume_settings import data_settings
from switch_tf.data.training_batches import TrainingBatches
from switch_tf.errors import SettingError
from switch_tf.interop import upcycling
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.partitioning.axes import ShardIndex
from switch_tf.partitioning.engine import Engine
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.model_directory import versions
from switch_tf.runs.teachers import RunTeacher
from switch_tf.training.adafactor import Adafactor


class Run:
    """A model with its optimizer on an engine, and its checkpoints."""

    def __init__(
        self,
        experiment: Experiment,
        optimizer: Adafactor | None = None,
        keep_checkpoints: int = 3,
        engine: Engine | None = None,
        teacher: RunTeacher | None = None,
    ):
        """Builds model and slots; reads nothing yet.

        Args:
          experiment: the settings.
          optimizer: whose slots to make; None for evaluation, which needs none.
          keep_checkpoints: how many checkpoints `save` leaves.
          engine: the experiment's, where it is open already.
          teacher: of the model; None without one.
        """
        self.experiment = experiment
        self.teacher = teacher
        self.engine = engine or experiment.make_engine()
        self.checkpoints = checkpoints_of(experiment.model_dir, keep_checkpoints)
        self.writer = CheckpointWriter(self.checkpoints, self.engine)
        self.optimizer = optimizer
        # Looked up once: files may be added while the run reads those that there were.
        self._data_settings = {} if optimizer is None else data_settings(experiment.mixture_or_task, experiment.cache)
        with self.engine.scope():
            self.model = EncoderDecoder(experiment.model, seed=experiment.seed)
            self.model.build()
            if optimizer is not None:
                optimizer.build(self.model.trainable_variables)
            self.step = tf.Variable(0, dtype=tf.int64, trainable=False)

    def variables(self) -> dict[str, tf.Variable]:
        """Returns every variable that a checkpoint holds, by name: weights, slots (`.../slots/v_row`) and the step."""
        named = {"step": self.step}
        for index, weight in enumerate(self.model.trainable_variables):
            name = weight_name(weight)
            named[name] = weight.value
            if self.optimizer is not None:
                for slot, variable in self.optimizer.slots[index].items():
                    named[f"{name}{SLOTS}{slot}"] = variable.value
        return named

    def weights(self) -> dict[str, tf.Variable]:
        """Returns the model's weights by name."""
        return {weight_name(weight): weight.value for weight in self.model.trainable_variables}

    def manifest(self, score: Score | None = None) -> Manifest:
        """Returns the manifest of a checkpoint of the current step.

        Args:
          score: of the current weights.
        """
        return Manifest(
            step=int(self.step.numpy()),
            settings=self._fixed_settings(),
            data=self._data_settings,
            model=dataclasses.asdict(self.experiment.model),
            shapes=_shapes(self.variables()),
            vocabulary=self.experiment.vocabulary_digest(),
            score=score,
            slots_since=0 if self.optimizer is None else self.optimizer.step_offset,
            versions=versions(),
        )

    def _fixed_settings(self) -> dict[str, object]:
        of_teacher = {} if self.teacher is None else self.teacher.fixed_settings()
        return self.experiment.fixed_settings() | of_teacher

    def save(self, batches: TrainingBatches, score: Score | None = None) -> None:
        """Starts writing a checkpoint of the current step: variables, position of the data, and the manifest.

        What is written has been copied when this returns; `writer` says when it is on the disk.

        Args:
          batches: the training data.
          score: of the current weights; None where they were not scored.

        Raises:
          SettingError: if the disk cannot be written, or the checkpoint before could not be.
        """
        # Two copies of the state would be in memory otherwise.
        self.writer.wait()
        shards = [tensor_bundle.Shard(name, "", position) for name, position in batches.positions().items()]
        for name, variable in self.variables().items():
            for index, values in self.engine.shards(variable):
                shards.append(tensor_bundle.Shard(name, tensor_bundle.slice_spec(index, variable.shape), values))
        manifest = self.manifest(score)
        self.writer.start(manifest.step, shards, manifest)

    def check(self, step: int) -> None:
        """Checks that a checkpoint is of this model and vocabulary and, to train on, of this data and seed.

        Raises:
          SettingError: if it is of another.
        """
        manifest = self.checkpoints.manifest(step)
        difference = manifest.difference(_shapes(self.variables()), with_slots=self.optimizer is not None)
        if difference is not None:
            raise SettingError(
                f"MODEL_DIR = '{self.experiment.model_dir}' holds another model: {difference}; use another MODEL_DIR, "
                "or the gin files and macros of its config.gin."
            )
        if manifest.vocabulary != self.experiment.vocabulary_digest():
            raise SettingError(
                f"{self.experiment.vocabulary_path} is not the vocabulary that the checkpoint of step {step} was "
                "trained with: put that file back, or use another MODEL_DIR."
            )
        if self.optimizer is None:
            return
        self._check_same(manifest.settings, self._fixed_settings())
        if manifest.data is not None:
            self._check_same(manifest.data, self._data_settings)

    def _check_same(self, theirs: Mapping[str, object], ours: Mapping[str, object]) -> None:
        for name in {**ours, **theirs}:
            if theirs.get(name) != ours.get(name):
                raise SettingError(
                    f"MODEL_DIR = '{self.experiment.model_dir}' holds a run with {name} = {theirs.get(name)!r}, not "
                    f"{ours.get(name)!r}: set it back, or use another MODEL_DIR."
                )

    def restore(self, step: int, batches: TrainingBatches | None = None) -> None:
        """Reads a checkpoint, whatever engine and mesh wrote it, into the variables and the position of the data.

        Args:
          step: which checkpoint.
          batches: the training data; None for evaluation, which needs no position.

        Raises:
          SettingError: if it belongs to another model or vocabulary, or is damaged.
        """
        self.check(step)
        if self.optimizer is not None:
            self.optimizer.step_offset = self.checkpoints.manifest(step).slots_since
        prefix = self.checkpoints.prefix(step)
        try:
            self._load(prefix, self.variables())
            if batches is not None:
                batches.restore(lambda name: tensor_bundle.read(prefix, name, tf.variant))
        except tf.errors.OpError as error:
            raise self.checkpoints.unreadable(step, error) from error

    def _load(self, prefix: str, variables: Mapping[str, tf.Variable]) -> None:
        for name, variable in variables.items():
            self.engine.load(variable, _reader(prefix, name, variable))

    def continue_from_weights(self, step: int) -> None:
        """Reads a checkpoint of weights alone, which `switch-tf convert` made, and its step; data start over.

        Slots are read where it has them; where not, they start at zero, and so does their decay.

        Args:
          step: which checkpoint.

        Raises:
          SettingError: if it belongs to another model or vocabulary, or is damaged.
        """
        manifest = self.checkpoints.manifest(step)
        variables = self.variables()
        has_slots = self.optimizer is not None and manifest.difference(_shapes(variables), with_slots=True) is None
        if not has_slots:
            # A damaged checkpoint may have filled some of them.
            for name in [name for name in variables if SLOTS in name]:
                slot = variables.pop(name)
                self.engine.load(slot, lambda shard: np.zeros(shard.shape, np.float32))
        place = f"MODEL_DIR = '{self.experiment.model_dir}'"
        self._load_from(self.checkpoints, step, variables, place, {name: name for name in variables})
        if self.optimizer is not None:
            self.optimizer.step_offset = manifest.slots_since if has_slots else step

    def start_from(self, initial: str, upcycle: bool = False) -> None:
        """Reads the weights of another run's checkpoint, whatever engine and mesh wrote it.

        Step and slots stay new. Of a dense checkpoint that is upcycled, each expert is a copy of the layer's
        feed-forward layer, routers stay new, and the step is the checkpoint's (Komatsuzaki et al. 2022).

        Args:
          initial: that run's model directory, for its newest checkpoint, or one of its checkpoints.
          upcycle: whether the checkpoint is of the dense model of this sparse one.

        Raises:
          SettingError: if there is none, it is of another model or vocabulary, or it is damaged.
        """
        checkpoints, step = find_checkpoint(initial)
        variables = self.weights()
        sources = {name: name for name in variables}
        if upcycle:
            sources = upcycling.sources(variables)
            if sources.keys() == variables.keys():
                raise SettingError("UPCYCLE = True needs a model with experts: set NUM_EXPERTS, or UPCYCLE = False.")
            variables["step"] = self.step
            sources["step"] = "step"
        place = f"INITIAL_CHECKPOINT = '{initial}'"
        self._load_from(checkpoints, step, variables, place, sources)
        if upcycle and self.optimizer is not None:
            self.optimizer.step_offset = step

    def _load_from(
        self,
        checkpoints: CheckpointFolder,
        step: int,
        variables: Mapping[str, tf.Variable],
        place: str,
        sources: Mapping[str, str],
    ) -> None:
        """Loads those variables that have a source in a checkpoint of another run."""
        manifest = checkpoints.manifest(step)
        shapes = {"step": ()}
        for name, source in sources.items():
            shape = tuple(variables[name].shape)
            shapes[source] = shape if source == name else shape[1:]
        difference = manifest.difference(shapes, with_slots=any(SLOTS in name for name in shapes))
        if difference is not None:
            raise SettingError(
                f"{place} holds another model: {difference}; use the model's gin files and macros of its config.gin."
            )
        if manifest.vocabulary != self.experiment.vocabulary_digest():
            raise SettingError(
                f"{place} was trained with another vocabulary than {self.experiment.vocabulary_path}: set VOCABULARY = "
                "@InitialVocabulary() in another MODEL_DIR."
            )
        prefix = checkpoints.prefix(step)
        try:
            for name, source in sources.items():
                variable = variables[name]
                read = _reader(prefix, name, variable) if source == name else _copies(prefix, source, variable)
                self.engine.load(variable, read)
        except tf.errors.OpError as error:
            fault = storage.refusal(error) or f"{checkpoints.path(step)} is damaged; take another checkpoint"
            raise SettingError(f"{place}: {fault}.") from error


def _shapes(variables: Mapping[str, tf.Variable]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(variable.shape) for name, variable in variables.items()}


def _reader(prefix: str, name: str, variable: tf.Variable) -> Callable[[ShardIndex], np.ndarray]:
    def read(index: ShardIndex) -> np.ndarray:
        spec = tensor_bundle.slice_spec(index, variable.shape)
        return tensor_bundle.read(prefix, name, variable.dtype, spec).numpy()

    return read


def _copies(prefix: str, source: str, table: tf.Variable) -> Callable[[ShardIndex], np.ndarray]:
    """Reads a block of a table of experts, each of which is a copy of the matrix `source`."""

    def read(index: ShardIndex) -> np.ndarray:
        spec = tensor_bundle.slice_spec(ShardIndex(index.start[1:], index.shape[1:]), table.shape[1:])
        return np.broadcast_to(tensor_bundle.read(prefix, source, table.dtype, spec).numpy(), index.shape)

    return read


def load_run(experiment: Experiment, step: int | None = None) -> Run:
    """Builds an experiment's model and reads a checkpoint's weights.

    Args:
      experiment: its model directory must hold a checkpoint.
      step: which one; None for the newest.

    Returns:
      The run, without optimizer slots.

    Raises:
      SettingError: if there is no such checkpoint, or it is of another model or vocabulary, or damaged.
    """
    steps = checkpoints_of(experiment.model_dir).choose([] if step is None else [step])
    engine = experiment.make_engine()
    with engine.first_process_first():
        experiment.install_vocabulary()
    run = Run(experiment, engine=engine)
    (step,) = engine.processes.broadcast_from_first(steps[-1:])
    run.restore(step)
    return run
