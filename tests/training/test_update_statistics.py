"""Statistics of the sparse layers in a training step, against numpy."""

import dataclasses
import functools

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.training.adafactor import Adafactor, Change
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from switch_tf.training.step import make_train_step
from switch_tf.training.step_metrics import scalars_of
from switch_tf.training.update_statistics import make_update_statistics
from tests.support.features import random_features


@pytest.fixture
def config(tiny_config):
    """Groups of one example and no noise, with which microbatches change nothing but rounding."""
    return dataclasses.replace(tiny_config, group_size=8, router_jitter=0.0)


@functools.cache
def step_of(config, num_microbatches=1):
    """Makes one step; returns (weights by name before it, after it, its metrics)."""
    model = EncoderDecoder(config)
    model.build()
    optimizer = Adafactor(learning_rate=Constant(0.1))
    step = tf.function(make_train_step(model, optimizer, Objective(), num_microbatches), autograph=False)
    weights = [tf.identity(weight.value) for weight in model.trainable_variables]
    slots = [
        {name: tf.zeros(slot.shape) for name, slot in optimizer.slot_shapes(tuple(w.shape), w.axes).items()}
        for w in model.trainable_variables
    ]
    features = {name: tf.constant(value) for name, value in random_features(batch=8).items()}
    after, _, metrics = step(weights, slots, tf.constant(0, tf.int64), features, tf.constant(0))
    names = [weight_name(weight) for weight in model.trainable_variables]
    return dict(zip(names, weights)), dict(zip(names, after)), metrics


def rms(tensors) -> float:
    return float(np.sqrt(np.mean(np.concatenate([np.ravel(tensor) for tensor in tensors]) ** 2)))


def test_updates_are_those_of_the_weights(config):
    before, after, metrics = step_of(config)
    assert list(metrics.updates) == ["encoder/layer_1", "decoder/layer_1"]
    for layer, statistics in metrics.updates.items():
        router = f"{layer}/feed_forward/router/kernel"
        experts = [name for name in before if name.startswith(f"{layer}/feed_forward/experts/")]
        assert len(experts) == 2
        assert float(statistics.norm_scale) == pytest.approx(rms([before[f"{layer}/feed_forward_norm/scale"]]))
        expected = rms([after[router] - before[router]]) / rms([before[router]])
        assert float(statistics.router_update) == pytest.approx(expected, rel=1e-4)
        steps = [after[name] - before[name] for name in experts]
        expected = rms(steps) / rms([before[name] for name in experts])
        assert float(statistics.expert_update) == pytest.approx(expected, rel=1e-4)
        both = np.hypot(statistics.router_gradient, statistics.expert_gradient)
        assert 0 < both < float(metrics.gradient_norm)


def test_recomputation_changes_no_statistic(config):
    stored = scalars_of(step_of(config)[2])
    recomputed = scalars_of(step_of(dataclasses.replace(config, rematerialization="blocks"))[2])
    for name, value in stored.items():
        assert recomputed[name] == pytest.approx(value, rel=1e-3, abs=1e-6), name


def test_microbatches_have_the_sizes_of_the_batch(config):
    of_batch, of_parts = step_of(config)[2], step_of(config, 4)[2]
    for layer, routing in of_batch.routing.items():
        assert float(of_parts.routing[layer].tokens) == float(routing.tokens) > 0
    whole, parts = scalars_of(of_batch), scalars_of(of_parts)
    sizes = [name for name in whole if name.endswith("_size")]
    assert len(sizes) == 4
    for name in sizes:
        assert parts[name] == pytest.approx(whole[name], rel=1e-4), name


def test_switch_attention_has_statistics_of_its_own(config):
    config = dataclasses.replace(config, switch_attention="linear")
    before, _, metrics = step_of(config)
    assert list(metrics.updates) == config.sparse_layer_names
    statistics = metrics.updates["encoder/layer_1/self_attention"]
    assert float(statistics.norm_scale) == pytest.approx(rms([before["encoder/layer_1/self_attention_norm/scale"]]))
    assert float(statistics.expert_update) > 0
    assert scalars_of(metrics)["encoder/layer_1/self_attention/output_size"] > 0


def test_a_gradient_that_is_not_finite_shows_in_its_own_layer_alone(config):
    model = EncoderDecoder(config)
    model.build()
    weights = [weight.value for weight in model.trainable_variables]
    names = [weight_name(weight) for weight in model.trainable_variables]
    squares = [tf.constant(np.inf if name.startswith("decoder/") else 2.0) for name in names]
    changes = [
        Change(weight, {}, square, weight_mean_square=tf.constant(8.0)) for weight, square in zip(weights, squares)
    ]
    found = make_update_statistics(model)(squares, weights, changes)
    assert float(found["encoder/layer_1"].router_gradient) == 2.0
    assert float(found["encoder/layer_1"].expert_gradient) == pytest.approx(8.0**0.5)  # Of two weights.
    assert float(found["encoder/layer_1"].expert_update) == 0.5
    assert not np.isfinite(found["decoder/layer_1"].router_gradient)
