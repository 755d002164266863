"""Lowers a TensorFlow program to StableHLO, from shapes alone, annotated with a layout.

TensorFlow lowers the program; jaxlib's XLA parses the result and compiles it (`compiling.py`).

Lowering runs in a process of its own (`python -m tpu.precompile.lowering FOLDER`), so that its gigabytes are free again
when the compiler starts.
"""

import json
import pathlib
import sys
import time

import jax
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from switch_tf import compat
from switch_tf.partitioning.axes import Axes, placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.spmd import Partitioned
from tpu.precompile.handoff import LOWERED, LOWERING, REQUEST, peak_memory
from tpu.precompile.plan import read_plan
from tpu.precompile.program import Program


def sharding(mesh: Mesh | jax.sharding.AbstractMesh, layout: Layout, axes: Axes) -> NamedSharding:
    """Returns JAX's sharding of a tensor with the given axis names under a layout."""
    return NamedSharding(mesh, PartitionSpec(*layout.split(axes)))


class LoweredModule:
    """A lowered program, annotated so that XLA partitions it over a mesh.

    Attributes:
      layout: the mesh, and which axes are sharded over it.
      module: StableHLO.
      argument_axes: axis names of each argument.
      result_axes: axis names of each result.
    """

    def __init__(self, program: Program, layout: Layout):
        """Lowers a program; nothing is allocated.

        Args:
          program: what to lower.
          layout: the mesh, and which axes are sharded over it.
        """
        self.layout = layout
        self.argument_axes = program.argument_axes
        function = tf.function(program.function, autograph=False, jit_compile=True)
        with placed_by(Partitioned(layout)):
            lowered = function.experimental_get_compiler_ir(*program.arguments)(stage="stablehlo_serialized")
        self.module = compat.parse_stablehlo(lowered)
        self.result_axes = program.state_axes + [()] * (compat.num_results(self.module) - program.state_size)
        mesh = jax.sharding.AbstractMesh(tuple(layout.mesh.values()), tuple(layout.mesh))

        def shardings(all_axes: list[Axes]) -> list[str]:
            return [compat.hlo_sharding(sharding(mesh, layout, axes), len(axes)) for axes in all_axes]

        # The state is donated: the new state is written into the same buffers.
        compat.annotate_partitions(
            self.module,
            layout.num_devices,
            shardings(self.argument_axes),
            shardings(self.result_axes),
            num_donated=program.state_size,
        )

    def write(self, path: pathlib.Path) -> None:
        """Writes the module as MLIR bytecode."""
        path.write_bytes(compat.stablehlo_bytecode(self.module))


def main(folder: str) -> None:
    """Lowers the step that a folder's request describes, and writes it into the folder."""
    path, start = pathlib.Path(folder), time.monotonic()
    plan = read_plan(**json.loads((path / REQUEST).read_text()))
    LoweredModule(plan.program(), plan.layout).write(path / LOWERED)
    (path / LOWERING).write_text(json.dumps({"seconds": time.monotonic() - start, "host_bytes": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
