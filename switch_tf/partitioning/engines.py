"""The list of all engines, by the names that `ENGINE` has for them."""

from switch_tf.errors import SettingError, nearest
from switch_tf.partitioning.distribute_engine import DistributeEngine
from switch_tf.partitioning.engine import Engine, SingleEngine
from switch_tf.partitioning.layout import Layout

ENGINES: dict[str, type[Engine]] = {"single": SingleEngine, "tpu": DistributeEngine}


def make_engine(
    name: str, mesh_shape: str = "", layout_rules: str = "", num_logical_devices: int | None = None
) -> Engine:
    """Makes the engine that `ENGINE` names.

    Args:
      name: "single" or "tpu".
      mesh_shape: "data:4,model:2".
      layout_rules: "batch:data,experts:data,heads:model".
      num_logical_devices: see `Engine`.

    Raises:
      SettingError: if there is no such engine, or the mesh or the rules cannot be read or do not fit it.
    """
    if name not in ENGINES:
        raise SettingError(f"ENGINE = '{name}' is unknown{nearest(name, ENGINES)}.")
    return ENGINES[name](Layout.parse(mesh_shape, layout_rules), num_logical_devices)
