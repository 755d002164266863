"""An experiment: which model, on which data, on which devices, in which directory. Every command starts from one."""

import dataclasses
from collections.abc import Mapping

import gin

from switch_tf import storage
from switch_tf.checkpoints.folder import checkpoints_of, write_error
from switch_tf.data.cached_tasks import Cache, file_digest
from switch_tf.data.sentencepiece import Vocabulary, path_in
from switch_tf.data.task_lookup import check_vocabulary, find_task
from switch_tf.data.training_batches import TrainingBatches
from switch_tf.errors import SettingError, check_type, check_types
from switch_tf.models.config import ModelConfig
from switch_tf.partitioning import devices
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.engines import make_engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.planning.layout_checks import check_placement
from switch_tf.runs import gin_config

# T5's lengths in pre-training, for a model that is described without a run.
_DEFAULT_LENGTHS = {"inputs": 512, "targets": 114}
# Of sequences in a batch, and of tokens in a sequence; more than any machine holds.
_MAX_SIZE = 2**20


def check_lengths(lengths: object) -> None:
    """Checks the tokens of each task feature.

    Raises:
      SettingError: if they are no mapping with positive "inputs" and "targets".
    """
    if not isinstance(lengths, Mapping) or not {"inputs", "targets"} <= lengths.keys():
        raise SettingError(f"TASK_FEATURE_LENGTHS = {lengths!r} is not of the form {{'inputs': 512, 'targets': 114}}.")
    check_type("TASK_FEATURE_LENGTHS", lengths, Mapping[str, int])
    for name, length in lengths.items():
        if not 1 <= length <= _MAX_SIZE:
            raise SettingError(
                f"TASK_FEATURE_LENGTHS['{name}'] = {length} must be at least 1, and at most {_MAX_SIZE:,}."
            )


def check_batch_size(batch_size: object) -> None:
    """Checks the number of sequences in a batch.

    Raises:
      SettingError: if it is no positive integer.
    """
    check_type("BATCH_SIZE", batch_size, int)
    if isinstance(batch_size, int) and not 1 <= batch_size <= _MAX_SIZE:
        raise SettingError(f"BATCH_SIZE = {batch_size} must be at least 1, and at most {_MAX_SIZE:,}.")


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
      cache: where tokens are cached, and whether to read them; None to tokenize the text.
      pack: whether several short training examples, kept apart by segment ids, share a row of a batch.
      seed: of the weights, the data's order and noise, dropout and jitter.
      engine: "single", or another of the engines.
      mesh_shape: the devices, in Mesh TensorFlow's notation: "data:4,model:2".
      layout_rules: which axes are split over which dimension of the mesh: "batch:data,experts:data,heads:model".
      num_logical_devices: how many logical devices to split this machine's CPU into, to try a mesh; None: as it is.
      num_data_shards: as how many streams the data are read; where it is a multiple of the hosts, each reads its own.
    """

    model: ModelConfig = gin.REQUIRED
    model_dir: str = gin.REQUIRED
    mixture_or_task: str = gin.REQUIRED
    task_feature_lengths: Mapping[str, int] = gin.REQUIRED
    batch_size: int = gin.REQUIRED
    vocabulary: Vocabulary | None = None
    cache: Cache | None = None
    pack: bool = False
    seed: int = 0
    engine: str = "single"
    mesh_shape: str = ""
    layout_rules: str = ""
    num_logical_devices: int | None = None
    num_data_shards: int = 1

    def __post_init__(self) -> None:
        check_lengths(self.task_feature_lengths)
        check_types(self, setting=str.upper)
        check_batch_size(self.batch_size)
        if not self.model_dir.strip():
            raise SettingError(f"MODEL_DIR = {self.model_dir!r} names no folder: set it to a new one, or to the run's.")
        if storage.in_bucket(self.model_dir) and storage.has_glob_characters(self.model_dir):
            raise SettingError(
                f"MODEL_DIR = '{self.model_dir}' has one of * ? [ \\ in its name, a pattern in a bucket: name another."
            )
        if self.num_data_shards < 1 or self.batch_size % self.num_data_shards:
            raise SettingError(
                f"NUM_DATA_SHARDS = {self.num_data_shards} must divide BATCH_SIZE = {self.batch_size} into equal parts."
            )
        if self.num_logical_devices is not None and self.num_logical_devices < 1:
            raise SettingError(
                f"NUM_LOGICAL_DEVICES = {self.num_logical_devices} must be at least 1, or None to take what there is."
            )

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
        """Returns the settings that a resumed run must not change, by macro: data order and noise depend on them.

        `data_settings` adds those that the data themselves depend on.
        """
        return {
            "SEED": self.seed,
            "MIXTURE_OR_TASK": self.mixture_or_task,
            "TASK_FEATURE_LENGTHS": dict(self.task_feature_lengths),
            "BATCH_SIZE": self.batch_size,
            "NUM_DATA_SHARDS": self.num_data_shards,
            # Checkpoints from before there was packing do not hold it.
            **({"PACK": True} if self.pack else {}),
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

    def training_batches(self, engine: Engine, teacher_cache: str | None = None) -> TrainingBatches:
        """Opens the training data, for the rows of a batch that this process feeds.

        Args:
          engine: of the run.
          teacher_cache: the folder of a teacher's predictions, whose examples are the data; None for the task's.

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
            self.pack,
            self.cache,
            teacher_cache,
        )

    def vocabulary_digest(self) -> str | None:
        """Returns the SHA-256 of the run's vocabulary, None where it keeps none."""
        return file_digest(self.vocabulary_path) if storage.exists(self.vocabulary_path) else None


def configured_lengths() -> Mapping[str, int]:
    """Returns the task feature lengths that the gin files bind; T5's where they bind none.

    Raises:
      SettingError: if they are wrong.
    """
    lengths = gin_config.parameter("Experiment.task_feature_lengths", _DEFAULT_LENGTHS)
    check_lengths(lengths)
    return lengths


def configured_layout(config: ModelConfig) -> Layout:
    """Returns the layout that the gin files bind, without making an experiment; one of no mesh where they bind none.

    Args:
      config: the model.

    Raises:
      SettingError: if the layout cannot be parsed, or does not fit the model or (where one is bound) the batch.
    """
    mesh_shape = gin_config.parameter("Experiment.mesh_shape", Experiment.mesh_shape)
    layout_rules = gin_config.parameter("Experiment.layout_rules", Experiment.layout_rules)
    check_type("MESH_SHAPE", mesh_shape, str)
    check_type("LAYOUT_RULES", layout_rules, str)
    layout = Layout.parse(mesh_shape, layout_rules)
    if layout.mesh:
        batch_size = gin_config.parameter("Experiment.batch_size", None)
        num_microbatches = gin_config.parameter("train.num_microbatches", 1)
        if batch_size is not None:
            check_batch_size(batch_size)
        check_placement(layout, config, batch_size, configured_lengths(), num_microbatches)
    return layout
