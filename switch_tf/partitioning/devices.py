"""The devices of this machine."""

import contextlib

import tensorflow as tf

from switch_tf.errors import SettingError


def cut_processor(num_logical_devices: int) -> list[str]:
    """Cuts the CPU into logical devices, to try a mesh on a machine that has none.

    Args:
      num_logical_devices: into how many.

    Returns:
      The logical devices' names.

    Raises:
      SettingError: if TensorFlow has already opened the CPU as another number of devices.
    """
    configuration = [tf.config.LogicalDeviceConfiguration() for _ in range(num_logical_devices)]
    # An error where TensorFlow has opened its devices already; they may be as many as are asked for.
    with contextlib.suppress(RuntimeError):
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], configuration)
    names = [device.name for device in tf.config.list_logical_devices("CPU")]
    if len(names) != num_logical_devices:
        raise SettingError(
            f"NUM_LOGICAL_DEVICES = {num_logical_devices} comes too late: this process has opened its CPU as "
            f"{len(names)} device(s); make the engine before anything else uses TensorFlow."
        )
    return names


def count(num_logical_devices: int | None) -> int:
    """Returns how many devices a process has, without opening them: those of the best kind that is there.

    Args:
      num_logical_devices: into how many the CPU is to be cut; None to take the devices as they are.
    """
    if num_logical_devices is not None:
        return num_logical_devices
    return next(filter(None, (len(tf.config.list_physical_devices(kind)) for kind in ("TPU", "GPU", "CPU"))))
