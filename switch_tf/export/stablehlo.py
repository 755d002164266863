"""Pure programs as StableHLO, and as functions that `jax.export` reads.

TensorFlow lowers a program to StableHLO; jaxlib serializes it as a portable artifact.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import tensorflow as tf

from switch_tf import compat
from switch_tf.export.pure_programs import Nest, PureProgram

# Raised when the files of an export change so that an old loader would misread them.
FORMAT_VERSION = 1


def write_program(folder: str, name: str, program: PureProgram) -> dict[str, Any]:
    """Lowers a program, for one device and from shapes alone, and writes `NAME.stablehlo` and `NAME.jax`.

    Args:
      folder: where to.
      name: of the program.
      program: what to lower.

    Returns:
      What a manifest says about it: the versions of StableHLO and of JAX's calling convention, and the flat lists of
      arguments and results, each with its name, shape and dtype.
    """
    specs = tf.nest.flatten(tuple(program.arguments.values()))
    results: Nest = None

    def flat_function(*flat: tf.Tensor) -> list[tf.Tensor]:
        nonlocal results
        arguments = tf.nest.pack_sequence_as(tuple(program.arguments.values()), flat)
        results = program.function(*arguments)
        return tf.nest.flatten(results)

    function = tf.function(flat_function, autograph=False, jit_compile=True)
    module = compat.parse_stablehlo(function.experimental_get_compiler_ir(*specs)(stage="stablehlo_serialized"))
    compat.forget_layouts(module)
    artifact, version = compat.portable_stablehlo(module)
    path = pathlib.Path(folder) / name
    path.with_suffix(".stablehlo").write_bytes(artifact)
    exported = _exported(name, tuple(program.arguments.values()), results, artifact)
    path.with_suffix(".jax").write_bytes(exported.serialize())
    return {
        "stablehlo_version": version,
        "jax_calling_convention": exported.calling_convention_version,
        "arguments": [entry for name, nest in program.arguments.items() for entry in _entries(nest, name)],
        "results": _entries(results, ""),
    }


def _exported(name: str, arguments: tuple[Nest, ...], results: Nest, artifact: bytes) -> jax.export.Exported:
    """Wraps an artifact for `jax.export`, by exporting a function of the same signature and replacing its program."""
    result_shapes = tf.nest.map_structure(_shape_in_jax, results)

    def same_signature(*_: Nest) -> Nest:
        return jax.tree.map(lambda shape: jax.numpy.zeros(shape.shape, shape.dtype), result_shapes)

    same_signature.__name__ = name
    # The program has no code of one platform in it.
    any_platform = [jax.export.DisabledSafetyCheck.platform()]
    export = jax.export.export(jax.jit(same_signature, keep_unused=True), disabled_checks=any_platform)
    exported = export(*tf.nest.map_structure(_shape_in_jax, arguments))
    return dataclasses.replace(exported, mlir_module_serialized=artifact)


def _shape_in_jax(tensor: tf.Tensor | tf.TensorSpec) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(tensor.shape), tensor.dtype.as_numpy_dtype)


def _entries(nest: Nest, name: str) -> list[dict[str, Any]]:
    """Lists the tensors of a nest in the order of `tf.nest` and JAX, which is that of the sorted keys."""
    if isinstance(nest, dict):
        return [entry for key in sorted(nest) for entry in _entries(nest[key], f"{name}/{key}" if name else key)]
    return [{"name": name, "shape": list(nest.shape), "dtype": np.dtype(nest.dtype.as_numpy_dtype).name}]
