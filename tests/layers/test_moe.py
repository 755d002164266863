"""The Switch feed-forward layer, end to end."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers.context import ForwardContext
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.moe import Experts, SwitchFeedForward, tokens_per_group
from switch_tf.layers.token_choice import SwitchRouter
from switch_tf.partitioning import axes

DROPLESS = ForwardContext(dropless=True)


def switch_layer(experts=4, activation="relu", expert_dropout=0.0, dtype=None, **settings) -> SwitchFeedForward:
    shape = {"d_model": 8, "num_experts": experts}
    layer = SwitchFeedForward(
        router=SwitchRouter(**shape, jitter=0.0, name="router"),
        experts=Experts(
            **shape, d_ff=16, activation=activation, dropout_rate=expert_dropout, dtype=dtype, name="experts"
        ),
        dtype=dtype,
        name="feed_forward",
        **settings,
    )
    layer.build()
    return layer


def tokens(batch=4, length=16, seed=0) -> tf.Tensor:
    return tf.random.stateless_normal([batch, length, 8], (seed, 1))


@pytest.mark.parametrize("activation", ["relu", "gated_gelu"])
def test_one_expert_is_a_dense_layer_times_its_gate_of_one(activation):
    sparse = switch_layer(experts=1, activation=activation)
    dense = FeedForward(d_model=8, d_ff=16, activation=activation, name="feed_forward")
    dense.build()
    for ours, theirs in zip([*dense.wi, dense.wo], [*sparse.experts.wi, sparse.experts.wo]):
        ours.assign(theirs[0])
    np.testing.assert_allclose(sparse(tokens())[0], dense(tokens())[0], atol=1e-6)


def test_output_is_the_probability_times_the_chosen_expert():
    layer = switch_layer(eval_capacity_factor=4.0)
    x = tokens()
    y, _ = layer(x)
    probabilities = layer.router.scores(x).probabilities.numpy()
    for b, i in np.ndindex(4, 16):
        expert = probabilities[b, i].argmax()
        hidden = np.maximum(x.numpy()[b, i] @ layer.experts.wi[0].numpy()[expert], 0)
        expected = probabilities[b, i, expert] * (hidden @ layer.experts.wo.numpy()[expert])
        np.testing.assert_allclose(y[b, i], expected, atol=1e-5)


def test_tokens_beyond_capacity_come_out_as_zero():
    layer = switch_layer(experts=4, group_size=64, eval_capacity_factor=0.25, min_expert_capacity=1)
    x = tf.broadcast_to(tokens(1, 1), [4, 16, 8])  # All equal: all to one expert, which has 4 slots.
    y, routing = layer(x)
    flat = tf.reshape(y, [64, 8])
    assert np.all(np.abs(flat[:4]).max(-1) > 0)
    np.testing.assert_array_equal(flat[4:], 0)
    assert float(routing.metrics.fraction_dropped) == pytest.approx(60 / 64)


def test_training_and_evaluation_have_separate_capacities():
    layer = switch_layer(group_size=64, capacity_factor=1.0, eval_capacity_factor=2.0)
    assert layer(tokens(), context=ForwardContext(training=True))[1].capacity == 16
    assert layer(tokens())[1].capacity == 32
    dropless = layer(tokens(), context=DROPLESS)[1]  # Each sequence is a group, all of which may go to one expert.
    assert (dropless.slot.shape, dropless.capacity) == ([4, 16, 1], 16)


def test_language_model_gradient_reaches_the_router():
    layer = switch_layer()
    with tf.GradientTape() as tape:
        y, _ = layer(tokens())  # The balance loss is left out.
        loss = tf.reduce_sum(tf.sin(y))
    gradient = tape.gradient(loss, layer.router.kernel.value)
    assert np.abs(gradient).max() > 1e-3


def test_dropless_result_does_not_depend_on_the_rest_of_the_batch():
    layer = switch_layer(group_size=64, eval_capacity_factor=0.5, min_expert_capacity=1)
    x = tokens()
    together = layer(x, context=DROPLESS)[0]
    alone = tf.concat([layer(x[i : i + 1], context=DROPLESS)[0] for i in range(4)], axis=0)
    np.testing.assert_allclose(together, alone, atol=1e-6)
    assert not np.allclose(together, layer(x)[0], atol=1e-6)


def test_padding_changes_no_real_token():
    layer = switch_layer(group_size=64, eval_capacity_factor=1.0, min_expert_capacity=1)
    x, mask = tokens(), np.ones([4, 16], bool)
    mask[:, 10:] = False
    context = ForwardContext(token_mask=tf.constant(mask))
    y, _ = layer(x, context=context)
    noisy = tf.where(mask[..., np.newaxis], x, 100.0)
    np.testing.assert_allclose(y[:, :10], layer(noisy, context=context)[0][:, :10], atol=1e-6)
    np.testing.assert_array_equal(y[:, 10:], 0)


def test_selective_precision_routes_in_float32_and_computes_in_bfloat16():
    layer = switch_layer(dtype="mixed_bfloat16")
    y, routing = layer(tokens())
    assert y.dtype == tf.bfloat16
    assert routing.gate.dtype == routing.balance_loss.dtype == tf.float32
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    # Indices follow the float32 router on the rounded tokens.
    rounded = tf.cast(tf.cast(tokens(), tf.bfloat16), tf.float32)
    chosen = tf.argmax(layer.router.scores(rounded).probabilities, -1, output_type=tf.int32)
    np.testing.assert_array_equal(tf.reshape(routing.expert, [4, 16]), chosen)


def test_expert_dropout_hits_the_hidden_activation_in_training_alone():
    layer = switch_layer(expert_dropout=0.5)
    slots = tf.random.stateless_normal([4, 2, 8, 8], (0, 1))
    calm = layer.experts(slots)
    np.testing.assert_array_equal(calm, layer.experts(slots, context=ForwardContext(seed=1)))
    first, second, again = (
        layer.experts(slots, context=ForwardContext(training=True, seed=seed)) for seed in (1, 2, 1)
    )
    assert not np.allclose(first, calm) and not np.allclose(first, second)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("experts", [2, 64])
def test_initial_spread_of_an_expert_does_not_depend_on_how_many_there_are(experts):
    """Keras's VarianceScaling counts the experts as fan-in and comes out sqrt(E) too small."""
    layer = Experts(num_experts=experts, d_model=64, d_ff=256, initializer_scale=0.1)
    layer.build()
    cut = 0.87962566  # The standard deviation of N(0, 1) truncated at two sigma.
    assert np.std(layer.wi[0]) == pytest.approx(cut * (0.1 / 64) ** 0.5, rel=0.02)
    assert np.std(layer.wo) == pytest.approx(cut * (0.1 / 256) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("tokens", "group_size", "shards", "size"),
    [
        (1024, 4096, 1, 1024),
        (4096, 1024, 1, 1024),
        (2048 * 114, 8192, 1, 7296),
        (1000, 1024, 1, 1000),
        (3000, 1024, 1, 1000),
        # Mesh TensorFlow's examples for a mesh of 8 devices: 8 groups, one for each.
        (4096, 1024, 8, 512),
        (1000, 1024, 8, 125),
        # Groups no larger than a device's tokens do not depend on the mesh.
        (4096, 256, 8, 256),
        (4096, 256, 1, 256),
    ],
)
def test_groups_divide_the_batch_evenly_and_follow_the_mesh(tokens, group_size, shards, size):
    assert tokens_per_group(tokens, group_size, shards) == size


def test_the_layer_asks_the_engine_how_many_devices_groups_are_sharded_over():
    layer = switch_layer(group_size=64)

    class Two(axes.Placement):
        def num_shards(self, axis):
            return 2 if axis == axes.GROUPS else 1

    with axes.placed_by(Two()):
        assert layer(tokens())[1].slot.shape == [2, 32, 1]
    assert layer(tokens())[1].slot.shape == [1, 64, 1]


def test_a_batch_that_does_not_divide_among_devices_is_refused():
    with pytest.raises(SettingError, match=r"60 tokens cannot be sharded over 8 devices.*multiple of 8"):
        tokens_per_group(60, 1024, 8)


def test_dropless_calls_take_any_number_of_tokens():
    """Without competition for slots, groups need not divide the batch: 7 sequences of 11 tokens."""
    layer = switch_layer(group_size=4)
    x = tf.random.stateless_normal([7, 11, 8], (0, 1))
    alone = tf.concat([layer(x[row : row + 1], context=DROPLESS)[0] for row in range(7)], axis=0)
    np.testing.assert_allclose(layer(x, context=DROPLESS)[0], alone, atol=1e-6)


def test_a_setting_error_inside_a_call_keeps_its_sentence():
    with pytest.raises(SettingError, match=r"^GROUP_SIZE = 30 cannot hold a batch of 310 tokens in equal groups"):
        switch_layer(group_size=30)(tf.zeros([31, 10, 8]))


def test_a_group_size_that_cannot_hold_the_batch_is_refused():
    with pytest.raises(SettingError, match=r"GROUP_SIZE = 1000 .* 2062 tokens.*set it to 1031 or 2"):
        tokens_per_group(2 * 1031, 1000)


def test_groups_of_any_size_are_found_at_once():
    """Numbers of tokens that no loop over sizes comes to the end of."""
    assert tokens_per_group(2**40, 10**9) == 2**29
    with pytest.raises(SettingError, match=r"set it to 1048573 or 2, or choose"):
        tokens_per_group(2 * 1048573, 1000)  # A prime number times 2.
