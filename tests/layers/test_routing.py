"""The router against the paper's formulas in numpy."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.layers.routing import expert_capacity, load_balance_loss, with_sizes
from switch_tf.layers.token_choice import SwitchRouter
from tests.support.gates import softmax
from tests.support.routed import assign, random_probabilities


def route_by_hand(probabilities: np.ndarray, mask: np.ndarray, capacity: int):
    """Token by token, as in Sec. 2.2: (slot or -1, gate) of every token."""
    groups, size, experts = probabilities.shape
    slot, gate = np.full([groups, size], -1), np.zeros([groups, size])
    for group in range(groups):
        used = [0] * experts
        for token in range(size):
            expert = int(np.argmax(probabilities[group, token]))
            if mask[group, token] and used[expert] < capacity:
                slot[group, token] = expert * capacity + used[expert]
                gate[group, token] = probabilities[group, token, expert]
                used[expert] += 1
    return slot, gate


def switch_router(experts: int, d_model: int = 8, **settings) -> SwitchRouter:
    router = SwitchRouter(d_model=d_model, num_experts=experts, name="router", **settings)
    router.build()
    return router


@pytest.mark.parametrize("experts", [1, 2, 4, 64, 128])
@pytest.mark.parametrize("capacity", [1, 3, 24])
def test_slots_and_gates_equal_those_assigned_by_hand(experts, capacity):
    probabilities = random_probabilities(experts=experts)
    mask = (np.random.default_rng(1).random([3, 24]) > 0.2).astype(np.float32)
    routing = assign(switch_router(experts), probabilities, mask, capacity)
    slot, gate = route_by_hand(probabilities, mask, capacity)
    none = experts * capacity
    np.testing.assert_array_equal(routing.slot[..., 0], np.where(slot < 0, none, slot))
    np.testing.assert_allclose(routing.gate[..., 0], gate, rtol=1e-6)
    filled = [[np.sum(slot[g] // capacity == e) for e in range(experts)] for g in range(3)]
    np.testing.assert_array_equal(routing.filled, np.array(filled))
    assert float(routing.metrics.fraction_dropped) == pytest.approx(1 - np.sum(slot >= 0) / mask.sum(), abs=1e-6)


def test_padding_takes_no_slot_and_counts_in_no_loss():
    probabilities = random_probabilities()
    mask = np.ones([3, 24], np.float32)
    mask[:, 16:] = 0
    router = switch_router(4)
    padded = assign(router, probabilities, mask, 4)
    short = assign(router, probabilities[:, :16], mask[:, :16], 4)
    np.testing.assert_array_equal(padded.slot[:, :16], short.slot)
    np.testing.assert_array_equal(padded.slot[:, 16:], 16)
    assert float(padded.balance_loss) == pytest.approx(float(short.balance_loss), rel=1e-6)
    for ours, theirs in zip(padded.metrics, short.metrics):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def test_a_group_of_padding_alone_changes_nothing():
    probabilities = random_probabilities()
    mask = np.ones([3, 24], np.float32)
    mask[2] = 0
    router = switch_router(4)
    loss = assign(router, probabilities, mask, 4).balance_loss
    assert float(loss) == pytest.approx(float(assign(router, probabilities[:2], mask[:2], 4).balance_loss), rel=1e-6)


@pytest.mark.parametrize("experts", [1, 2, 8, 128])
def test_balance_loss_is_one_at_balance(experts):
    uniform = np.full([2, 256, experts], 1 / experts, np.float32)
    choice = np.eye(experts, dtype=np.float32)[np.arange(512).reshape(2, 256) % experts]
    loss = load_balance_loss(tf.constant(uniform), tf.constant(choice), tf.ones([2, 256]))
    assert float(loss) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("experts", [2, 8, 128])
def test_balance_loss_is_the_number_of_experts_at_collapse(experts):
    collapsed = np.zeros([2, 64, experts], np.float32)
    collapsed[..., experts // 2] = 1
    loss = load_balance_loss(tf.constant(collapsed), tf.constant(collapsed), tf.ones([2, 64]))
    assert float(loss) == pytest.approx(experts, rel=1e-6)


def test_balance_loss_equals_equations_4_to_6_per_group():
    probabilities = random_probabilities(seed=3)
    choice = np.eye(4, dtype=np.float32)[probabilities.argmax(-1)]
    expected = np.mean([4 * np.sum(choice[g].mean(0) * probabilities[g].mean(0)) for g in range(3)])
    loss = load_balance_loss(tf.constant(probabilities), tf.constant(choice), tf.ones([3, 24]))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_balance_gradient_flows_through_probabilities_alone():
    probabilities = tf.constant(random_probabilities())
    choice = tf.one_hot(tf.argmax(probabilities, -1), 4)
    with tf.GradientTape() as tape:
        tape.watch([probabilities, choice])
        loss = load_balance_loss(probabilities, choice, tf.ones([3, 24]))
    by_probabilities, by_choice = tape.gradient(loss, [probabilities, choice])
    assert by_choice is None
    # d/dp of E / G sum_i f_i mean(p_i) is E f_i / (G S).
    fraction = tf.reduce_mean(choice, axis=1, keepdims=True)
    np.testing.assert_allclose(by_probabilities, tf.broadcast_to(4 * fraction / (3 * 24), [3, 24, 4]), rtol=1e-5)


@pytest.mark.parametrize(
    ("size", "experts", "factor", "floor", "capacity"),
    [
        (8192, 128, 1.25, 4, 80),  # Switch-Base-128, training
        (8192, 128, 2.0, 4, 128),  # and evaluation
        (4096, 128, 1.25, 4, 40),  # Switch-Large
        (2048, 2048, 1.0, 2, 2),  # Switch-C: the floor binds
        (6, 3, 1.0, 0, 2),  # Figure 3
        (6, 3, 1.5, 0, 3),
        (100, 3, 1.0, 4, 33),  # rounded down
        (3, 8, 2.0, 4, 3),  # never more than there are tokens
        (64, 128, 1.0, 0, 1),  # never none
    ],
)
def test_capacity(size, experts, factor, floor, capacity):
    assert expert_capacity(size, experts, factor, floor) == capacity


def test_capacity_factor_must_be_positive():
    with pytest.raises(ValueError, match="capacity factor must be positive"):
        expert_capacity(64, 8, 0.0, 4)


def test_figure_3_drops_one_token_at_factor_one_and_none_at_one_and_a_half():
    chosen = np.array([2, 1, 1, 1, 2, 3]) - 1
    probabilities = tf.constant((0.1 + 0.7 * np.eye(3)[chosen])[None], tf.float32)
    router = switch_router(3)
    dropped = [assign(router, probabilities, tf.ones([1, 6]), c).metrics.fraction_dropped for c in (2, 3)]
    np.testing.assert_allclose(dropped, [1 / 6, 0], atol=1e-6)


def test_metrics_of_loads_entropy_and_confidence():
    probabilities = random_probabilities(groups=1)
    metrics = assign(switch_router(4), probabilities, tf.ones([1, 24]), 2).metrics
    choice = probabilities[0].argmax(-1)
    np.testing.assert_allclose(metrics.expert_load, np.bincount(choice, minlength=4) / 24, rtol=1e-6)
    entropy = -(probabilities * np.log(probabilities)).sum(-1).mean()
    assert float(metrics.router_entropy) == pytest.approx(entropy, rel=1e-5)
    assert float(metrics.router_confidence) == pytest.approx(probabilities.max(-1).mean(), rel=1e-6)


def test_router_works_in_float32_whatever_comes_in():
    tokens = tf.random.stateless_normal([1, 8, 8], (0, 1))
    rounded = tf.cast(tokens, tf.bfloat16)
    router = switch_router(4)
    expected = softmax(np.asarray(tf.cast(rounded, tf.float32)) @ router.kernel.numpy())
    probabilities = router.scores(rounded).probabilities
    assert probabilities.dtype == tf.float32
    np.testing.assert_allclose(probabilities, expected, rtol=1e-5)


def test_sizes_count_real_tokens_alone():
    generator = np.random.default_rng(2)
    residual, output = generator.normal(size=[2, 3, 24, 8]).astype(np.float32)
    mask = generator.random([3, 24]) > 0.3
    routing = assign(switch_router(4), random_probabilities(), mask.astype(np.float32), 24)
    assert float(routing.metrics.output_square) == 0
    metrics = with_sizes(routing, residual, output, tf.constant(mask)).metrics
    assert float(metrics.tokens) == mask.sum()
    assert float(metrics.output_square) == pytest.approx(np.square(output[mask]).mean(axis=-1).sum(), rel=1e-5)
    assert float(metrics.residual_square) == pytest.approx(np.square(residual[mask]).mean(axis=-1).sum(), rel=1e-5)
    assert float(with_sizes(routing, residual, output, None).metrics.output_square) == pytest.approx(
        np.square(output).mean(axis=-1).sum(), rel=1e-5
    )
