"""A TensorFlow program through XLA's partitioner: lowered, annotated, compiled for a mesh, and what is in the result.

TensorFlow lowers; jaxlib, which has XLA's compiler, compiles. The ways into jaxlib are private (marked below), so that
its version is pinned: `pip install 'switch-tf[aot]'`.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
import tensorflow as tf
from jax._src.interpreters import mlir as jax_mlir  # Private.
from jax._src.lib import _jax, xla_client  # Private.
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxlib.mlir import ir

from switch_tf.partitioning.axes import Axes, placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.spmd import Partitioned
from tpu.program import Program

_COLLECTIVES = ("all-to-all", "all-reduce", "all-gather", "reduce-scatter", "collective-permute")
_ITEM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8}
# What TensorFlow says of the layouts of a program that is not split yet.
_STALE_ATTRIBUTES = ("mhlo.xla_entry_computation_parameter_layouts", "mhlo.xla_entry_computation_result_layout")


class PartitionedModule:
    """A lowered program that is to be split over a mesh."""

    def __init__(self, program: Program, layout: Layout):
        """Lowers a program with the annotations of a layout, from shapes alone: nothing is allocated.

        Args:
          program: what to lower.
          layout: the mesh, and what is split over it.
        """
        self.layout = layout
        compiled = tf.function(program.function, autograph=False, jit_compile=True)
        with placed_by(Partitioned(layout)):
            hlo = compiled.experimental_get_compiler_ir(*program.arguments)(stage="hlo_serialized")
        with jax_mlir.make_ir_context():
            self._module = ir.Module.parse(_jax.mlir.hlo_to_stablehlo(hlo))
        main = next(op for op in self._module.body.operations if op.attributes["sym_name"].value == "main")
        self._argument_axes = program.argument_axes
        self._result_axes = program.state_axes + [()] * (len(main.type.results) - program.state_size)
        with self._module.context, ir.Location.unknown(self._module.context):
            self._annotate(main)

    def _annotate(self, main) -> None:
        """Says of the whole program what the annotations inside cannot: its devices, its arguments and results."""
        attributes, integer = self._module.operation.attributes, ir.IntegerType.get_signless(32)
        for name in _STALE_ATTRIBUTES:
            if name in attributes:
                del attributes[name]
        attributes["mhlo.num_replicas"] = ir.IntegerAttr.get(integer, 1)
        attributes["mhlo.num_partitions"] = ir.IntegerAttr.get(integer, self.layout.num_devices)
        mesh = jax.sharding.AbstractMesh(tuple(self.layout.mesh.values()), tuple(self.layout.mesh))

        def sharding(axes: Axes) -> ir.DictAttr:
            text = str(self._sharding(mesh, axes)._to_xla_hlo_sharding(len(axes)))  # Private.
            return ir.DictAttr.get({"mhlo.sharding": ir.StringAttr.get(text)})

        main.attributes["arg_attrs"] = ir.ArrayAttr.get([sharding(axes) for axes in self._argument_axes])
        main.attributes["res_attrs"] = ir.ArrayAttr.get([sharding(axes) for axes in self._result_axes])

    def _sharding(self, mesh: Mesh | jax.sharding.AbstractMesh, axes: Axes) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*self.layout.split(axes)))

    def compile(self, devices: Sequence[jax.Device]) -> "Executable":
        """Splits the program over devices, in the mesh's order, and compiles it for them."""
        options = xla_client.CompileOptions()
        build = options.executable_build_options
        options.num_partitions = build.num_partitions = len(devices)
        build.use_spmd_partitioning = True
        # GSPMD, whose annotations TensorFlow writes; Shardy would read none of them.
        build.use_shardy_partitioner = False
        ids = np.array([[device.id for device in devices]])
        options.device_assignment = build.device_assignment = xla_client.DeviceAssignment.create(ids)
        client = devices[0].client
        executable = client.compile_and_load(self._module, xla_client.DeviceList(tuple(devices)), options)
        mesh = Mesh(np.array(devices).reshape(list(self.layout.mesh.values())), tuple(self.layout.mesh))
        return Executable(
            executable,
            [self._sharding(mesh, axes) for axes in self._argument_axes],
            [self._sharding(mesh, axes) for axes in self._result_axes],
        )


class Executable:
    """A program that is split over devices which are there."""

    def __init__(self, executable, argument_shardings: list[NamedSharding], result_shardings: list[NamedSharding]):
        self._executable = executable
        self._argument_shardings = argument_shardings
        self._result_shardings = result_shardings

    @property
    def text(self) -> str:
        """The program of one device, as HLO text."""
        return "\n".join(module.to_string() for module in self._executable.hlo_modules())

    def __call__(self, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Runs it on whole arrays: arguments are split over the devices, and results put together."""
        placed = [jax.device_put(array, sharding) for array, sharding in zip(arguments, self._argument_shardings)]
        results = self._executable.execute_sharded(placed).disassemble_into_single_device_arrays()
        return [np.asarray(_joined(parts, sharding)) for parts, sharding in zip(results, self._result_shardings)]


def _joined(parts: list[jax.Array], sharding: NamedSharding) -> jax.Array:
    numbers = [1 if name is None else sharding.mesh.shape[name] for name in sharding.spec]
    shape = tuple(size * number for size, number in itertools.zip_longest(parts[0].shape, numbers, fillvalue=1))
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


class Collective(NamedTuple):
    """A collective of a program.

    kind: "all-to-all", ...
    shapes: of what a device gets from it, as HLO writes them: "f32[8,2,4,16]".
    num_bytes: of that.
    groups: which devices talk to each other, as HLO writes it.
    source: TensorFlow's name of the op that needs it.
    """

    kind: str
    shapes: tuple[str, ...]
    num_bytes: int
    groups: str
    source: str


def collectives(text: str) -> list[Collective]:
    """Lists the collectives in a program's HLO text.

    One that runs alongside other work is there in two halves, and (on TPUs) in several copies that share a channel: it
    counts once.
    """
    found = {}
    pattern = rf"^\s*(?:ROOT )?%?([\w.\-]+) = (.*?) ({'|'.join(_COLLECTIVES)})(?:-start)?\((.*)$"
    for name, result, kind, rest in re.findall(pattern, text, re.MULTILINE):
        channel = re.search(r"channel_id=(\d+)", rest)
        groups = re.search(r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\[.*?\](?=,|$))", rest)
        source = re.search(r'op_name="([^"]*)"', rest)
        shapes = re.findall(r"([a-z]+[0-9]*)\[([\d,]*)\]", result)
        found[kind, channel.group(1) if channel else name] = Collective(
            kind,
            tuple(f"{dtype}[{sizes}]" for dtype, sizes in shapes),
            sum(_ITEM_BYTES.get(dtype, 4) * _num_elements(sizes) for dtype, sizes in shapes),
            groups.group(1) if groups else "",
            source.group(1) if source else "",
        )
    return list(found.values())


def _num_elements(sizes: str) -> int:
    return math.prod(int(size) for size in sizes.split(",") if size)
