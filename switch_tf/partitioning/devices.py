"""The devices of this machine."""

import tensorflow as tf


def count(num_logical_devices: int | None) -> int:
    """Returns how many devices a process has, without opening them: those of the best kind that is there.

    Args:
      num_logical_devices: into how many the CPU is to be cut; None to take the devices as they are.
    """
    if num_logical_devices is not None:
        return num_logical_devices
    return next(filter(None, (len(tf.config.list_physical_devices(kind)) for kind in ("TPU", "GPU", "CPU"))))
