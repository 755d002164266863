"""Findings of routers are triggered by runs that have the fault, and none by a healthy one."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.health.rules import RULES, Thresholds
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.runs.router_watch import layer_row, layer_window
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from switch_tf.training.step import make_train_step

pytestmark = pytest.mark.slow

CONFIG = ModelConfig(
    vocab_size=96,
    d_model=16,
    d_ff=32,
    d_kv=8,
    num_heads=2,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=8,
    group_size=512,
    capacity_factor=2.0,
    initializer_scale=1.0,
)
WINDOW = 20


def found_in(config: ModelConfig, steps: int, rate: float = 0.02, balance_loss: float = 1e-2) -> dict[str, set[str]]:
    """Trains to copy random tokens; returns the rules that hold in the last steps of each sparse layer."""
    model = EncoderDecoder(config)
    model.build()
    optimizer = Adafactor(learning_rate=Constant(rate))
    step = tf.function(make_train_step(model, optimizer, Objective(balance_loss=balance_loss)), autograph=False)
    weights = [tf.identity(weight.value) for weight in model.trainable_variables]
    slots = [
        {name: tf.zeros(slot.shape) for name, slot in optimizer.slot_shapes(tuple(w.shape), w.axes).items()}
        for w in model.trainable_variables
    ]
    last = []
    for index in range(steps):
        tokens = np.random.default_rng(index).integers(2, config.vocab_size, size=(32, 16)).astype(np.int32)
        features = {
            "encoder_input_tokens": tf.constant(tokens),
            "decoder_input_tokens": tf.constant(np.pad(tokens, ((0, 0), (1, 0)))[:, :-1]),
            "decoder_target_tokens": tf.constant(tokens),
        }
        weights, slots, metrics = step(weights, slots, tf.constant(index, tf.int64), features, tf.constant(0))
        last = [*last[1 - WINDOW :], tf.nest.map_structure(lambda tensor: tensor.numpy(), metrics)]
    found = {}
    for layer in config.sparse_layer_names:
        window = layer_window([layer_row(metrics.routing[layer], metrics.updates[layer]) for metrics in last])
        found[layer] = {rule.name for rule in RULES if rule.holds(window, Thresholds())}
    return found


def test_a_healthy_run_has_no_finding():
    assert set.union(*found_in(CONFIG, 150).values()) == set()


def test_a_balance_loss_far_too_high_leaves_routers_undecided_and_shrinks_norms():
    """The language model's gradient is nothing beside it, and it makes the router's logits, and its inputs, small."""
    for found in found_in(CONFIG, 300, rate=0.4, balance_loss=100.0).values():
        assert {"undecided", "norm_shrunk", "negligible"} <= found


def test_a_small_capacity_factor_drops_tokens():
    for found in found_in(dataclasses.replace(CONFIG, capacity_factor=0.5), 40).values():
        assert "dropped" in found


def test_without_balance_loss_a_high_rate_starves_experts():
    assert "starved" in found_in(CONFIG, 100, rate=0.3, balance_loss=0.0)["encoder/layer_1"]


def test_without_balance_loss_a_rate_far_too_high_collapses_onto_one_expert():
    for found in found_in(CONFIG, 100, rate=0.5, balance_loss=0.0).values():
        assert "collapsed" in found
