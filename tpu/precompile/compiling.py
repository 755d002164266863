"""Compiles a lowered program with the TPU compiler, without a TPU and without TensorFlow.

Compiling runs in a process of its own (`python -m tpu.precompile.compiling FOLDER`): it takes gigabytes of host memory,
and libtpu aborts the process that asks for an invalid topology. `pipeline.py` sets the environment variables that
libtpu reads.
"""

import json
import pathlib
import sys
import time

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from switch_tf import compat
from tpu.precompile.handoff import COMPILED, LOWERED, TARGET, TEXT, peak_memory

_LOW_EFFORT, _DEFAULT_EFFORT = -1.0, 0.0


def tpu_devices(topology_name: str, topology_settings: dict) -> tuple[jax.Device, ...]:
    """Returns the devices of a TPU topology, which need not exist.

    Args:
      topology_name: "v4:4x4x4"; libtpu aborts the process for a name that it does not know.
      topology_settings: further settings of the topology, such as {"chip_config_name": "megacore"}.
    """
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name, **topology_settings)
    return tuple(topology.devices)


def _compile(folder: pathlib.Path, devices: tuple[jax.Device, ...], effort: float) -> dict[str, object]:
    module, start = compat.parse_stablehlo((folder / LOWERED).read_bytes()), time.monotonic()
    try:
        executable = compat.compile_ahead_of_time(module, devices, effort)
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - start, "host_bytes": peak_memory()}
    seconds = time.monotonic() - start
    (folder / TEXT).write_text(compat.hlo_text(executable))
    memory = compat.memory_stats(executable)
    return {
        "seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "host_bytes": peak_memory(),
    }


def main(folder: str) -> None:
    """Compiles a folder's program for the topology named there; without a program, only checks the topology."""
    path = pathlib.Path(folder)
    target = json.loads((path / TARGET).read_text())
    devices = tpu_devices(target["topology_name"], target["topology_settings"])
    if (path / LOWERED).exists():
        effort = _LOW_EFFORT if target["with_low_effort"] else _DEFAULT_EFFORT
        (path / COMPILED).write_text(json.dumps(_compile(path, devices, effort)))
    else:  # Some invalid topologies have devices and fail only when something is compiled for them.
        replicated = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec())
        jax.jit(lambda x: x, in_shardings=replicated).lower(jax.ShapeDtypeStruct((), np.float32)).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
