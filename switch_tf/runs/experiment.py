"""An experiment: which model, on which data, on which devices, in which directory. Every command starts from one."""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Callable, Mapping

import gin
import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder, checkpoints_of, find_checkpoint, write_error
from switch_tf.checkpoints.writer import CheckpointWriter
from switch_tf.data.batches import TrainingBatches, check_vocabulary, data_settings, find_task
from switch_tf.data.cached_tasks import file_digest
from switch_tf.data.sentencepiece import Vocabulary, path_in
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.partitioning import devices
from switch_tf.partitioning.axes import ShardIndex
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.engines import make_engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.planning.layout_checks import check_placement
from switch_tf.training.adafactor import Adafactor

_PACKAGES = ("tensorflow-text", "keras", "seqio", "t5", "tensorflow-datasets", "gin-config", "numpy")

# Between a weight's name and that of its optimizer slot.
_SLOTS = "/slots/"

# Of checkpoints: names and places of tensors, keys of the manifest.
_FORMAT = 2


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Experiment:
    """What the commands share.

    Attributes:
      model: the model's settings.
      model_dir: where the run keeps everything; local or in a bucket.
      mixture_or_task: the seqio name of the data.
      task_feature_lengths: tokens of each task feature, {"inputs": 512, "targets": 114}.
      batch_size: examples in a batch.
      vocabulary: gives the run its vocabulary; None where the tasks have one of their own.
      seed: of the weights, the data's order and noise, dropout and jitter.
      engine: "single", or another of the engines.
      mesh_shape: the devices, in Mesh TensorFlow's notation: "data:4,model:2".
      layout_rules: which axes are split over which dimension of the mesh: "batch:data,experts:data,heads:model".
      num_logical_devices: into how many devices to cut this machine's CPU, to try a mesh; None: as it is.
      num_data_shards: as how many streams the data are read; where it is a multiple of the hosts, each reads its own.
    """

    model: ModelConfig = gin.REQUIRED
    model_dir: str = gin.REQUIRED
    mixture_or_task: str = gin.REQUIRED
    task_feature_lengths: Mapping[str, int] = gin.REQUIRED
    batch_size: int = gin.REQUIRED
    vocabulary: Vocabulary | None = None
    seed: int = 0
    engine: str = "single"
    mesh_shape: str = ""
    layout_rules: str = ""
    num_logical_devices: int | None = None
    num_data_shards: int = 1

    def __post_init__(self):
        if self.batch_size < 1:
            raise SettingError(f"BATCH_SIZE = {self.batch_size} must be at least 1.")
        if self.num_data_shards < 1 or self.batch_size % self.num_data_shards:
            raise SettingError(
                f"NUM_DATA_SHARDS = {self.num_data_shards} must divide BATCH_SIZE = {self.batch_size} into equal parts."
            )
        if self.num_logical_devices is not None and self.num_logical_devices < 1:
            raise SettingError(
                f"NUM_LOGICAL_DEVICES = {self.num_logical_devices} must be at least 1, or None to take what there is."
            )
        if not isinstance(self.task_feature_lengths, Mapping):
            lengths = self.task_feature_lengths
            raise SettingError(
                f"TASK_FEATURE_LENGTHS = {lengths!r} is not of the form {{'inputs': 512, 'targets': 114}}."
            )
        for name, length in self.task_feature_lengths.items():
            if length < 1:
                raise SettingError(f"TASK_FEATURE_LENGTHS['{name}'] = {length} must be at least 1.")

    @property
    def vocabulary_path(self) -> str:
        """Where the run keeps its vocabulary."""
        return path_in(self.model_dir)

    def install_vocabulary(self) -> None:
        """Gives the tasks the run's vocabulary and checks that it fits the model.

        Raises:
          SettingError: if it cannot be read, is not the run's, or has more ids than the model.
        """
        find_task(self.mixture_or_task)
        if self.vocabulary is not None:
            try:
                self.vocabulary.install(self.model_dir)
            except OSError as error:
                raise write_error(self.vocabulary_path, error, checkpoints_of(self.model_dir)) from error
        check_vocabulary(self.mixture_or_task, self.model.vocab_size)

    def fixed_settings(self) -> dict[str, object]:
        """Returns what must stay as it was when a run resumes, by macro: data position and noise hang on it.

        `data_settings` adds what the data themselves hang on.
        """
        return {
            "SEED": self.seed,
            "MIXTURE_OR_TASK": self.mixture_or_task,
            "TASK_FEATURE_LENGTHS": dict(self.task_feature_lengths),
            "BATCH_SIZE": self.batch_size,
            "NUM_DATA_SHARDS": self.num_data_shards,
        }

    def make_engine(self, num_microbatches: int = 1) -> Engine:
        """Checks that model and batch fit the mesh, finds the other processes and opens the devices.

        Args:
          num_microbatches: parts of a batch that are in memory one after the other, in training.

        Raises:
          SettingError: if the engine, the mesh or the rules are wrong, or do not fit.
        """
        layout, processes = Layout.parse(self.mesh_shape, self.layout_rules), Processes.from_environment()
        num_devices = processes.count * devices.count(self.num_logical_devices) if self.engine == "dtensor" else None
        check_placement(layout, self.model, self.batch_size, self.task_feature_lengths, num_microbatches, num_devices)
        return make_engine(self.engine, layout, self.num_logical_devices, processes)

    def training_batches(self, engine: Engine) -> TrainingBatches:
        """Opens the training data, for the rows of a batch that this process feeds.

        Raises:
          SettingError: if the data cannot be had.
        """
        return TrainingBatches(
            self.mixture_or_task,
            self.task_feature_lengths,
            self.batch_size,
            self.seed,
            self.num_data_shards,
            [engine.rows(self.batch_size, process) for process in range(engine.num_processes)],
            engine.process_index,
        )

    def vocabulary_digest(self) -> str | None:
        """Returns the SHA-256 of the run's vocabulary, None where it keeps none."""
        return file_digest(self.vocabulary_path) if storage.exists(self.vocabulary_path) else None


class Run:
    """A model with its optimizer on an engine, and its checkpoints: what training and everything after it work on."""

    def __init__(
        self,
        experiment: Experiment,
        optimizer: Adafactor | None = None,
        keep_checkpoints: int = 3,
        engine: Engine | None = None,
    ):
        """Builds model and slots; reads nothing yet.

        Args:
          experiment: the settings.
          optimizer: whose slots to make; None to do without, for evaluation.
          keep_checkpoints: how many checkpoints `save` leaves.
          engine: the experiment's, where it is open already.
        """
        self.experiment = experiment
        self.engine = engine or experiment.make_engine()
        self.checkpoints = checkpoints_of(experiment.model_dir, keep_checkpoints)
        self.writer = CheckpointWriter(self.checkpoints, self.engine)
        self.optimizer = optimizer
        # Looked up once: files may come while the run reads those that there were.
        self._data_settings = {} if optimizer is None else data_settings(experiment.mixture_or_task)
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
                    named[f"{name}{_SLOTS}{slot}"] = variable.value
        return named

    def save(self, batches: TrainingBatches, score: Mapping[str, object] | None = None) -> None:
        """Begins to write a checkpoint of the current step: variables, position of the data, and what they belong to.

        What is written has been copied when this returns; `writer` says when it is on the disk.

        Args:
          batches: the training data.
          score: of these weights, as `CheckpointFolder.best` reads it; None where they have none.

        Raises:
          SettingError: if the disk cannot be written, or the checkpoint before could not be.
        """
        # Two copies of the state would be in memory otherwise.
        self.writer.wait()
        variables = self.variables()
        manifest = {
            "format": _FORMAT,
            "step": int(self.step.numpy()),
            "settings": self.experiment.fixed_settings(),
            "data": self._data_settings,
            "model": dataclasses.asdict(self.experiment.model),
            "shapes": {name: variable.shape.as_list() for name, variable in variables.items()},
            "vocabulary": self.experiment.vocabulary_digest(),
            "score": score,
            "versions": versions(),
        }
        shards = [tensor_bundle.Shard(name, "", position) for name, position in batches.positions().items()]
        for name, variable in variables.items():
            for block, values in self.engine.shards(variable):
                shards.append(tensor_bundle.Shard(name, tensor_bundle.slice_spec(block, variable.shape), values))
        self.writer.start(manifest["step"], shards, manifest)

    def check(self, step: int) -> None:
        """Checks that a checkpoint is of this model and this vocabulary and, to train on, of this data and seed.

        Raises:
          SettingError: if it is of another.
        """
        manifest = _readable_manifest(self.checkpoints, step)
        difference = _difference(manifest, self.variables(), with_slots=self.optimizer is not None)
        if difference is not None:
            raise SettingError(
                f"MODEL_DIR = '{self.experiment.model_dir}' holds another model: {difference}; use another MODEL_DIR, "
                "or the gin files and macros of its config.gin."
            )
        digest = self.experiment.vocabulary_digest()
        if manifest["vocabulary"] != digest:
            raise SettingError(
                f"{self.experiment.vocabulary_path} is not the vocabulary that the checkpoint of step {step} was "
                "trained with: put that file back, or use another MODEL_DIR."
            )
        if self.optimizer is None:
            return
        self._check_same(manifest["settings"], self.experiment.fixed_settings())
        if "data" in manifest:  # Earlier versions did not keep it.
            self._check_same(manifest["data"], self._data_settings)

    def _check_same(self, theirs: Mapping[str, object], ours: Mapping[str, object]) -> None:
        for name in ours | theirs:
            if theirs.get(name) != ours.get(name):
                raise SettingError(
                    f"MODEL_DIR = '{self.experiment.model_dir}' holds a run with {name} = {theirs.get(name)!r}, not "
                    f"{ours.get(name)!r}: set it back, or use another MODEL_DIR."
                )

    def restore(self, step: int, batches: TrainingBatches | None = None) -> None:
        """Reads a checkpoint, whatever engine and mesh wrote it, into the variables and the position of the data.

        Args:
          step: which checkpoint.
          batches: the training data; None to do without, for evaluation.

        Raises:
          SettingError: if it belongs to another model or vocabulary, or is damaged.
        """
        self.check(step)
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

    def begin_from(self, initial: str) -> None:
        """Reads the weights of another run's checkpoint, whatever engine and mesh wrote it; step and slots stay new.

        Args:
          initial: that run's model directory, for its newest checkpoint, or one of its checkpoints.

        Raises:
          SettingError: if there is none, it is of another model or vocabulary, or it is damaged.
        """
        checkpoints, step = find_checkpoint(initial)
        manifest = _readable_manifest(checkpoints, step)
        weights = {weight_name(weight): weight.value for weight in self.model.trainable_variables}
        difference = _difference(manifest, {"step": self.step, **weights}, with_slots=False)
        if difference is not None:
            raise SettingError(
                f"INITIAL_CHECKPOINT = '{initial}' holds another model: {difference}; use the model's gin files and "
                "macros of its config.gin."
            )
        if manifest["vocabulary"] != self.experiment.vocabulary_digest():
            raise SettingError(
                f"INITIAL_CHECKPOINT = '{initial}' was trained with another vocabulary than "
                f"{self.experiment.vocabulary_path}: set VOCABULARY = @InitialVocabulary() in another MODEL_DIR."
            )
        try:
            self._load(checkpoints.prefix(step), weights)
        except tf.errors.OpError as error:
            fault = storage.refusal(error) or f"{checkpoints.path(step)} is damaged; take another checkpoint"
            raise SettingError(f"INITIAL_CHECKPOINT = '{initial}': {fault}.") from error


def _readable_manifest(checkpoints: CheckpointFolder, step: int) -> dict:
    manifest = checkpoints.manifest(step)
    if manifest.get("format") != _FORMAT:
        raise SettingError(
            f"The checkpoint {checkpoints.path(step)} was made by another version of switch_tf: finish the "
            "run with that version, or start anew in another MODEL_DIR."
        )
    return manifest


def _difference(manifest: Mapping, variables: Mapping[str, tf.Variable], with_slots: bool) -> str | None:
    """Tells the first variable that is absent in a checkpoint, too many, or of another shape; None if all fit."""
    theirs = {name: tuple(shape) for name, shape in manifest["shapes"].items() if with_slots or _SLOTS not in name}
    ours = {name: tuple(variable.shape) for name, variable in variables.items()}
    different = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
    if not different:
        return None
    name = min(different)
    return f"{name} is {theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here"


def _reader(prefix: str, name: str, variable: tf.Variable) -> Callable[[ShardIndex], np.ndarray]:
    def read(block: ShardIndex) -> np.ndarray:
        return tensor_bundle.read(prefix, name, variable.dtype, tensor_bundle.slice_spec(block, variable.shape)).numpy()

    return read


def versions() -> dict[str, str]:
    """Returns the versions that a run depends on."""
    # On a TPU it is the distribution tensorflow-tpu that brings TensorFlow.
    basis = {"python": platform.python_version(), "tensorflow": tf.__version__}
    return basis | {name: importlib.metadata.version(name) for name in _PACKAGES}


def write_description(model_dir: str) -> None:
    """Writes `config.gin` (the operative config) and `versions.txt` into the model directory.

    Raises:
      SettingError: if it cannot be written.
    """
    files = {
        "config.gin": gin.operative_config_str(),
        "versions.txt": "".join(f"{name}=={version}\n" for name, version in versions().items()),
    }
    try:
        storage.make_folder(model_dir)
        for name, text in files.items():
            with tf.io.gfile.GFile(os.path.join(model_dir, name), "w") as file:
                file.write(text)
    except (OSError, tf.errors.OpError) as error:
        raise write_error(model_dir, error, checkpoints_of(model_dir)) from error


def read_description(model_dir: str) -> str:
    """Returns the operative config of a model directory.

    Raises:
      SettingError: if there is none, or it cannot be read.
    """
    try:
        with tf.io.gfile.GFile(os.path.join(model_dir, "config.gin")) as file:
            return file.read()
    except tf.errors.OpError as error:
        refusal = storage.refusal(error)
        if refusal is not None:
            raise SettingError(f"MODEL_DIR = '{model_dir}': {refusal}.") from error
        if not isinstance(error, tf.errors.NotFoundError):
            raise
        raise SettingError(
            f"MODEL_DIR = '{model_dir}' holds no config.gin: it is no model directory, or not yet."
        ) from error
