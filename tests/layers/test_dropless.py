"""Dropless experts, by blocks of tokens or for single tokens, against a slot for every token in every expert."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.layers import dropless
from switch_tf.layers.context import ForwardContext
from switch_tf.layers.moe import Experts, SwitchFeedForward
from switch_tf.layers.router_base import ROUTERS
from switch_tf.partitioning import axes


@pytest.mark.parametrize("block_size", [1, 4, 8])
@pytest.mark.parametrize("chosen", [[0] * 20, list(range(5)) * 4, [4, 4, 1, 5, 5, 1, 1, 1, 0], [5] * 6])
def test_every_assignment_has_one_place_in_a_block_of_its_expert(chosen, block_size):
    blocks = dropless.blocks_of(tf.constant(chosen), 5, block_size)
    used = int(blocks.num_used)
    counts = np.bincount(chosen, minlength=6)[:5]
    assert used == np.sum(-(-counts // block_size)) <= blocks.expert.shape[0]
    real = [index for index, expert in enumerate(chosen) if expert < 5]
    places = blocks.place.numpy()[real]
    assert len(set(places)) == len(real)
    for index, place in zip(real, places):
        assert place < used * block_size
        assert blocks.assignment.numpy().ravel()[place] == index
        assert blocks.expert[place // block_size] == chosen[index]


def layer(router: str, activation: str = "relu", dtype=None, **settings) -> SwitchFeedForward:
    shape = {"d_model": 8, "num_experts": 4}
    built = SwitchFeedForward(
        router=ROUTERS[router](**shape, name="router", **settings),
        experts=Experts(**shape, d_ff=16, activation=activation, initializer_scale=1.0, dtype=dtype, name="experts"),
        group_size=32,
        eval_capacity_factor=None,
        dtype=dtype,
        name="layer",
    )
    built.build()
    return built


@pytest.mark.parametrize("max_copied_weights", [0, dropless.MAX_COPIED_WEIGHTS])
@pytest.mark.parametrize("activation", ["relu", "gated_gelu"])
@pytest.mark.parametrize("router", ["switch", "top_n", "no_token_left_behind"])
def test_blocks_and_single_tokens_equal_slots_for_every_token(router, activation, max_copied_weights, monkeypatch):
    monkeypatch.setattr(dropless, "MAX_COPIED_WEIGHTS", max_copied_weights)
    settings = {"eval_later_choice_policy": "threshold"} if router == "top_n" else {}
    built = layer(router, activation, **settings)
    x = tf.random.stateless_normal([4, 16, 8], (0, 1))
    mask = np.ones([4, 16], bool)
    mask[1, 5:] = mask[3] = False
    context = ForwardContext(token_mask=tf.constant(mask))
    dropless_output, routing = tf.function(lambda x: built(x, context=context), autograph=False)(x)

    class Partitioned(axes.Placement):
        is_partitioned = True

    # On a mesh every expert has a slot for every token.
    with axes.placed_by(Partitioned()):
        by_slots, _ = built(x, context=context)
    np.testing.assert_allclose(dropless_output, by_slots, atol=1e-6)
    np.testing.assert_array_equal(dropless_output.numpy()[~mask], 0)
    assert float(routing.metrics.fraction_dropped) == pytest.approx(0, abs=1e-6)


def test_one_token_alone_gets_what_it_gets_among_others():
    built = layer("switch")
    x = tf.random.stateless_normal([4, 3, 8], (0, 1))
    together, _ = built(x)
    for row in range(4):
        for position in range(3):
            alone, _ = built(x[row : row + 1, position : position + 1])
            np.testing.assert_allclose(alone[0, 0], together[row, position], atol=1e-6)
    nothing, _ = built(x[:1, :1], context=ForwardContext(token_mask=tf.constant([[False]])))
    assert not np.any(nothing)


def test_bfloat16_stays_bfloat16():
    y, _ = layer("switch", dtype="mixed_bfloat16")(tf.random.stateless_normal([1, 8, 8], (0, 1)))
    assert y.dtype == tf.bfloat16


@pytest.mark.parametrize("expert_size", [1, dropless.MAX_COPIED_WEIGHTS])
def test_experts_that_no_token_chose_are_not_applied(expert_size):
    built = layer("switch")
    built.router.kernel.assign(np.eye(8, 4, dtype=np.float32))
    x = np.zeros([1, 6, 8], np.float32)
    x[0, :, 2] = 1
    applied = []

    def apply(expert, tokens):
        applied.extend(np.ravel(expert))
        return built.experts.apply_chosen(expert, tokens)

    routing = built.router(tf.constant(x), tf.ones([1, 6]), capacity=6)
    dropless.apply_dropless(routing, tf.constant(x), apply, 8, expert_size)
    assert set(applied) == {2}


def test_blocks_are_as_large_as_an_experts_share():
    assert [dropless.block_size_for(n, 8) for n in (1, 8, 9, 64, 10**6)] == [1, 1, 2, 8, 128]
