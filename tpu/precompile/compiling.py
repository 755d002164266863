"""The compiler of a real TPU, or of this machine's CPU, on a lowered program. TensorFlow is not needed here.

A process of its own compiles for TPUs (`python -m tpu.precompile.compiling FOLDER`): it needs a machine's memory, and
libtpu ends the process that asks for a topology that cannot be. `command.py` sets the environment that libtpu reads.
"""

import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
from jax._src.interpreters import mlir as jax_mlir  # Private.
from jax._src.lib import xla_client  # Private.
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib.mlir import ir

from tpu.precompile.handoff import COMPILED, LOWERED, TARGET, TEXT, peak_memory


def read_module(path: pathlib.Path) -> ir.Module:
    """Reads what `PartitionedModule.write` wrote."""
    with jax_mlir.make_ir_context():
        return ir.Module.parse(path.read_bytes())


def compile_options(devices: Sequence[jax.Device], with_low_effort: bool = False) -> xla_client.CompileOptions:
    """Says that a program is to be split over devices, in the mesh's order.

    Args:
      devices: one for each place of the mesh.
      with_low_effort: whether to be done sooner with a program that is slower.
    """
    options = xla_client.CompileOptions()
    build = options.executable_build_options
    options.num_partitions = build.num_partitions = len(devices)
    build.exec_time_optimization_effort = -1.0 if with_low_effort else 0.0
    build.use_spmd_partitioning = True
    # GSPMD, whose annotations TensorFlow writes; Shardy would read none of them.
    build.use_shardy_partitioner = False
    ids = np.array([[device.id for device in devices]])
    options.device_assignment = build.device_assignment = xla_client.DeviceAssignment.create(ids)
    return options


def text_of(executable) -> str:
    """Returns the program of one device, as HLO text."""
    return "\n".join(module.to_string() for module in executable.hlo_modules())


def tpu_devices(topology_name: str, topology_settings: dict) -> tuple[jax.Device, ...]:
    """Returns the devices of TPUs that are not there.

    Args:
      topology_name: "v4:4x4x8"; a name that libtpu does not know ends the process.
      topology_settings: what else tells the topology, such as {"chip_config_name": "megacore"}.
    """
    topology = topologies.get_topology_desc(platform="tpu", topology_name=topology_name, **topology_settings)
    return tuple(topology.devices)


def compile_for_tpu(module: ir.Module, devices: tuple[jax.Device, ...], with_low_effort: bool = False):
    """Compiles a lowered program; what comes out can be looked at and not run."""
    options = compile_options(devices, with_low_effort)
    return devices[0].client.compile(module, executable_devices=xla_client.DeviceList(devices), compile_options=options)


def _compiled(folder: pathlib.Path, devices: tuple[jax.Device, ...], with_low_effort: bool) -> dict:
    module, start = read_module(folder / LOWERED), time.monotonic()
    try:
        executable = compile_for_tpu(module, devices, with_low_effort)
    except jax.errors.JaxRuntimeError as error:
        return {"error": str(error), "seconds": time.monotonic() - start, "host_bytes": peak_memory()}
    seconds = time.monotonic() - start
    (folder / TEXT).write_text(text_of(executable))
    memory = executable.get_compiled_memory_stats()
    return {
        "seconds": seconds,
        "argument_bytes": memory.argument_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        "peak_bytes": memory.peak_memory_in_bytes,
        "program_bytes": memory.generated_code_size_in_bytes,
        "host_bytes": peak_memory(),
    }


def main(folder: str) -> None:
    """Compiles what lies in a folder for the topology that it names; where nothing does, only looks the topology up."""
    path = pathlib.Path(folder)
    target = json.loads((path / TARGET).read_text())
    devices = tpu_devices(target["topology_name"], target["topology_settings"])
    if (path / LOWERED).exists():
        (path / COMPILED).write_text(json.dumps(_compiled(path, devices, target["with_low_effort"])))
    else:  # Some topologies have devices, and no compiler.
        everywhere = NamedSharding(Mesh(np.array(devices), ("devices",)), PartitionSpec())
        jax.jit(lambda x: x, in_shardings=everywhere).lower(jax.ShapeDtypeStruct((), np.float32)).compile()


if __name__ == "__main__":
    main(*sys.argv[1:])
