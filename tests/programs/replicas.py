"""What a tiny run gives on one device and on replicas: `... FILE MESH MICROBATCHES [SETTING=VALUE ...]`.

A process of its own: TensorFlow's devices are split once, before anything else.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import dataclasses
import types

import numpy as np
import tensorflow as tf

from switch_tf.decoding.decoder import make_decoder
from switch_tf.decoding.settings import Decoding
from switch_tf.evaluation.likelihood import make_evaluator
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.engines import make_engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.runs.loop import make_update
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from switch_tf.training.step_metrics import NESTED_METRICS
from tests.support.features import random_features

# Everything that could tell one device from many: noise of all kinds, several groups for each replica, padding.
CONFIG = ModelConfig(
    vocab_size=96,
    d_model=16,
    d_ff=32,
    d_kv=8,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    num_experts=4,
    sparse_every=1,
    group_size=8,
    capacity_factor=1.0,
    initializer_scale=1.0,
    tied_logits=False,
    dropout_rate=0.1,
    expert_dropout_rate=0.2,
    router_jitter=0.1,
)
BATCH = 16
STEPS = 3


def train(engine: Engine, config: ModelConfig, num_microbatches: int) -> dict[str, np.ndarray]:
    """Trains a few steps, evaluates and decodes: {"0/loss": ..., "weight/3": ..., "evaluation/accuracy": ...}."""
    run = types.SimpleNamespace(engine=engine, experiment=types.SimpleNamespace(seed=3), teacher=None)
    with engine.scope():
        run.model = EncoderDecoder(config, seed=1)
        run.model.build()
        run.optimizer = Adafactor(learning_rate=Constant(1e-3))
        run.optimizer.build(run.model.trainable_variables)
        run.step = tf.Variable(0, dtype=tf.int64, trainable=False)
    update = make_update(run, Objective(router_z_loss=1e-3), num_microbatches)
    rows, found = engine.local_rows(BATCH), {}
    for step in range(STEPS):
        batch = {name: array[rows] for name, array in random_features(batch=BATCH, seed=step).items()}
        with engine.scope():
            metrics = engine.fetch(update(engine.feed(batch)))
        of_layers = {
            f"{layer}/{k}": v
            for nested in (metrics.routing, metrics.updates)
            for layer, of in nested.items()
            for k, v in of._asdict().items()
        }
        scalars = {name: value for name, value in metrics._asdict().items() if name not in NESTED_METRICS}
        found |= {f"{step}/{name}": value for name, value in (scalars | of_layers).items()}
    held_out = random_features(batch=BATCH, seed=STEPS)
    values = make_evaluator(run.model, run.engine)([held_out])
    found |= {f"evaluation/{name}": value for name, value in values.items()}
    found["decoded"] = make_decoder(run.model, Decoding(), 6, engine)(held_out).tokens[:, 0]
    return found | {f"weight/{index}": weight.numpy() for index, weight in enumerate(run.model.trainable_variables)}


def main(file: str, mesh_shape: str, num_microbatches: str, *settings: str) -> None:
    """Trains on the mesh's replicas, with `settings` of the model, and then on one device without them.

    Writes both: "mesh/..." and, in the first process, "single/...".
    """
    changed = dataclasses.replace(CONFIG, **dict(setting.split("=") for setting in settings))
    layout, processes = Layout.parse(mesh_shape, "batch:data"), Processes.from_environment()
    # Of several processes, each has one CPU.
    num_logical_devices = layout.num_devices if processes.count == 1 else None
    runs = {
        "mesh": (make_engine("tpu", layout, num_logical_devices, processes), changed),
    }
    if processes.index == 0:
        runs["single"] = (make_engine("single", Layout.parse("", "")), CONFIG)
    found = {
        f"{name}/{key}": value
        for name, (engine, config) in runs.items()
        for key, value in train(engine, config, int(num_microbatches)).items()
    }
    np.savez(file, **found)
    processes.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
