"""The work of `export --format=stablehlo`: a checkpoint's weights, and programs that need no TensorFlow."""

import dataclasses
import json
import os
import pathlib
import time
from typing import Any

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.manifest import SLOTS
from switch_tf.decoding.cached_step import INPUTS
from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError
from switch_tf.export import pure_programs
from switch_tf.export.pure_programs import PureProgram
from switch_tf.export.stablehlo import FORMAT_VERSION, write_program
from switch_tf.interop.formats import new_folder
from switch_tf.models.encoder_decoder import weight_name
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.exporting import on_one_device
from switch_tf.runs.model_directory import versions
from switch_tf.runs.run import Run, load_run
from switch_tf.runs.teacher_settings import configured_teacher
from switch_tf.training.adafactor import Adafactor


def export_programs(output: str, step: int | None = None) -> str:
    """Writes the programs, the weights and the optimizer's slots of the model of gin's configuration.

    Args:
      output: the folder to make.
      step: which checkpoint; None for the newest.

    Returns:
      A sentence that tells what was written, how large it is and how long it took.

    Raises:
      SettingError: if there is no such checkpoint, it has a teacher, or the output cannot be made.
    """
    start = time.monotonic()
    if storage.in_bucket(output):
        raise SettingError(f"--output={output} must be on a disk with --format=stablehlo: copy it to the bucket then.")
    teacher = configured_teacher()
    if teacher is not None and teacher.soft_loss.fraction > 0:
        raise SettingError("--format=stablehlo exports no teacher: add --gin.TEACHER_FRACTION=0.")
    experiment = on_one_device(Experiment())
    run = load_run(experiment, step)
    optimizer = gin_config.parameter("train.optimizer")()
    slots = _slots(run, optimizer)
    programs = _programs(experiment, run, optimizer)
    with new_folder(output, "--output") as folder:
        _write_arrays(os.path.join(folder, "weights.npz"), {name: each.numpy() for name, each in run.weights().items()})
        _write_arrays(os.path.join(folder, "slots.npz"), slots)
        written = {name: write_program(folder, name, program) for name, program in programs.items()}
        manifest = _manifest(experiment, int(run.step.numpy())) | {"programs": written}
        pathlib.Path(folder, "manifest.json").write_text(json.dumps(manifest, indent=1))
    sizes = {path.name: path.stat().st_size / 1e6 for path in pathlib.Path(output).iterdir()}
    arrays = sizes["weights.npz"] + sizes["slots.npz"]
    return (
        f"{output}: weights and slots {arrays:,.1f} MB, programs {sum(sizes.values()) - arrays:,.1f} MB, "
        f"{time.monotonic() - start:,.0f} s."
    )


def features_of(experiment: Experiment) -> dict[str, tuple[int, int]]:
    """Returns the shape of each feature of a batch, those of seqio's converter for unpacked examples."""
    inputs, targets = ((experiment.batch_size, experiment.task_feature_lengths[name]) for name in ("inputs", "targets"))
    return {INPUTS: inputs} | dict.fromkeys(
        ("decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights"), targets
    )


def _programs(experiment: Experiment, run: Run, optimizer: Adafactor) -> dict[str, PureProgram]:
    """Returns the programs of the experiment's batch, by name."""
    features, lengths = features_of(experiment), experiment.task_feature_lengths
    model, objective = run.model, gin_config.parameter("train.objective")
    num_microbatches = gin_config.parameter("train.num_microbatches", 1)
    return {
        "evaluate": pure_programs.evaluation_step(model, features),
        "logits": pure_programs.teacher_forced_logits(model, features),
        "decode": pure_programs.decoding(model, features[INPUTS], Decoding(), lengths["targets"]),
        "train": pure_programs.training_step(model, optimizer, objective, features, num_microbatches),
    }


def _slots(run: Run, optimizer: Adafactor) -> dict[str, np.ndarray]:
    """Reads the checkpoint's slots, by weight and name; without any, they are zero and their decay starts anew.

    A run with an optimizer would have them, but needs the data that it was trained on.
    """
    step = int(run.step.numpy())
    manifest, prefix = run.checkpoints.manifest(step), run.checkpoints.prefix(step)
    has_slots = any(SLOTS in name for name in manifest.shapes)
    optimizer.step_offset = manifest.slots_since if has_slots else step
    slots = {}
    for weight in run.model.trainable_variables:
        for slot, (shape, _) in optimizer.slot_shapes(tuple(weight.shape), weight.axes).items():
            name = weight_name(weight)
            slots[f"{name}/{slot}"] = np.zeros(shape, np.float32)
            if has_slots:
                slots[f"{name}/{slot}"] = _stored(run, prefix, f"{name}{SLOTS}{slot}")
    return slots


def _stored(run: Run, prefix: str, name: str) -> np.ndarray:
    try:
        return tensor_bundle.read(prefix, name, tf.float32).numpy()
    except tf.errors.OpError as error:
        fault = storage.refusal(error) or f"{name} of {prefix} is damaged: take another checkpoint with --step"
        raise SettingError(f"MODEL_DIR = '{run.experiment.model_dir}': {fault}.") from error


def _write_arrays(path: str, arrays: dict[str, np.ndarray]) -> None:
    # numpy's annotation takes the names of arrays for its own flags.
    np.savez(path, **arrays)  # type: ignore[arg-type]


def _manifest(experiment: Experiment, step: int) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "step": step,
        "model": dataclasses.asdict(experiment.model),
        "batch_size": experiment.batch_size,
        "lengths": dict(experiment.task_feature_lengths),
        "versions": versions(),
    }
