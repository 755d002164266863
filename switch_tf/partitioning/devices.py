"""The devices of this machine."""

import contextlib

import tensorflow as tf

from switch_tf.errors import SettingError


def cut_processor(num_logical_devices: int) -> list[str]:
    """Splits the CPU into logical devices, to try a mesh on a machine without accelerators.

    Args:
      num_logical_devices: the number of devices.

    Returns:
      The logical devices' names.

    Raises:
      SettingError: if TensorFlow has already opened the CPU as another number of devices.
    """
    configuration = [tf.config.LogicalDeviceConfiguration() for _ in range(num_logical_devices)]
    # Fails if TensorFlow has already opened its devices, which may nevertheless be the right number.
    with contextlib.suppress(RuntimeError):
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], configuration)
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(names) != num_logical_devices:
        raise SettingError(
            f"NUM_LOGICAL_DEVICES = {num_logical_devices} comes too late: this process has opened its CPU as "
            f"{len(names)} device(s); make the engine before anything else uses TensorFlow."
        )
    return names


def are_processors() -> bool:
    """Whether this process has no accelerators, and computes on its CPU."""
    return not any(tf.config.list_physical_devices(kind) for kind in ("TPU", "TPU_SYSTEM", "GPU"))


def count(num_logical_devices: int | None) -> int:
    """Returns how many devices a process has, without opening them: TPU cores, else GPUs, else CPUs.

    Args:
      num_logical_devices: the number of logical devices that the CPU is split into; None: not split.
    """
    if num_logical_devices is not None:
        return num_logical_devices
    return next(filter(None, (len(tf.config.list_physical_devices(kind)) for kind in ("TPU", "GPU", "CPU"))))
