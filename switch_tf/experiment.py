"""An experiment: which model, on which data, on which devices, in which directory. Every command starts from one."""

import dataclasses
import functools
import importlib.metadata
import os
import platform
from collections.abc import Mapping
from typing import Protocol

import gin
import tensorflow as tf

from switch_tf import data
from switch_tf.errors import SettingError
from switch_tf.model import EncoderDecoder, weight_name
from switch_tf.model_config import ModelConfig
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.engines import make_engine
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.checkpoints import checkpoints_of, write_error

_PACKAGES = ("tensorflow", "tensorflow-text", "keras", "seqio", "t5", "tensorflow-datasets", "gin-config", "numpy")

# Between a weight's name and that of its optimizer slot.
_SLOTS = "/slots/"


class Vocabulary(Protocol):
    """Where a run's vocabulary comes from."""

    def install(self, model_dir: str) -> str:
        """Puts the vocabulary into `model_dir`, selects it for the tasks and returns its path."""


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

    def __post_init__(self):
        if self.batch_size < 1:
            raise SettingError(f"BATCH_SIZE = {self.batch_size} must be at least 1.")
        for name, length in self.task_feature_lengths.items():
            if length < 1:
                raise SettingError(f"TASK_FEATURE_LENGTHS['{name}'] = {length} must be at least 1.")

    @property
    def vocabulary_path(self) -> str:
        """Where the run keeps its vocabulary."""
        return os.path.join(self.model_dir, "vocabulary", "sentencepiece.model")

    def install_vocabulary(self) -> None:
        """Gives the tasks the run's vocabulary and checks that it fits the model.

        Raises:
          SettingError: if it cannot be read, is not the run's, or has more ids than the model.
        """
        data.find_task(self.mixture_or_task)
        if self.vocabulary is not None:
            try:
                self.vocabulary.install(self.model_dir)
            except (OSError, tf.errors.OpError) as error:
                raise write_error(self.vocabulary_path, error, checkpoints_of(self.model_dir)) from error
        data.check_vocabulary(self.mixture_or_task, self.model.vocab_size)

    def fixed_settings(self) -> dict[str, object]:
        """Returns what must stay as it was when a run resumes, by macro: data position and noise hang on it."""
        return {
            "SEED": self.seed,
            "MIXTURE_OR_TASK": self.mixture_or_task,
            "TASK_FEATURE_LENGTHS": dict(self.task_feature_lengths),
            "BATCH_SIZE": self.batch_size,
        }

    def vocabulary_digest(self) -> str | None:
        """Returns the SHA-256 of the run's vocabulary, None where it keeps none."""
        return data.file_digest(self.vocabulary_path) if tf.io.gfile.exists(self.vocabulary_path) else None


class Run:
    """A model with its optimizer on an engine, and its checkpoints: what training and everything after it work on."""

    def __init__(self, experiment: Experiment, optimizer: Adafactor | None = None, keep_checkpoints: int = 3):
        """Builds model and slots; reads nothing yet.

        Args:
          experiment: the settings.
          optimizer: whose slots to make; None to do without, for evaluation.
          keep_checkpoints: how many checkpoints `save` leaves.
        """
        self.experiment = experiment
        self.engine: Engine = make_engine(
            experiment.engine, experiment.mesh_shape, experiment.layout_rules, experiment.num_logical_devices
        )
        self.checkpoints = checkpoints_of(experiment.model_dir, keep_checkpoints)
        self.optimizer = optimizer
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

    def save(self, objects: Mapping[str, object]) -> None:
        """Writes a checkpoint of the current step: variables, `objects` (the data iterator), and what they belong to.

        Raises:
          SettingError: if the disk cannot be written.
        """
        variables = self.variables()
        manifest = {
            "step": int(self.step.numpy()),
            "settings": self.experiment.fixed_settings(),
            "model": dataclasses.asdict(self.experiment.model),
            "shapes": {name: variable.shape.as_list() for name, variable in variables.items()},
            "vocabulary": self.experiment.vocabulary_digest(),
            "versions": versions(),
        }
        write = functools.partial(self.engine.save, variables, objects)
        self.checkpoints.save(manifest["step"], write, manifest)

    def check(self, step: int) -> None:
        """Checks that a checkpoint is of this model and this vocabulary and, to train on, of this data and seed.

        Raises:
          SettingError: if it is of another.
        """
        manifest = self.checkpoints.manifest(step)
        theirs = {name: tuple(shape) for name, shape in manifest["shapes"].items()}
        if self.optimizer is None:
            theirs = {name: shape for name, shape in theirs.items() if _SLOTS not in name}
        ours = {name: tuple(variable.shape) for name, variable in self.variables().items()}
        different = {name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name)}
        if different:
            name = min(different)
            raise SettingError(
                f"MODEL_DIR = '{self.experiment.model_dir}' holds another model: {name} is "
                f"{theirs.get(name, 'absent')} there and {ours.get(name, 'absent')} here; use another MODEL_DIR, or "
                "the gin files and macros of its config.gin."
            )
        digest = self.experiment.vocabulary_digest()
        if manifest["vocabulary"] != digest:
            raise SettingError(
                f"{self.experiment.vocabulary_path} is not the vocabulary that the checkpoint of step {step} was "
                "trained with: put that file back, or use another MODEL_DIR."
            )
        if self.optimizer is None:
            return
        for name, value in self.experiment.fixed_settings().items():
            if manifest["settings"][name] != value:
                raise SettingError(
                    f"MODEL_DIR = '{self.experiment.model_dir}' holds a run with {name} = "
                    f"{manifest['settings'][name]!r}, not {value!r}: set it back, or use another MODEL_DIR."
                )

    def restore(self, step: int, objects: Mapping[str, object]) -> None:
        """Reads a checkpoint into the variables and `objects`.

        Raises:
          SettingError: if it belongs to another model or vocabulary, or is damaged.
        """
        self.check(step)
        try:
            self.engine.restore(self.variables(), objects, self.checkpoints.prefix(step))
        except (tf.errors.OpError, AssertionError, IndexError, ValueError) as error:
            raise self.checkpoints.damaged(step) from error


def versions() -> dict[str, str]:
    """Returns the versions that a run depends on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _PACKAGES}


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
        tf.io.gfile.makedirs(model_dir)
        for name, text in files.items():
            with tf.io.gfile.GFile(os.path.join(model_dir, name), "w") as file:
                file.write(text)
    except (OSError, tf.errors.OpError) as error:
        raise write_error(model_dir, error, checkpoints_of(model_dir)) from error


def read_description(model_dir: str) -> str:
    """Returns the operative config of a model directory.

    Raises:
      SettingError: if there is none.
    """
    path = os.path.join(model_dir, "config.gin")
    if not tf.io.gfile.exists(path):
        raise SettingError(f"MODEL_DIR = '{model_dir}' holds no config.gin: it is no model directory, or not yet.")
    with tf.io.gfile.GFile(path) as file:
        return file.read()
