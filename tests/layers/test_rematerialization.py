"""Rematerialization gives the same numbers. tests/tpu/precompile measures the memory."""

import collections
import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.layers.context import ForwardContext
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.moe import Experts
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from tests.support.features import random_features

KINDS = ("sublayers", "blocks")
VARIANTS = {
    "top 2": {"router": "top_n"},
    "einsum": {"dispatcher": "einsum"},
    "balance bias": {"balance_bias_rate": 1e-2},
    "attention experts": {"switch_attention": "feed_forward"},
    "bfloat16": {"activation_dtype": "bfloat16"},
    "sampled": {"router_policy": "sample"},
    "expert choice": {"router": "expert_choice", "decoder_router": "switch"},
    "dense": {"num_experts": 0},
}


def loss_and_gradients(config: ModelConfig) -> dict[str, np.ndarray]:
    """With all noise on: the loss, the routings, and the gradient of every weight."""
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
    # Sums in another order differ by the rounding of their dtype.
    rounding = 2.0**-7 if config.activation_dtype == "bfloat16" else 1e-6
    expected = loss_and_gradients(config)
    assert len(expected) > 30
    for kind in KINDS:
        found = loss_and_gradients(dataclasses.replace(config, rematerialization=kind))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = max(np.abs(value).max(), 1e-6)
            np.testing.assert_allclose(found[name] / scale, value / scale, atol=rounding, err_msg=f"{kind}: {name}")


def test_numbers_equal_those_of_a_model_that_stores_all_activations(tiny_config):
    assert_the_same_numbers(dataclasses.replace(tiny_config, activation="gated_gelu", tied_logits=False))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_keeps_its_numbers(tiny_config, variant):
    assert_the_same_numbers(dataclasses.replace(tiny_config, **VARIANTS[variant]))


@pytest.mark.parametrize(("make", "shape"), [(Experts, (3, 2, 5, 8)), (FeedForward, (3, 5, 8))])
def test_a_layer_by_itself_outside_of_a_graph(make, shape):
    """Called eagerly with variables, as Keras users do."""
    x, found = tf.random.stateless_normal(shape, [1, 2]), []
    for rematerialize in (False, True):
        settings = {"num_experts": 3} if make is Experts else {}
        made = make(d_model=8, d_ff=16, dropout_rate=0.3, rematerialize=rematerialize, name="made", **settings)
        made.build()
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.nest.flatten(made(x, context=ForwardContext(training=True, seed=3)))[0]
            loss = tf.reduce_sum(tf.square(y))
        found.append([y, *tape.gradient(loss, [x, *(weight.value for weight in made.trainable_variables)])])
    for stored, recomputed in zip(*found):
        assert np.abs(stored).max() > 0
        np.testing.assert_allclose(recomputed, stored, rtol=1e-6)


def operations(config: ModelConfig, kind: str, training: bool) -> collections.Counter:
    """Counts the operations, by type, of the model and, in training, of its gradient."""
    model = EncoderDecoder(dataclasses.replace(config, rematerialization=kind))
    model.build()
    features = {name: tf.constant(value) for name, value in random_features().items()}

    def compute(weights):
        with tf.GradientTape() as tape:
            tape.watch(weights)
            logits, _ = model.stateless_call(weights, [], features, training=training)
            total = tf.reduce_sum(logits)
        return tape.gradient(total, weights) if training else total

    graph = tf.function(compute, autograph=False)
    graph = graph.get_concrete_function([tf.TensorSpec(weight.shape) for weight in model.trainable_variables]).graph
    return collections.Counter(operation.type for operation in graph.get_operations())


def test_outside_of_training_nothing_is_recomputed(tiny_config):
    """The graph has the operations of one without rematerialization."""
    stored, *others = (operations(tiny_config, kind, training=False) for kind in ("none", *KINDS))
    assert others == [stored, stored]


def test_a_setting_recomputes_what_it_says(tiny_config):
    """By the additional operations of a training step."""
    stored, sublayers, blocks = (operations(tiny_config, kind, training=True) for kind in ("none", *KINDS))
    # Two stacks of two layers have six attention layers with four projections each, and two dense feed-forward layers
    # with two matmuls each. "blocks" also recomputes the two routers.
    assert sublayers["Einsum"] - stored["Einsum"] == 6 * 4 + 2 * 2
    assert blocks["Einsum"] - sublayers["Einsum"] == 2
    # The assignment of slots is recomputed with blocks only.
    assert blocks["Cumsum"] > sublayers["Cumsum"] == stored["Cumsum"]


def test_results_that_are_no_tensors_pass():
    x = tf.constant([[1.0, 2.0]])
    with tf.GradientTape() as tape:
        tape.watch(x)
        squared, name, number = rematerialized(lambda x: (tf.square(x), "name", 3), [], [x])
    assert (name, number) == ("name", 3)
    np.testing.assert_array_equal(tape.gradient(squared, x), [[2.0, 4.0]])
