"""Both dispatchers give equal outputs and equal gradients for every routing."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.routing import Routing
from switch_tf.layers.token_choice import SwitchRouter
from tests.support.routed import assign, random_probabilities


def routing_of(experts: int, capacity: int, padded: bool) -> tuple[tf.Tensor, Routing]:
    probabilities = tf.constant(random_probabilities(experts=experts, seed=experts + capacity))
    mask = np.ones([3, 24], np.float32)
    if padded:
        mask[0, 20:] = mask[1, :5] = mask[2] = 0
    router = SwitchRouter(d_model=8, num_experts=experts)
    return probabilities, assign(router, probabilities, mask, capacity)


def apply_experts(name: str, tokens, routing: Routing, gate, weights):
    """A layer with one linear expert each; the gate is an argument, so that its gradient can be taken."""
    dispatcher = DISPATCHERS[name](routing._replace(gate=gate))
    return dispatcher.combine(tf.einsum("egcm,emn->egcn", dispatcher.dispatch(tokens), weights))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("experts", "capacity"), [(1, 24), (1, 5), (4, 1), (4, 6), (4, 24), (64, 4), (128, 2)])
def test_gather_equals_einsum_and_a_loop(experts, capacity, padded):
    random = np.random.default_rng(0)
    tokens = tf.constant(random.normal(size=[3, 24, 8]), tf.float32)
    weights = tf.constant(random.normal(size=[experts, 8, 8]), tf.float32)
    cotangent = tf.constant(random.normal(size=[3, 24, 8]), tf.float32)
    _, routing = routing_of(experts, capacity, padded)

    outputs, gradients = {}, {}
    for name in DISPATCHERS:
        with tf.GradientTape() as tape:
            tape.watch([tokens, routing.gate, weights])
            outputs[name] = apply_experts(name, tokens, routing, routing.gate, weights)
            loss = tf.reduce_sum(outputs[name] * cotangent)
        gradients[name] = tape.gradient(loss, [tokens, routing.gate, weights])

    by_hand = np.zeros([3, 24, 8])
    for group, token in np.ndindex(3, 24):
        if routing.slot[group, token, 0] < experts * capacity:
            expert = routing.expert[group, token, 0]
            by_hand[group, token] = routing.gate[group, token, 0] * (
                tokens.numpy()[group, token] @ weights.numpy()[expert]
            )
    np.testing.assert_allclose(outputs["einsum"], by_hand, atol=1e-5)
    np.testing.assert_allclose(outputs["gather"], outputs["einsum"], atol=1e-6)
    has_slot = np.asarray(routing.slot < experts * capacity, np.float32)
    for ours, reference, is_gate in zip(gradients["gather"], gradients["einsum"], (False, True, False)):
        # The gradient of the gate of a token without a slot is undefined.
        factor = has_slot if is_gate else 1.0
        np.testing.assert_allclose(ours * factor, reference * factor, atol=1e-5)


def test_several_experts_for_each_token():
    """Slots assigned by hand with two choices per token: dispatchers do not assume one."""
    slot = np.array([[[0, 4], [1, 6], [4 + 1, 3 * 3], [2, 3 * 3]]], np.int32)  # 3 experts of 3 slots; 9: none
    slot[0, 0, 1], slot[0, 1, 1], slot[0, 2, 0] = 3, 6, 4
    gate = np.array([[[0.6, 0.4], [0.5, 0.5], [0.9, 0.0], [0.7, 0.0]]], np.float32)
    routing = Routing(
        expert=tf.constant(slot // 3),
        slot=tf.constant(slot),
        gate=tf.constant(gate),
        filled=tf.constant([[3, 2, 1]]),
        capacity=3,
        logits=None,
        balance_loss=tf.constant(1.0),
        z_loss=tf.constant(0.0),
        metrics=None,
    )
    random = np.random.default_rng(1)
    tokens = tf.constant(random.normal(size=[1, 4, 5]), tf.float32)
    weights = tf.constant(random.normal(size=[3, 5, 5]), tf.float32)
    expected = np.zeros([4, 5])
    for token, choice in np.ndindex(4, 2):
        if slot[0, token, choice] < 9:
            expected[token] += gate[0, token, choice] * (
                tokens.numpy()[0, token] @ weights.numpy()[slot[0, token, choice] // 3]
            )
    results = {}
    for name in DISPATCHERS:
        with tf.GradientTape() as tape:
            tape.watch([tokens, weights])
            output = apply_experts(name, tokens, routing, routing.gate, weights)
            loss = tf.reduce_sum(tf.sin(output))
        results[name] = (output, *tape.gradient(loss, [tokens, weights]))
    np.testing.assert_allclose(results["gather"][0][0], expected, atol=1e-5)
    for ours, reference in zip(results["gather"], results["einsum"]):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


@pytest.mark.parametrize("name", sorted(DISPATCHERS))
def test_dispatch_keeps_bfloat16(name):
    _, routing = routing_of(4, 6, False)
    tokens = tf.cast(tf.random.stateless_normal([3, 24, 8], (0, 1)), tf.bfloat16)
    dispatcher = DISPATCHERS[name](routing)
    slots = dispatcher.dispatch(tokens)
    assert slots.dtype == tf.bfloat16 and slots.shape == [4, 3, 6, 8]
    assert dispatcher.combine(slots).dtype == tf.bfloat16


def test_gather_makes_no_scatter_in_either_direction():
    _, routing = routing_of(4, 6, False)
    weights = tf.random.stateless_normal([4, 8, 8], (0, 1))

    @tf.function
    def step(tokens, gate):
        with tf.GradientTape() as tape:
            tape.watch([tokens, gate])
            loss = tf.reduce_sum(apply_experts("gather", tokens, routing, gate, weights))
        return tape.gradient(loss, [tokens, gate])

    graph = step.get_concrete_function(tf.zeros([3, 24, 8]), routing.gate).graph
    operations = {operation.type for operation in graph.get_operations()}
    assert "GatherV2" in operations
    assert not {name for name in operations if "Scatter" in name or "Segment" in name}
