"""A tiny training step, split by XLA over 8 CPU devices, next to TensorFlow's own: `... FILE MESH_SHAPE LAYOUT_RULES
NUM_MICROBATCHES`.

A process of its own: the number of JAX's CPU devices is fixed before it starts.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import itertools
import json
from collections.abc import Sequence

import jax
import numpy as np
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding

from switch_tf import compat
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.layout import Layout
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from tests.support.features import random_features
from tpu.precompile.hlo import HloProgram
from tpu.precompile.lowering import LoweredModule, sharding
from tpu.precompile.program import training_program

CONFIG = ModelConfig(
    vocab_size=96,
    d_model=16,
    d_ff=32,
    d_kv=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    sparse_every=1,
    num_experts=8,
    group_size=8,
    capacity_factor=1.0,
    initializer_scale=1.0,
    dropout_rate=0.1,
    expert_dropout_rate=0.2,
    router_jitter=0.1,
)
BATCH = 16
STEPS = 3


class Executable:
    """A lowered program, compiled for devices of this machine, which runs on whole arrays."""

    def __init__(self, lowered: LoweredModule, devices: Sequence[jax.Device]):
        self._executable = compat.compile_and_load(lowered.module, devices)
        self.text = compat.hlo_text(self._executable)
        layout = lowered.layout
        mesh = Mesh(np.array(devices).reshape(list(layout.mesh.values())), tuple(layout.mesh))
        self._argument_shardings = [sharding(mesh, layout, axes) for axes in lowered.argument_axes]
        self._result_shardings = [sharding(mesh, layout, axes) for axes in lowered.result_axes]

    def __call__(self, arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Splits arguments over the devices, runs, and puts results together."""
        placed = [jax.device_put(array, placement) for array, placement in zip(arguments, self._argument_shardings)]
        results = self._executable.execute_sharded(placed).disassemble_into_single_device_arrays()
        return [np.asarray(_joined(parts, placement)) for parts, placement in zip(results, self._result_shardings)]


def _joined(parts: list[jax.Array], placement: NamedSharding) -> jax.Array:
    numbers = [1 if name is None else placement.mesh.shape[name] for name in placement.spec]
    shape = tuple(size * number for size, number in itertools.zip_longest(parts[0].shape, numbers, fillvalue=1))
    return jax.make_array_from_single_device_arrays(shape, placement, parts)


def main(file: str, mesh_shape: str, layout_rules: str, num_microbatches: str) -> None:
    """Trains both ways; writes losses and last states, and the collectives as JSON."""
    model = EncoderDecoder(CONFIG, seed=1)
    model.build()
    # Matrices are so small here that none would have factored second moments.
    optimizer = Adafactor(learning_rate=Constant(1e-3), min_size_to_factor=4)
    shapes = {name: feature.shape for name, feature in random_features(batch=BATCH).items()}
    program = training_program(model, optimizer, Objective(router_z_loss=1e-3), shapes, int(num_microbatches))
    layout = Layout.parse(mesh_shape, layout_rules)
    partitioned = Executable(LoweredModule(program, layout), jax.devices("cpu"))
    # TensorFlow's own: no annotation, one device.
    compiled = tf.function(program.function, autograph=False)

    def whole(arguments: list[np.ndarray]) -> list[np.ndarray]:
        return [result.numpy() for result in compiled(*map(tf.constant, arguments))]

    weights = [weight.numpy() for weight in model.trainable_variables]
    slots = [np.zeros(spec.shape, np.float32) for spec in program.arguments[len(weights) : program.state_size]]
    found = {
        "collectives": json.dumps([collective._asdict() for collective in HloProgram(partitioned.text).collectives()])
    }
    for name, run in {"partitioned": partitioned, "whole": whole}.items():
        state, losses = weights + slots, []
        for step in range(STEPS):
            batch = tf.nest.flatten(random_features(batch=BATCH, seed=step))
            results = run([*state, np.int32(step), *batch, np.int32(3)])
            state, metrics = results[: program.state_size], results[program.state_size :]
            losses.append(metrics[0])
        found[f"{name}/losses"] = losses
        found |= {f"{name}/{index}": array for index, array in enumerate(results)}
    np.savez(file, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
