"""Trains a tiny model for some steps on any engine and mesh, in a process of its own, and writes what came out.

    python -m tests.programs.mesh_program OUTPUT.npz '{"engine": "dtensor", "mesh": "data:8", "steps": 3}'

In the output: losses [steps], gradient norms, statistics of the sparse layers, the weights and slots after the steps,
evaluation sums, decoded tokens; and of a dtensor mesh the collectives of the compiled step and the bytes of each
variable on the first device.
"""

import collections
import dataclasses
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor
from tensorflow.python.eager import context

from switch_tf.decoding.greedy import greedy
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.partitioning.engines import make_engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from switch_tf.training.step import make_evaluation_step, make_train_step
from switch_tf.training.step_metrics import routing_scalars
from tests.support.features import random_features

RULES = {
    "data": "batch:data,experts:data",
    "model": "heads:model,mlp:model,expert_mlp:model,vocab:model",
}
CONFIG = ModelConfig(
    vocab_size=96,
    d_model=16,
    d_ff=32,
    d_kv=8,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=8,
    group_size=16,
    capacity_factor=1.0,
    initializer_scale=1.0,
    dropout_rate=0.1,
    expert_dropout_rate=0.2,
)
# The scale of the norm before the logits.
OVERFLOWING = "decoder/final_norm/scale"


def rules_for(mesh: str) -> str:
    """The rules whose mesh dimensions there are."""
    return ",".join(rules for dimension, rules in RULES.items() if dimension in mesh)


def collectives(metadata, num_devices: int) -> dict[str, float]:
    """Counts the collectives of each device in the graphs that ran."""
    counts = collections.Counter(
        node.op
        for function in metadata.function_graphs
        for graph in function.partition_graphs
        for nodes in (graph.node, *(function.node_def for function in graph.library.function))
        for node in nodes
        if "Collective" in node.op
    )
    return {name: count / num_devices for name, count in counts.items()}


def main(output: str, settings: dict) -> None:
    """Runs everything; `settings`: engine, mesh, rules, logical devices, steps, microbatches, config and others."""
    mesh = settings.get("mesh", "")
    config = dataclasses.replace(CONFIG, **settings.get("config", {}))
    layout = Layout.parse(mesh, settings.get("rules", rules_for(mesh)))
    engine = make_engine(settings["engine"], layout, settings.get("logical_devices"), Processes.from_environment())
    skips = {"skip_by_matrix": settings.get("skip_by_matrix", False)}
    optimizer = Adafactor(learning_rate=Constant(1e-3), min_size_to_factor=8, **skips)
    with engine.scope():
        model = EncoderDecoder(config, seed=0)
        model.build()
        optimizer.build(model.trainable_variables)
        step = tf.Variable(0, dtype=tf.int64, trainable=False)
    train_step = make_train_step(model, optimizer, Objective(), settings.get("microbatches", 1))
    evaluation_step = make_evaluation_step(model)
    weights, slots = model.trainable_variables, optimizer.slots

    def update(features):
        new_weights, new_slots, metrics = train_step(
            [tf.convert_to_tensor(weight) for weight in weights],
            [{name: tf.convert_to_tensor(slot) for name, slot in slots_of.items()} for slots_of in slots],
            step,
            features,
            0,
        )
        for weight, value in zip(weights, new_weights):
            weight.assign(value)
        for slots_of, values in zip(slots, new_slots):
            for name, value in values.items():
                slots_of[name].assign(value)
        step.assign_add(1)
        return metrics

    compiled = engine.compile(update)
    features = random_features(batch=16, inputs=16, targets=8)
    features = {name: array[engine.local_rows(16)] for name, array in features.items()}
    results = {"losses": [], "gradient_norms": []}
    for number in range(settings.get("steps", 3)):
        if number == 0:
            context.context().enable_run_metadata()
        with engine.scope():
            metrics = engine.fetch(compiled(engine.feed(features)))
        if number == 0:
            metadata = context.context().export_run_metadata()
            context.context().disable_run_metadata()
            results["collectives"] = json.dumps(collectives(metadata, engine.layout.num_devices))
        results["losses"].append(metrics.loss)
        results["gradient_norms"].append(metrics.gradient_norm)
        results["expert_load"] = [routing.expert_load for routing in metrics.routing.values()]
        results["layers"] = [
            *(routing_scalars(metrics.routing).values()),
            *(value for statistics in metrics.updates.values() for value in statistics),
        ]
    if settings.get("everything", True):
        evaluate = engine.compile(
            lambda features: evaluation_step([tf.convert_to_tensor(weight) for weight in weights], features)
        )
        decode = engine.compile(lambda features: greedy(model, features["encoder_input_tokens"], 6))
        with engine.scope():
            sums = engine.fetch(evaluate(engine.feed(features)))
            inputs = {"encoder_input_tokens": features["encoder_input_tokens"]}
            results["decoded"] = engine.fetch(decode(engine.feed(inputs)))
        results["evaluation"] = [float(value) for value in (*sums.tokens, sums.balance_loss)]
    named = {
        f"{weight_name(weight)}{name}": variable.value
        for weight, slots_of in zip(weights, slots)
        for name, variable in {"": weight, **{f"/slots/{key}": slot for key, slot in slots_of.items()}}.items()
    }
    if settings.get("overflow"):
        overflow(engine, named[OVERFLOWING])
    results |= values_of(engine, named, "variable")
    if settings["engine"] == "dtensor":
        for name, variable in named.items():
            results[f"bytes:{name}"] = dtensor.unpack(variable.read_value())[0].numpy().nbytes
    if settings.get("overflow"):
        with engine.scope():
            metrics = engine.fetch(compiled(engine.feed(features)))
            results |= {
                "skipped": metrics.skipped,
                "overflowing_loss": metrics.loss,
                "step": engine.fetch(step.read_value()),
            }
        results |= values_of(engine, named, "after")
    np.savez(output, **results)


def overflow(engine, variable) -> None:
    """Makes a weight so large that the logits, and with them the loss and the gradients, overflow."""
    values = np.full(variable.shape, 3e38, np.float32)
    with engine.scope():
        engine.load(variable, lambda index: values[: index.shape[0]])


def values_of(engine, variables, prefix: str) -> dict[str, np.ndarray]:
    """The values of variables, by their name behind a prefix."""
    with engine.scope():
        return {f"{prefix}:{name}": whole(engine, variable) for name, variable in variables.items()}


def whole(engine, variable) -> np.ndarray:
    """Puts a variable together from the shards that this process holds."""
    array = np.full(variable.shape, np.nan, np.float32)
    for (start, shape), values in engine.shards(variable):
        array[tuple(slice(first, first + size) for first, size in zip(start, shape))] = values
    return array


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
