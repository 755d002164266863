"""All engines, by the values of `ENGINE`."""

from switch_tf.errors import SettingError, nearest
from switch_tf.partitioning.distribute_engine import DistributeEngine
from switch_tf.partitioning.dtensor_engine import DTensorEngine
from switch_tf.partitioning.engine import Engine, SingleEngine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import PROCESSES, Processes

ENGINES: dict[str, type[Engine]] = {"single": SingleEngine, "dtensor": DTensorEngine, "tpu": DistributeEngine}


def make_engine(
    name: str, layout: Layout, num_logical_devices: int | None = None, processes: Processes | None = None
) -> Engine:
    """Makes the engine that `ENGINE` names, and connects to the other processes of the run.

    Args:
      name: "single", "dtensor" or "tpu".
      layout: the mesh, and what is split over it.
      num_logical_devices: see `Engine`.
      processes: of the run, not yet connected; None: a single process.

    Raises:
      SettingError: if there is no such engine, or it does not fit the devices or processes.
    """
    if name not in ENGINES:
        raise SettingError(f"ENGINE = '{name}' is unknown{nearest(name, ENGINES)}.")
    processes = processes or Processes()
    if name == "single" and processes.count > 1:
        raise SettingError(
            f"ENGINE = 'single' is for one process and {PROCESSES} names {processes.count}: set ENGINE = 'dtensor'."
        )
    if name == "single" and layout.num_devices > 1:
        raise SettingError(
            f"ENGINE = 'single' has one device and MESH_SHAPE has {layout.num_devices}: set ENGINE = 'dtensor'."
        )
    if name == "single" and num_logical_devices is not None:
        raise SettingError("ENGINE = 'single' uses the default device: leave NUM_LOGICAL_DEVICES = None.")
    processes.connect()
    return ENGINES[name](layout, num_logical_devices, processes)
