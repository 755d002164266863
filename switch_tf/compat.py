"""Private APIs of other packages, all in one place: a function for each use, with the exact version it is true of.

Packages are imported when a function needs them: a process that compiles for a TPU does without TensorFlow, and one
that trains does without JAX's compiler.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import jax
    import numpy as np
    import seqio
    import tensorflow as tf
    from jaxlib.mlir import ir

# Python: true of 3.11 to 3.13.


def end_process(status: int) -> NoReturn:
    """Ends the process as Python does, up to the destruction of objects: threads end, exit handlers run.

    Where Python goes on to destroy objects, an iterator of tf.data over Python code may wait for ever for that code,
    which cannot run any more (`threading._shutdown` and `atexit._run_exitfuncs` are what Python calls before that).
    """
    import atexit
    import contextlib
    import os
    import sys
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # Nobody reads it any more.
            stream.flush()
    os._exit(status)


# glibc: true of 2.x; other C libraries have neither `mallopt` nor `malloc_trim`.


def keep_freed_memory() -> None:
    """Lets the process keep large buffers that it has freed, instead of returning each to the system at once.

    The pages of the next one would be faulted in again: TensorFlow's addition of two arrays of 25 MB took 27 ms instead
    of 6 (one core of an AMD EPYC).
    """
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**28)


def return_freed_memory() -> None:
    """Returns to the system, once, what the process has freed and keeps (`malloc_trim`)."""
    import ctypes

    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


# gin-config: true of 0.5.0, its last release. Its public API reads a binding by its name, but does not list them.


def gin_bindings() -> dict[tuple[str, str], dict[str, Any]]:
    """Returns every binding: of (scope, configurable), the values of its parameters (`gin.config._CONFIG`).

    A macro is a scope of the configurable "gin.macro", whose parameter is "value". References are unresolved.
    """
    import gin

    return {key: dict(values) for key, values in gin.config._CONFIG.items()}


def gin_configurable(name: str) -> Callable:
    """Returns the function or the class that is registered by a configurable's full name (`gin.config._REGISTRY`)."""
    import gin

    return gin.config._REGISTRY[name].wrapped


# JAX: true of jax 0.10.2 and jaxlib 0.10.2, which the [aot] extra pins. Its public API compiles programs that JAX has
# traced; ours were traced by TensorFlow, so we hand StableHLO to jaxlib's compiler ourselves.
JAX_VERSION = "0.10.2"


def stablehlo_bytecode(module: ir.Module) -> bytes:
    """Serializes a module as MLIR bytecode."""
    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer)
    return buffer.getvalue()


def portable_stablehlo(module: ir.Module) -> tuple[bytes, str]:
    """Serializes a module for other versions of StableHLO (`jax._src.lib._jax.mlir.serialize_portable_artifact`).

    Args:
      module: any StableHLO.

    Returns:
      (the portable artifact, which every StableHLO of the last twelve weeks can read; the version of its format).
    """
    from jax._src.lib import _jax
    from jaxlib.mlir.dialects import stablehlo

    window = stablehlo.StablehloCompatibilityRequirement.WEEK_12
    version = stablehlo.get_version_from_compatibility_requirement(window)
    return _jax.mlir.serialize_portable_artifact(module, version, False), version


def parse_stablehlo(bytecode: bytes) -> ir.Module:
    """Parses MLIR bytecode in a context that knows JAX's dialects (`jax._src.interpreters.mlir.make_ir_context`)."""
    from jax._src.interpreters import mlir
    from jaxlib.mlir import ir

    with mlir.make_ir_context():
        return ir.Module.parse(bytecode)


def forget_layouts(module: ir.Module) -> None:
    """Removes the memory layouts of arguments and results, which TensorFlow records for one device of this machine."""
    attributes = module.operation.attributes
    for name in ("mhlo.xla_entry_computation_parameter_layouts", "mhlo.xla_entry_computation_result_layout"):
        if name in attributes:
            del attributes[name]


def num_results(module: ir.Module) -> int:
    """The number of results of the module's main function."""
    return len(_main_function(module).type.results)


def annotate_partitions(
    module: ir.Module,
    num_partitions: int,
    argument_shardings: Sequence[str],
    result_shardings: Sequence[str],
    num_donated: int,
) -> None:
    """Annotates a module so that XLA partitions it.

    Args:
      module: with shardings inside of it, but none of its arguments and results.
      num_partitions: the number of devices of the mesh.
      argument_shardings: for each argument, from `hlo_sharding`.
      result_shardings: for each result.
      num_donated: how many leading arguments are donated: results of the same index are written into their buffers.
    """
    from jaxlib.mlir import ir

    with module.context, ir.Location.unknown(module.context):
        attributes, integer = module.operation.attributes, ir.IntegerType.get_signless(32)
        forget_layouts(module)
        attributes["mhlo.num_replicas"] = ir.IntegerAttr.get(integer, 1)
        attributes["mhlo.num_partitions"] = ir.IntegerAttr.get(integer, num_partitions)
        arguments = [{"mhlo.sharding": ir.StringAttr.get(sharding)} for sharding in argument_shardings]
        for index, argument in enumerate(arguments[:num_donated]):
            argument["tf.aliasing_output"] = ir.IntegerAttr.get(integer, index)
        results = [{"mhlo.sharding": ir.StringAttr.get(sharding)} for sharding in result_shardings]
        main = _main_function(module)
        for name, dictionaries in (("arg_attrs", arguments), ("res_attrs", results)):
            main.attributes[name] = ir.ArrayAttr.get([ir.DictAttr.get(entries) for entries in dictionaries])


def _main_function(module: ir.Module) -> Any:
    operations: Iterable[Any] = module.body.operations
    return next(operation for operation in operations if operation.attributes["sym_name"].value == "main")


def hlo_sharding(sharding: jax.sharding.NamedSharding, num_dimensions: int) -> str:
    """Writes a sharding as an HLO attribute (`NamedSharding._to_xla_hlo_sharding`)."""
    return str(sharding._to_xla_hlo_sharding(num_dimensions))


def _spmd_options(devices: Sequence[jax.Device], exec_time_effort: float) -> Any:
    """Options that partition one program over devices, in the order of the mesh (`xla_client.CompileOptions`)."""
    import numpy as np
    from jax._src.lib import xla_client

    options = xla_client.CompileOptions()
    build = options.executable_build_options
    options.num_partitions = build.num_partitions = len(devices)
    build.exec_time_optimization_effort = exec_time_effort
    build.use_spmd_partitioning = True
    # TensorFlow writes annotations for GSPMD; Shardy would ignore them.
    build.use_shardy_partitioner = False
    ids = np.array([[device.id for device in devices]])
    options.device_assignment = build.device_assignment = xla_client.DeviceAssignment.create(ids)
    return options


def compile_ahead_of_time(module: ir.Module, devices: Sequence[jax.Device], exec_time_effort: float = 0.0) -> Any:
    """Compiles for devices that may exist only as a topology (`Client.compile`).

    Args:
      module: the program, with `mhlo.num_partitions` and a sharding for each argument and result.
      devices: one for each coordinate of the mesh.
      exec_time_effort: -1.0 to compile faster, 0.0 for XLA's default.

    Returns:
      An executable for `hlo_text` and `memory_stats`; it cannot be run.

    Raises:
      jax.errors.JaxRuntimeError: if the compiler rejects the program.
    """
    from jax._src.lib import xla_client

    options = _spmd_options(devices, exec_time_effort)
    device_list = xla_client.DeviceList(tuple(devices))
    return devices[0].client.compile(module, executable_devices=device_list, compile_options=options)


def compile_and_load(module: ir.Module, devices: Sequence[jax.Device]) -> Any:
    """Compiles for devices of this machine; returns an executable that runs (`Client.compile_and_load`)."""
    from jax._src.lib import xla_client

    device_list = xla_client.DeviceList(tuple(devices))
    return devices[0].client.compile_and_load(module, device_list, _spmd_options(devices, 0.0))


def hlo_text(executable: Any) -> str:
    """The program of one device as optimized HLO text (`Executable.hlo_modules`)."""
    return "\n".join(module.to_string() for module in executable.hlo_modules())


def memory_stats(executable: Any) -> Any:
    """Bytes of arguments, aliases, code and the peak (`Executable.get_compiled_memory_stats`)."""
    return executable.get_compiled_memory_stats()


# seqio: true of seqio 0.0.20. A task keeps the first folder of the global list in which it was found cached.
SEQIO_VERSION = "0.0.20"


def forget_cache_folder(task: seqio.Task) -> None:
    """Makes a task look for its cached tokens again (`Task._cache_dir`, `Task._stats`)."""
    task._cache_dir = None
    task._stats = {}


# TensorFlow 2.20: what tf.train.Checkpoint does with an iterator, without its files.


def iterator_position(iterator: tf.data.Iterator) -> tf.Tensor:
    """Returns a copy of an iterator's position, a scalar variant (`OwnedIterator._iterator_resource`)."""
    import tensorflow as tf

    return tf.raw_ops.SerializeIterator(resource_handle=iterator._iterator_resource)


def restore_iterator(iterator: tf.data.Iterator, position: tf.Tensor) -> None:
    """Moves an iterator over the same dataset to a position (`OwnedIterator._iterator_resource`)."""
    import tensorflow as tf

    tf.raw_ops.DeserializeIterator(resource_handle=iterator._iterator_resource, serialized=position)


# Keras: true of keras 3.15.1, which setup.py pins.


def without_autocast() -> AbstractContextManager[Any]:
    """Inside of it Keras leaves the dtypes of weights alone (`keras.src.backend.AutocastScope`).

    Keras ignores `autocast=False` of a layer that no other layer calls.
    """
    from keras.src.backend import AutocastScope

    return AutocastScope(None)


# TensorFlow: true of 2.20.0, which setup.py pins.


def without_autograph() -> AbstractContextManager:
    """Within it, functions that are traced are not converted by AutoGraph first."""
    from tensorflow.python.autograph.core import ag_ctx

    return ag_ctx.ControlStatusCtx(status=ag_ctx.Status.DISABLED)


def coordinate_processes(first: str, seconds: int) -> None:
    """Sets up how TensorFlow's processes watch each other (`Context.configure_coordination_service`).

    DTensor would do so with TensorFlow's default, 10 seconds: a process that stands still for longer ends the others.

    Args:
      first: the task that coordinates, "/job:worker/replica:0/task:0".
      seconds: without a sign of a process after which it counts as lost.
    """
    from tensorflow.python.eager import context

    context.context().configure_coordination_service(
        service_type="standalone", service_leader=first, heartbeat_timeout_in_ms=1000 * seconds
    )


def wait_for_operations() -> None:
    """Waits until all operations that were started have ended, without holding Python's lock (`async_wait`)."""
    from tensorflow.python.eager import context

    context.async_wait()


def stop_recording() -> AbstractContextManager[Any]:
    """Inside of it no gradient tape records operations (`tensorflow.python.eager.record`)."""
    from tensorflow.python.eager import record

    return record.stop_recording()


def record_gradient(
    name: str, outputs: Sequence[tf.Tensor], inputs: Sequence[tf.Tensor], gradient: Callable[..., Any]
) -> None:
    """Records a gradient function for outputs that were computed without recording.

    `tf.custom_gradient` would join results and inputs in one IdentityN, which DTensor misplaces in a loop's body.
    """
    from tensorflow.python.eager import record

    record.record_operation(name, outputs, inputs, gradient)


def annotate_sharding(tensor: tf.Tensor, devices: np.ndarray, splits: Sequence[int]) -> tf.Tensor:
    """Annotates a tensor for XLA's partitioner (`xla_sharding.mesh_split`, the only way in TensorFlow 2.20).

    Args:
      tensor: any.
      devices: their numbers, in the shape of the mesh.
      splits: for each dimension of the tensor the dimension of the mesh that shards it, or -1.

    Returns:
      The same values.
    """
    from tensorflow.python.compiler.xla.experimental import xla_sharding

    # A separate op instead of an attribute of the tensor's op: TensorFlow's optimizer keeps it, and its gradient
    # has the same annotation.
    return xla_sharding.mesh_split(tensor, devices, splits, use_sharding_op=True)


def variable_without_memory(shape: tuple[int, ...], dtype: tf.DType, trainable: bool) -> tf.Variable:
    """Makes a variable with a shape and a dtype, but no value (`resource_variable_ops.UninitializedVariable`)."""
    from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

    return UninitializedVariable(shape=shape, dtype=dtype, trainable=trainable)
