"""The list of all engines, by the names that `ENGINE` has for them."""

from switch_tf.errors import SettingError, nearest
from switch_tf.partitioning.dtensor_engine import DTensorEngine
from switch_tf.partitioning.engine import Engine, SingleEngine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import PROCESSES, Processes

ENGINES: dict[str, type[Engine]] = {"single": SingleEngine, "dtensor": DTensorEngine}


def make_engine(
    name: str, mesh_shape: str = "", layout_rules: str = "", num_logical_devices: int | None = None
) -> Engine:
    """Makes the engine that `ENGINE` names.

    Args:
      name: "single", ...
      mesh_shape: "data:4,model:2".
      layout_rules: "batch:data,experts:data,heads:model".
      num_logical_devices: see `Engine`.

    Raises:
      SettingError: if there is no such engine, or the mesh or the rules cannot be read.
    """
    if name not in ENGINES:
        raise SettingError(f"ENGINE = '{name}' is unknown{nearest(name, ENGINES)}.")
    layout, processes = Layout.parse(mesh_shape, layout_rules), Processes.from_environment()
    if name == "single" and processes.count > 1:
        raise SettingError(f"ENGINE = 'single' is for one process and {PROCESSES} names {processes.count}: use a mesh.")
    processes.connect()
    return ENGINES[name](layout, num_logical_devices, processes)
