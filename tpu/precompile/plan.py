"""What a compiler needs to know of an experiment: everything but its data and its model directory."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import switch_tf.runs.loop  # noqa: F401 (registers what gin files bind)
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.layout_checks import check_placement
from switch_tf.planning.weight_specs import without_allocation
from switch_tf.runs import gin_config
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from tpu.precompile.program import Program, decoding_program, evaluation_program, training_program

TRAIN, EVALUATE, DECODE = STEPS = ("train", "evaluate", "decode")
_RUN = "gin/runs/pretrain.gin"


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

    def model(self) -> EncoderDecoder:
        """Returns the model; its weights have shapes but no values."""
        with without_allocation():
            model = EncoderDecoder(self.config)
            model.build()
        return model

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
        return training_program(model, self.make_optimizer(), self.objective, features, self.num_microbatches)


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
    return plan
