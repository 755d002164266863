"""What a compiler needs to know of an experiment: everything but its data and its model directory."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

import switch_tf.runs.loop  # noqa: F401 (registers what gin files bind)
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.costs import layout_description
from switch_tf.planning.layout_checks import check_placement
from switch_tf.planning.weight_specs import without_allocation
from switch_tf.runs import gin_config
from switch_tf.runs.teacher_settings import (
    TeacherSettings,
    cached_choices,
    checked_config,
    configured_teacher,
    open_teacher,
)
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.distillation import CachedTeacher, Distillation, ModelTeacher
from switch_tf.training.losses import Objective
from tpu.precompile.program import Program, decoding_program, evaluation_program, training_program

TRAIN, EVALUATE, DECODE = STEPS = ("train", "evaluate", "decode")
_RUN = "gin/runs/pretrain.gin"


@dataclasses.dataclass(frozen=True)
class PlannedTeacher:
    """The teacher of a training step.

    Attributes:
      settings: of it.
      config: of its model; None where its predictions were cached.
      num_choices: ids of each position in the cache; 0 without one.
    """

    settings: TeacherSettings
    config: ModelConfig | None = None
    num_choices: int = 0

    @property
    def dtype(self) -> tf.DType:
        """The type of its weights in memory."""
        return tf.as_dtype(self.settings.dtype)

    def distillation(self, vocab_size: int) -> Distillation:
        """Returns what the training step needs.

        Args:
          vocab_size: V of the student.
        """
        if self.config is None:
            return Distillation(self.settings.soft_loss, CachedTeacher(self.num_choices, vocab_size))
        return Distillation(self.settings.soft_loss, ModelTeacher(built(self.config)))


def built(config: ModelConfig) -> EncoderDecoder:
    """Makes a model; its weights have shapes but no values."""
    with without_allocation():
        model = EncoderDecoder(config)
        model.build()
    return model


@dataclasses.dataclass(frozen=True)
class Plan:
    """One step of an experiment on a mesh.

    Attributes:
      step: "train", "evaluate" or "decode".
      config: the model.
      layout: the mesh, and which axes are sharded over it.
      batch_size: sequences per step.
      inputs_length: encoder tokens per sequence.
      targets_length: decoder tokens per sequence.
      num_microbatches: into how many microbatches a training batch is split; 1 for other steps.
      make_optimizer: makes the optimizer, whose schedule and settings are compiled into the step.
      objective: weights of the losses.
      teacher: of a training step; None without one.
    """

    step: str
    config: ModelConfig
    layout: Layout
    batch_size: int
    inputs_length: int
    targets_length: int
    num_microbatches: int
    make_optimizer: Callable[[], Adafactor]
    objective: Objective
    teacher: PlannedTeacher | None = None

    def model(self) -> EncoderDecoder:
        """Returns the model; its weights have shapes but no values."""
        return built(self.config)

    @property
    def teacher_bytes(self) -> int:
        """Bytes of the teacher's weights on one device."""
        if self.teacher is None or self.teacher.config is None:
            return 0
        in_float32 = layout_description(self.teacher.config, self.layout)["bytes_per_device"]["weights"]
        return in_float32 * self.teacher.dtype.size // tf.float32.size

    def program(self) -> Program:
        """Returns the step as a pure function of flat arguments."""
        model = self.model()
        inputs, targets = (self.batch_size, self.inputs_length), (self.batch_size, self.targets_length)
        if self.step == DECODE:
            return decoding_program(model, inputs, self.targets_length)
        # The features of seqio's converter for unpacked examples.
        features = {"encoder_input_tokens": inputs} | dict.fromkeys(
            ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"), targets
        )
        if self.step == EVALUATE:
            return evaluation_program(model, features)
        optimizer, parts = self.make_optimizer(), self.num_microbatches
        if self.teacher is None:
            return training_program(model, optimizer, self.objective, features, parts)
        distillation = self.teacher.distillation(self.config.vocab_size)
        return training_program(model, optimizer, self.objective, features, parts, distillation, self.teacher.dtype)


def read_plan(gin_files: Sequence[str], bindings: Sequence[str], search_path: Sequence[str], step: str) -> Plan:
    """Reads gin files and bindings.

    Args:
      gin_files: of a model, a run and a layout.
      bindings: `NAME = value` lines that override the files.
      search_path: folders to look for gin files in first.
      step: "train", "evaluate" or "decode".

    Raises:
      SettingError: if they do not compose, or the batch does not divide over the mesh.
    """
    gin_config.load(gin_files, bindings, search_path)

    def bound(name: str) -> Any:
        return gin_config.parameter(name, gin_file=_RUN)

    lengths = bound("Experiment.task_feature_lengths")
    for name in ("inputs", "targets"):
        if name not in lengths:
            raise SettingError(f"TASK_FEATURE_LENGTHS = {lengths!r} has no '{name}'.")
    plan = Plan(
        step,
        ModelConfig(),
        Layout.parse(bound("Experiment.mesh_shape"), bound("Experiment.layout_rules")),
        bound("Experiment.batch_size"),
        lengths["inputs"],
        lengths["targets"],
        bound("train.num_microbatches") if step == TRAIN else 1,
        bound("train.optimizer"),
        bound("train.objective"),
    )
    if plan.batch_size < 1:
        raise SettingError(f"BATCH_SIZE = {plan.batch_size} must be at least 1.")
    check_placement(plan.layout, plan.config, plan.batch_size, lengths, plan.num_microbatches)
    settings = configured_teacher() if step == TRAIN else None
    if settings is None or settings.soft_loss.fraction == 0:
        return plan
    return dataclasses.replace(plan, teacher=_planned_teacher(settings, plan, lengths))


def _planned_teacher(settings: TeacherSettings, plan: Plan, lengths: Mapping[str, int]) -> PlannedTeacher:
    if settings.cache is not None:
        return PlannedTeacher(settings, num_choices=cached_choices(settings.cache))
    assert settings.checkpoint is not None, "`TeacherSettings` checks it."
    config = checked_config(
        settings,
        open_teacher(settings.checkpoint),
        plan.config,
        plan.layout,
        plan.batch_size,
        lengths,
        plan.num_microbatches,
    )
    return PlannedTeacher(settings, config)
