"""A TensorFlow program as a compiler for TPUs reads it: lowered from shapes alone, annotated with a layout.

TensorFlow lowers; jaxlib, which has XLA's compiler, reads what comes out and compiles it (`compiling.py`). The ways
into jaxlib are private (marked below), so that its version is pinned: `pip install 'switch-tf[aot]'`.

A process of its own lowers what is to be compiled (`python -m tpu.precompile.lowering FOLDER`): its gigabytes are free
again when the compiler starts.
"""

import json
import pathlib
import sys
import time

import jax
import tensorflow as tf
from jax._src.interpreters import mlir as jax_mlir  # Private.
from jax._src.lib import _jax  # Private.
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib.mlir import ir

from switch_tf.partitioning.axes import Axes, placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.spmd import Partitioned
from tpu.precompile.handoff import LOWERED, LOWERING, REQUEST, peak_memory
from tpu.precompile.plan import read_plan
from tpu.precompile.program import Program

# What TensorFlow says of the layouts of a program that is not split yet.
_STALE_ATTRIBUTES = ("mhlo.xla_entry_computation_parameter_layouts", "mhlo.xla_entry_computation_result_layout")


def sharding(mesh: Mesh | jax.sharding.AbstractMesh, layout: Layout, axes: Axes) -> NamedSharding:
    """Returns JAX's name for how a layout splits a tensor."""
    return NamedSharding(mesh, PartitionSpec(*layout.split(axes)))


class PartitionedModule:
    """A lowered program that is to be split over a mesh."""

    def __init__(self, program: Program, layout: Layout):
        """Lowers a program with the annotations of a layout; nothing is allocated.

        Args:
          program: what to lower.
          layout: the mesh, and what is split over it.
        """
        self.layout = layout
        self.argument_axes = program.argument_axes
        compiled = tf.function(program.function, autograph=False, jit_compile=True)
        with placed_by(Partitioned(layout)):
            hlo = compiled.experimental_get_compiler_ir(*program.arguments)(stage="hlo_serialized")
        with jax_mlir.make_ir_context():
            self.module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
        main = next(op for op in self.module.body.operations if op.attributes["sym_name"].value == "main")
        self.result_axes = program.state_axes + [()] * (len(main.type.results) - program.state_size)
        with self.module.context, ir.Location.unknown(self.module.context):
            self._annotate(main, program.state_size)

    def _annotate(self, main, state_size: int) -> None:
        """Says of the whole program what the annotations inside cannot: its devices, its arguments and results."""
        attributes, integer = self.module.operation.attributes, ir.IntegerType.get_signless(32)
        for name in _STALE_ATTRIBUTES:
            if name in attributes:
                del attributes[name]
        attributes["mhlo.num_replicas"] = ir.IntegerAttr.get(integer, 1)
        attributes["mhlo.num_partitions"] = ir.IntegerAttr.get(integer, self.layout.num_devices)
        mesh = jax.sharding.AbstractMesh(tuple(self.layout.mesh.values()), tuple(self.layout.mesh))

        def split(axes: Axes) -> dict[str, ir.Attribute]:
            text = str(sharding(mesh, self.layout, axes)._to_xla_hlo_sharding(len(axes)))  # Private.
            return {"mhlo.sharding": ir.StringAttr.get(text)}

        arguments = [split(axes) for axes in self.argument_axes]
        # The state is given up to the program, which writes the new one in its place.
        for index, argument in enumerate(arguments[:state_size]):
            argument["tf.aliasing_output"] = ir.IntegerAttr.get(integer, index)
        results = [split(axes) for axes in self.result_axes]
        for name, dictionaries in (("arg_attrs", arguments), ("res_attrs", results)):
            main.attributes[name] = ir.ArrayAttr.get([ir.DictAttr.get(entries) for entries in dictionaries])

    def write(self, path: pathlib.Path) -> None:
        """Writes the module as MLIR's bytecode, for another process to compile."""
        with path.open("wb") as file:
            self.module.operation.write_bytecode(file)


def main(folder: str) -> None:
    """Lowers the step that a folder's request asks for, into the folder."""
    path, start = pathlib.Path(folder), time.monotonic()
    plan = read_plan(**json.loads((path / REQUEST).read_text()))
    PartitionedModule(plan.program(), plan.layout).write(path / LOWERED)
    (path / LOWERING).write_text(json.dumps({"seconds": time.monotonic() - start, "host_bytes": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
