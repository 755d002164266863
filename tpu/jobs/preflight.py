"""The experiment of a job, checked before anything is sent: a pod finds out hours later, and is paid for."""

import dataclasses
from collections.abc import Sequence

import gin

import switch_tf.runs.loop  # noqa: F401 (registers what gin files bind)
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import configured_layout
from tpu.jobs.spec import Job, check_bucket


def checked(job: Job, more_bindings: Sequence[str] = ()) -> tuple[Job, str]:
    """Checks a job's gin files, its model directory and its mesh.

    Args:
      job: the description.
      more_bindings: `NAME = value` lines that override the job's.

    Returns:
      The job with its model directory, and the whole configuration as one gin file.

    Raises:
      SettingError: if gin files do not compose, a macro has no value, the model directory is in no bucket, or the mesh
        does not fit the slice.
    """
    if not job.gin_files:
        raise SettingError("The job has no gin_files: set them in --job=FILE or with --gin_file=...")
    bindings = [*job.bindings, *more_bindings]
    if job.model_dir is not None:
        bindings.append(f"MODEL_DIR = {job.model_dir.rstrip('/')!r}")
    gin_config.load(job.gin_files, bindings, job.gin_search_path)
    gin_config.check_required()
    model_dir = gin_config.macro("MODEL_DIR")
    if not isinstance(model_dir, str):
        raise SettingError("The job has no model_dir: set it in --job=FILE or with --model_dir=gs://BUCKET/FOLDER.")
    check_bucket("model_dir", model_dir)
    _check_mesh(job)
    return dataclasses.replace(job, model_dir=model_dir.rstrip("/")), gin.config_str(max_line_length=120)


def _check_mesh(job: Job) -> None:
    slice_ = job.slice
    if gin_config.macro("NUM_LOGICAL_DEVICES") is not None:
        raise SettingError("NUM_LOGICAL_DEVICES cuts a CPU into devices: leave it out, or take another layout file.")
    engine = gin_config.macro("ENGINE", "single")
    if slice_.num_machines > 1 and engine != "dtensor":
        raise SettingError(
            f"ENGINE = '{engine}' runs in one process, and {job.accelerator_type} has {slice_.num_machines} machines: "
            "add a file of gin/layouts whose ENGINE is 'dtensor'."
        )
    layout = configured_layout(ModelConfig())
    if layout.num_devices != slice_.num_devices:
        fitting = [slice_.generation.slice(shape) for shape in slice_.generation.shapes]
        names = [other.accelerator_type for other in fitting if other.num_devices == layout.num_devices]
        raise SettingError(
            f"MESH_SHAPE = '{gin_config.macro('MESH_SHAPE', '')}' has {layout.num_devices} devices, and "
            f"{job.accelerator_type} has {slice_.num_devices}: make them equal"
            + (f", or take accelerator_type = '{names[0]}'." if names else ".")
        )
