"""What gin files say of a run's teacher, and what is known of it before anything is allocated."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin
import tensorflow as tf

from switch_tf.checkpoints.folder import find_checkpoint
from switch_tf.data.teacher_cache import read_description
from switch_tf.errors import SettingError, check_type
from switch_tf.interop import formats
from switch_tf.interop.lazy_tensors import DTYPES
from switch_tf.interop.sources import Source
from switch_tf.models.config import ModelConfig
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.costs import description, layout_description
from switch_tf.planning.layout_checks import check_placement
from switch_tf.planning.weight_specs import BYTES_PER_WEIGHT
from switch_tf.runs import gin_config
from switch_tf.training.distillation import SoftLoss


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TeacherSettings:
    """What a run's gin files say of its teacher (docs/distillation.md).

    Attributes:
      checkpoint: a model directory, one of its checkpoints, or whatever `switch-tf convert` reads; None if there is
        only a cache.
      soft_loss: how much the teacher counts.
      cache: the folder that `switch-tf predict --probabilities` wrote, whose examples are trained on; None: the teacher
        runs beside the student.
      dtype: of its weights in memory, "float32" or "bfloat16".
      eval_capacity_factor: expert slots per token in the teacher; None: dropless.
      initialize_student: whether a new student takes from it every weight that both have by name and shape.
      baseline: held-out negative log perplexity of the student's model trained without a teacher; None if unknown.
    """

    checkpoint: str | None = gin.REQUIRED
    soft_loss: SoftLoss = dataclasses.field(default_factory=SoftLoss)
    cache: str | None = None
    dtype: str = "float32"
    eval_capacity_factor: float | None = None
    initialize_student: bool = True
    baseline: float | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.cache is None:
            raise SettingError("TEACHER = None needs TEACHER_CACHE: name a teacher, or a cache of its predictions.")
        if self.checkpoint is None and self.initialize_student:
            raise SettingError(
                "INITIALIZE_FROM_TEACHER = True needs TEACHER, whose weights the student starts with: set it, or "
                "INITIALIZE_FROM_TEACHER = False."
            )
        if self.dtype not in DTYPES:
            raise SettingError(f"TEACHER_DTYPE = {self.dtype!r} must be 'float32' or 'bfloat16'.")
        check_type("BASELINE_NLP", self.baseline, float | None)
        check_type("TEACHER_CAPACITY_FACTOR", self.eval_capacity_factor, float | None)
        if self.eval_capacity_factor is not None and self.eval_capacity_factor <= 0:
            raise SettingError(f"TEACHER_CAPACITY_FACTOR = {self.eval_capacity_factor} must be positive, or None.")

    @property
    def runs_beside_student(self) -> bool:
        """Whether the teacher's weights are in memory in every step."""
        return self.cache is None and self.soft_loss.fraction > 0


def dropless(config: ModelConfig, eval_capacity_factor: float | None = None) -> ModelConfig:
    """Returns a teacher's settings: its own, at another evaluation capacity.

    Args:
      config: of the checkpoint.
      eval_capacity_factor: of the teacher; None: dropless, or the checkpoint's own where experts choose tokens.
    """
    if eval_capacity_factor is None and config.num_sparse_layers:
        routers = [config.make_router(is_decoder) for is_decoder in (False, True)]
        if not all(router.tokens_choose_experts for router in routers):
            eval_capacity_factor = config.eval_capacity_factor
    return dataclasses.replace(config, eval_capacity_factor=eval_capacity_factor, rematerialization="none")


def open_teacher(checkpoint: str) -> Source:
    """Opens a teacher's checkpoint of any format; reads no large tensor.

    Raises:
      SettingError: if it is not there, is damaged, or our model has no counterpart.
    """
    kind = formats.kind_of(checkpoint, "TEACHER")
    if kind == "switch_tf":
        find_checkpoint(checkpoint, "TEACHER")
    return formats.open_source(checkpoint, kind)


def cached_choices(cache: str) -> int:
    """Returns K of a cache, how many ids of each position it has.

    Raises:
      SettingError: if it is no complete cache.
    """
    return read_description(cache).num_choices


def configured_teacher() -> TeacherSettings | None:
    """Returns the teacher that the gin files bind; None where they bind none, or leave its name to the user."""
    return None if "TEACHER" in gin_config.required_macros() else gin_config.parameter("train.teacher", None)


def checked_config(
    settings: TeacherSettings,
    source: Source,
    student: ModelConfig,
    layout: Layout,
    batch_size: int | None,
    lengths: Mapping[str, int],
    num_microbatches: int = 1,
) -> ModelConfig:
    """Returns the settings of a teacher's model that runs beside a student.

    Args:
      settings: of the teacher.
      source: its checkpoint.
      student: the student's model.
      layout: the mesh that has to hold both.
      batch_size: B; None to skip what depends on it.
      lengths: tokens of each task feature.
      num_microbatches: microbatches of a batch.

    Raises:
      SettingError: if it has another V than the student, or does not fit the mesh.
    """
    theirs, ours = source.config.vocab_size, student.vocab_size
    if theirs != ours:
        raise SettingError(
            f"TEACHER = '{source.path}' predicts {theirs} ids and VOCAB_SIZE = {ours}: a student needs the teacher's "
            f"vocabulary, so set VOCAB_SIZE = {theirs} and VOCABULARY = @TeacherVocabulary()."
        )
    config = dropless(source.config, settings.eval_capacity_factor)
    try:
        check_placement(layout, config, batch_size, lengths, num_microbatches)
    except SettingError as error:
        raise SettingError(f"TEACHER = '{source.path}' does not fit beside the student: {error}") from error
    return config


def describe_teacher(student: ModelConfig, layout: Layout, lengths: Mapping[str, int]) -> dict[str, Any]:
    """Counts what the configured teacher costs beside a student.

    Args:
      student: the student's model.
      layout: the mesh; one of no mesh is one device.
      lengths: tokens of each task feature.

    Returns:
      checkpoint, dtype, parameters, forward_flops_per_sequence, weight_bytes and weight_bytes_per_device; empty where
      no teacher runs beside the student.

    Raises:
      SettingError: if the teacher is not there, or does not fit.
    """
    settings = configured_teacher()
    if settings is None or settings.checkpoint is None or not settings.runs_beside_student:
        return {}
    batch_size = gin_config.parameter("Experiment.batch_size", None) if layout.mesh else None
    config = checked_config(settings, open_teacher(settings.checkpoint), student, layout, batch_size, lengths)
    counts, size = description(config, lengths["inputs"], lengths["targets"]), tf.as_dtype(settings.dtype).size
    on_device = layout_description(config, layout)["bytes_per_device"]["weights"]
    return {
        "checkpoint": settings.checkpoint,
        "dtype": settings.dtype,
        "parameters": counts["parameters"],
        "forward_flops_per_sequence": counts["forward_flops_per_sequence"],
        "weight_bytes": counts["weight_bytes"] * size // BYTES_PER_WEIGHT,
        "weight_bytes_per_device": on_device * size // BYTES_PER_WEIGHT,
    }
