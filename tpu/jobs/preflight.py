"""Checks a job's experiment before anything is sent: on a pod, mistakes show hours later and cost money."""

import dataclasses
from collections.abc import Sequence

import gin

import switch_tf.runs.loop  # noqa: F401 (registers everything that gin files bind)
from switch_tf.errors import SettingError
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment, configured_layout
from tpu.jobs.spec import Job, check_bucket

_RUN = "gin/runs/pretrain.gin"


def check_job(job: Job, more_bindings: Sequence[str] = ()) -> tuple[Job, str]:
    """Checks a job's gin files, its model directory and its mesh.

    Args:
      job: the description.
      more_bindings: `NAME = value` lines that override the job's.

    Returns:
      The job with its model directory, and the whole configuration as one gin file.

    Raises:
      SettingError: if gin files do not compose, a macro has no value, the model directory is not in a bucket, or the
        mesh does not fit the slice, the model or the batch.
    """
    if not job.gin_files:
        raise SettingError("The job has no gin_files: set them in --job=FILE or with --gin_file=...")
    bindings = [*job.bindings, *more_bindings]
    if job.model_dir is not None:
        bindings.append(f"MODEL_DIR = {job.model_dir.rstrip('/')!r}")
    gin_config.load(job.gin_files, bindings, job.gin_search_path)
    gin_config.check_required()
    # As `train` makes it: all bindings, by macro or by parameter, with references resolved.
    experiment = _make_experiment()
    model_dir = experiment.model_dir.rstrip("/")
    if job.model_dir is not None and model_dir != job.model_dir.rstrip("/"):
        raise SettingError(f"model_dir = '{job.model_dir}', but gin binds '{model_dir}': leave one of them out.")
    check_bucket("model_dir", model_dir)
    _check_devices(job, experiment)
    return dataclasses.replace(job, model_dir=model_dir), gin.config_str(max_line_length=120)


def _make_experiment() -> Experiment:
    """Makes what `train` makes before it opens the devices, so that their ranges are checked too."""
    try:
        experiment = Experiment()
        for name in ("objective", "hooks", "extra_hooks", "teacher"):
            gin_config.parameter(f"train.{name}", None)
        gin_config.parameter("train.optimizer", gin_file=_RUN)()
        return experiment
    except RuntimeError as error:  # gin's, for a parameter without a value.
        raise SettingError(f"{str(error).splitlines()[0]}: add --gin_file={_RUN}.") from error


def _check_devices(job: Job, experiment: Experiment) -> None:
    slice_ = job.slice
    if experiment.num_logical_devices is not None:
        raise SettingError(
            f"NUM_LOGICAL_DEVICES = {experiment.num_logical_devices} splits a CPU into devices: leave it out, or "
            "choose another layout file."
        )
    if slice_.num_hosts > 1 and experiment.engine != "dtensor":
        raise SettingError(
            f"ENGINE = '{experiment.engine}' runs in one process, but {job.accelerator_type} has {slice_.num_hosts} "
            "hosts: add a file of gin/layouts whose ENGINE is 'dtensor'."
        )
    num_devices = configured_layout(experiment.model).num_devices
    if num_devices != slice_.num_devices:
        fitting = slice_.generation.accelerator_types(num_devices)
        raise SettingError(
            f"MESH_SHAPE = '{experiment.mesh_shape}' has {num_devices} devices, but {job.accelerator_type} has "
            f"{slice_.num_devices}: make them equal"
            + (f", or use accelerator_type = '{fitting[0]}'." if fitting else ".")
        )
