"""A tiny training step, split by XLA over 8 CPU devices, next to TensorFlow's own: `... FILE MESH_SHAPE LAYOUT_RULES`.

A process of its own: the number of JAX's CPU devices is fixed before it starts.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import json

import jax
import numpy as np
import tensorflow as tf

from switch_tf.model import EncoderDecoder
from switch_tf.model_config import ModelConfig
from switch_tf.partitioning.layout import Layout
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from tests.conftest import random_features
from tpu.lowering import PartitionedModule, collectives
from tpu.program import training_program

CONFIG = ModelConfig(
    vocab_size=96,
    d_model=16,
    d_ff=32,
    d_kv=8,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
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


def main(file: str, mesh_shape: str, layout_rules: str) -> None:
    """Trains both ways; writes losses and last states, and the collectives as JSON."""
    model = EncoderDecoder(CONFIG, seed=1)
    model.build()
    # Matrices are so small here that none would have factored second moments.
    optimizer = Adafactor(learning_rate=Constant(1e-3), min_size_to_factor=4)
    shapes = {name: feature.shape for name, feature in random_features(batch=BATCH).items()}
    program = training_program(model, optimizer, Objective(router_z_loss=1e-3), shapes)
    module = PartitionedModule(program, Layout.parse(mesh_shape, layout_rules))
    partitioned = module.compile(jax.devices("cpu"))
    # TensorFlow's own: no annotation, one device.
    compiled = tf.function(program.function, autograph=False)

    def whole(arguments: list[np.ndarray]) -> list[np.ndarray]:
        return [result.numpy() for result in compiled(*map(tf.constant, arguments))]

    weights = [weight.numpy() for weight in model.trainable_variables]
    slots = [np.zeros(spec.shape, np.float32) for spec in program.arguments[len(weights) : program.state_size]]
    found = {"collectives": json.dumps([collective._asdict() for collective in collectives(partitioned.text)])}
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
