"""How much memory XLA needs for activations that are recomputed in the backward pass, and for stored ones."""

import dataclasses
import math

import keras
import pytest
import tensorflow as tf

from switch_tf import compat
from switch_tf.layers.context import ForwardContext
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.initializers import weights_from_seed
from switch_tf.layers.moe import Experts
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.layout import Layout
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from tests.support.compilers import needs_pinned_jax
from tests.support.features import random_features
from tpu.precompile.program import Program, training_program

pytestmark = needs_pinned_jax


def temporary_bytes(program: Program) -> int:
    """Temporary memory of a program that XLA compiles for a CPU: what it needs in addition to its arguments."""
    import jax

    from tpu.precompile.lowering import LoweredModule

    module = LoweredModule(program, Layout.parse("data:1", "batch:data,experts:data")).module
    executable = compat.compile_and_load(module, jax.devices("cpu")[:1])
    return compat.memory_stats(executable).temp_size_in_bytes


def bytes_of_layers(make, shape: tuple[int, ...], rematerialize: bool) -> int:
    """Temporary memory of the gradient of a chain of sixteen layers."""
    settings = {"d_model": 16, "d_ff": 512, "dropout_rate": 0.4, "rematerialize": rematerialize}
    settings |= {"num_experts": shape[0]} if make is Experts else {}
    layers = [make(**settings, name=f"layer_{index}") for index in range(16)]
    with weights_from_seed(0):
        for each in layers:
            each.build()
    weights = [weight for each in layers for weight in each.trainable_variables]

    def gradients(x: tf.Tensor, *values: tf.Tensor) -> list[tf.Tensor]:
        with keras.StatelessScope(list(zip(weights, values))), tf.GradientTape() as tape:
            tape.watch([x, *values])
            y = x
            for each in layers:
                y += tf.nest.flatten(each(y, context=ForwardContext(training=True)))[0]
            loss = tf.reduce_sum(tf.square(y))
        return tape.gradient(loss, [x, *values])

    specs = [tf.TensorSpec(shape), *(tf.TensorSpec(weight.shape) for weight in weights)]
    axes = [(None,) * len(shape), *(weight.axes for weight in weights)]
    return temporary_bytes(Program(gradients, specs, axes, 0))


@pytest.mark.parametrize(
    ("make", "shape"),
    [(Experts, (2, 4, 32, 16)), pytest.param(FeedForward, (4, 64, 16), marks=pytest.mark.slow)],
)
def test_recomputed_hidden_activations_exist_for_one_layer_at_a_time(make, shape):
    hidden = 4 * math.prod(shape[:-1]) * 512
    assert bytes_of_layers(make, shape, rematerialize=False) > 16 * hidden
    assert bytes_of_layers(make, shape, rematerialize=True) < 6 * hidden


@pytest.mark.slow
@pytest.mark.parametrize(
    ("d_ff", "batch", "sublayers", "blocks"),
    # Hidden activations sixteen times as wide as the inputs of their layer, which both recompute; and many tokens of
    # narrow layers, of which blocks keep one tensor and sublayers each one's inputs and outputs.
    [(512, 16, 0.5, 0.5), (64, 64, 0.6, 0.45)],
)
def test_a_training_step_needs_less_memory(tiny_config, d_ff, batch, sublayers, blocks):
    """A step of eight blocks; the bounds are shares of what it needs without recomputation."""
    config = dataclasses.replace(
        tiny_config, d_model=32, d_ff=d_ff, num_encoder_layers=4, num_decoder_layers=4, sparse_every=1, group_size=256
    )
    shapes = {name: feature.shape for name, feature in random_features(batch=batch, inputs=64, targets=64).items()}
    needed = {}
    for kind in ("none", "sublayers", "blocks"):
        model = EncoderDecoder(dataclasses.replace(config, rematerialization=kind))
        model.build()
        needed[kind] = temporary_bytes(training_program(model, Adafactor(), Objective(), shapes))
    assert needed["sublayers"] < sublayers * needed["none"]
    assert needed["blocks"] < blocks * needed["none"]
