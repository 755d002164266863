"""What is made again in the place of being kept: the same numbers, the same places on a mesh, less memory."""

import dataclasses
import math

import jax
import keras
import numpy as np
import pytest
import tensorflow as tf
from jax._src.lib import xla_client  # Private.

from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.moe import Experts
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.model import EncoderDecoder
from switch_tf.model_config import ModelConfig
from switch_tf.partitioning.layout import Layout
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from tests.conftest import random_features
from tpu.compiling import compile_options
from tpu.lowering import PartitionedModule
from tpu.program import Program, training_program

KINDS = ("sublayers", "blocks")
VARIANTS = {
    "top 2": {"router": "top_n"},
    "einsum": {"dispatcher": "einsum"},
    "balance bias": {"balance_bias_rate": 1e-2},
    "attention experts": {"switch_attention": "feed_forward"},
    "bfloat16": {"activation_dtype": "bfloat16"},
    "dense": {"num_experts": 0},
}


def loss_and_gradients(config: ModelConfig) -> dict[str, np.ndarray]:
    """Of one seed, with all noise on: the loss, what layers report, and the gradient of every weight."""
    model = EncoderDecoder(dataclasses.replace(config, dropout_rate=0.1, expert_dropout_rate=0.2))
    model.build()
    features = {name: tf.constant(value) for name, value in random_features().items()}

    @tf.function(autograph=False)
    def compute(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            output, _ = model.stateless_call(weights, [], features, training=True, seed=5, return_routing=True)
            auxiliary = [routing.balance_loss + routing.z_loss for routing in output.routings.values()]
            loss = tf.reduce_mean(tf.nn.log_softmax(output.logits)[..., 7]) + sum(auxiliary)
        return loss, tape.gradient(loss, weights, unconnected_gradients="zero"), output.routings

    loss, gradients, routings = compute([tf.identity(weight.value) for weight in model.trainable_variables])
    reported = {f"{name}/{field}": value for name, r in routings.items() for field, value in r._asdict().items()}
    reported |= {f"{name}/metrics": np.hstack([*r.metrics]) for name, r in routings.items()}
    named = {w.path: tf.convert_to_tensor(gradient) for w, gradient in zip(model.trainable_variables, gradients)}
    return {
        name: np.asarray(value)
        for name, value in {"loss": loss, **named, **reported}.items()
        if not isinstance(value, tuple)
    }


def assert_the_same_numbers(config: ModelConfig) -> None:
    # What adds up in another order differs by a rounding of its dtype.
    rounding = 2.0**-7 if config.activation_dtype == "bfloat16" else 1e-6
    expected = loss_and_gradients(config)
    assert len(expected) > 30
    for kind in KINDS:
        found = loss_and_gradients(dataclasses.replace(config, rematerialization=kind))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = max(np.abs(value).max(), 1e-6)
            np.testing.assert_allclose(found[name] / scale, value / scale, atol=rounding, err_msg=f"{kind}: {name}")


def test_the_numbers_are_those_of_a_model_that_keeps_everything(tiny_config):
    assert_the_same_numbers(dataclasses.replace(tiny_config, activation="gated_gelu", tied_logits=False))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_its_numbers(tiny_config, variant):
    assert_the_same_numbers(dataclasses.replace(tiny_config, **VARIANTS[variant]))


@pytest.mark.parametrize(("make", "shape"), [(Experts, (3, 2, 5, 8)), (FeedForward, (3, 5, 8))])
def test_a_layer_by_itself_outside_of_a_graph(make, shape):
    """As Keras users call it, with variables."""
    x, found = tf.random.stateless_normal(shape, [1, 2]), []
    for rematerialize in (False, True):
        settings = {"num_experts": 3} if make is Experts else {}
        made = make(d_model=8, d_ff=16, dropout_rate=0.3, rematerialize=rematerialize, name="made", **settings)
        made.build()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nest.flatten(made(x, training=True, seed=3))[0]
            loss = tf.reduce_sum(tf.square(y))
        found.append([y, *tape.gradient(loss, [x, *(weight.value for weight in made.trainable_variables)])])
    for kept, again in zip(*found):
        assert np.abs(kept).max() > 0
        np.testing.assert_allclose(again, kept, rtol=1e-6)


def test_outside_of_training_nothing_is_made_again(tiny_config):
    """No gradient is asked for: the graph is that of a model that keeps everything."""

    def operations(kind: str) -> list[str]:
        model = EncoderDecoder(dataclasses.replace(tiny_config, rematerialization=kind))
        model.build()
        features = {name: tf.constant(value) for name, value in random_features().items()}
        graph = tf.function(lambda: model(features), autograph=False).get_concrete_function().graph
        return [operation.type for operation in graph.get_operations()]

    assert operations("none") == operations("sublayers") == operations("blocks")


def test_what_is_not_a_tensor_passes():
    x = tf.constant([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        squared, name, number = rematerialized(lambda x: (tf.square(x), "name", 3), [], [x])
    assert (name, number) == ("name", 3)
    np.testing.assert_array_equal(tape.gradient(squared, x), [[2.0, 4.0]])


def temporary_bytes(program: Program) -> int:
    """What XLA, compiling for a CPU, needs beside the arguments."""
    module = PartitionedModule(program, Layout.parse("data:1", "batch:data,experts:data")).module
    devices = jax.devices("cpu")[:1]
    executable = devices[0].client.compile_and_load(
        module, xla_client.DeviceList(tuple(devices)), compile_options(devices)
    )
    return executable.get_compiled_memory_stats().temp_size_in_bytes


def bytes_of_layers(make, shape: tuple[int, ...], rematerialize: bool) -> int:
    """Of the gradient of eight layers one after the other."""
    settings = {"num_experts": shape[0]} if make is Experts else {}
    layers = [make(d_model=16, d_ff=512, rematerialize=rematerialize, name=f"n{i}", **settings) for i in range(8)]
    for made in layers:
        made.build()
    weights = [weight for made in layers for weight in made.trainable_variables]

    def gradients(x: tf.Tensor, *values: tf.Tensor) -> list[tf.Tensor]:
        with keras.StatelessScope(list(zip(weights, values))), tf.GradientTape() as tape:
            tape.watch([x, *values])
            y = x
            for made in layers:
                y += tf.nest.flatten(made(y, training=True))[0]
            loss = tf.reduce_sum(tf.square(y))
        return tape.gradient(loss, [x, *values])

    specs = [tf.TensorSpec(shape), *(tf.TensorSpec(weight.shape) for weight in weights)]
    axes = [(None,) * len(shape), *(weight.axes for weight in weights)]
    return temporary_bytes(Program(gradients, specs, axes, 0))


@pytest.mark.parametrize(("make", "shape"), [(Experts, (2, 4, 32, 16)), (FeedForward, (4, 64, 16))])
def test_hidden_activations_are_there_one_layer_at_a_time(make, shape):
    hidden = 4 * math.prod(shape[:-1]) * 512
    assert bytes_of_layers(make, shape, rematerialize=False) > 8 * hidden
    assert bytes_of_layers(make, shape, rematerialize=True) < 4 * hidden


@pytest.mark.slow
def test_a_training_step_needs_less_memory(tiny_config):
    """Of eight blocks whose hidden activations are sixteen times as wide as what goes from block to block."""
    config = dataclasses.replace(
        tiny_config, d_model=32, d_ff=512, num_encoder_layers=4, num_decoder_layers=4, sparse_every=1, group_size=256
    )
    shapes = {name: feature.shape for name, feature in random_features(batch=16, inputs=64, targets=64).items()}
    needed = {}
    for kind in ("none", *KINDS):
        model = EncoderDecoder(dataclasses.replace(config, rematerialization=kind))
        model.build()
        needed[kind] = temporary_bytes(training_program(model, Adafactor(), Objective(), shapes))
    assert needed["blocks"] < needed["sublayers"] < 0.5 * needed["none"]
