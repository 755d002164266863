"""Advice for a step that does not fit: the smallest change that should help."""

import pytest

from tests.support.step_plans import make_plan
from tpu.precompile.advice import advice
from tpu.precompile.chips import chip_of
from tpu.precompile.plan import read_plan
from tpu.topologies import find_slice

V4 = find_slice("v4:2x2x2")
LIMIT = chip_of(V4.generation).device_bytes


def test_large_activations_need_microbatches():
    assert advice(make_plan("data:4,model:2"), V4, needed=int(1.5 * LIMIT)) == "raise NUM_MICROBATCHES to 2"
    assert advice(make_plan("data:4,model:2"), V4, needed=int(3.5 * LIMIT)) == "raise NUM_MICROBATCHES to 4"


def test_activations_that_microbatches_reduce_too_little_are_recomputed():
    plan = make_plan("data:4,model:2")
    assert advice(plan, V4, needed=5 * LIMIT) == "set REMATERIALIZATION = 'blocks' and NUM_MICROBATCHES = 4"
    recomputed = make_plan("data:4,model:2", rematerialization="blocks")
    assert advice(recomputed, V4, needed=5 * LIMIT).startswith("no larger v4 slice is certain to fit with this layout")


def test_switch_c_on_256_chips_recomputes_activations():
    """32.9 GiB is what the compiler reported for v6e when all activations were stored."""
    plan = read_plan(
        ["gin/models/switch_c_2048.gin", "gin/runs/pretrain.gin", "gin/layouts/v6e_256_switch_c.gin"],
        ["REMATERIALIZATION = 'none'"],
        [],
        "train",
    )
    slice_ = find_slice("v6e-256")
    assert advice(plan, slice_, needed=int(32.9 * 2**30)) == "set REMATERIALIZATION = 'blocks'"


def plan_with_large_weights(factor: float, **settings):
    """A plan whose weights and gradients take `factor` times a device's memory, almost all in the embedding table."""
    rows = int(factor * LIMIT / (2 * 4 * 128))
    return make_plan(vocab_size=rows - rows % 128, d_model=128, **settings)


@pytest.mark.parametrize(("factor", "model"), [(1.5, 2), (1.9, 2)])
def test_large_weights_need_a_larger_model_dimension(factor, model):
    plan = plan_with_large_weights(factor, mesh_shape="data:8,model:1", num_experts=8)
    sentence = advice(plan, V4, needed=int(factor * LIMIT))
    assert sentence == f"raise model to {model} (MESH_SHAPE = 'data:4,model:2', NUM_MICROBATCHES = 2)"


def test_weights_larger_than_the_slice_need_a_larger_slice():
    # Expert weights of 1.5 times the memory of eight devices; dense layers have the same d_ff.
    experts = 64
    width = int(1.5 * 8 * LIMIT / (2 * 4 * 2 * 2 * 128 * experts))
    plan = make_plan("data:8,model:1", num_experts=experts, d_model=128, d_ff=width - width % 128, num_heads=1)
    sentence = advice(plan, V4, needed=int(1.6 * LIMIT))
    assert sentence == "use v4-32, with MESH_SHAPE = 'data:16,model:1' and NUM_MICROBATCHES = 1"


def test_evaluation_needs_a_smaller_batch():
    assert advice(make_plan(step="evaluate"), V4, needed=int(1.5 * LIMIT)) == "lower BATCH_SIZE to 8"


def test_no_slice_is_large_enough():
    """Each of two experts is larger than a device, and experts cannot be sharded further."""
    width = int(2 * LIMIT / (2 * 4 * 2 * 128))
    plan = make_plan("data:2,model:1", num_experts=2, d_model=128, d_ff=width - width % 128 + 1, num_heads=1)
    sentence = advice(plan, find_slice("v4:2x2x1"), needed=3 * LIMIT)
    assert sentence.startswith(
        "no larger v4 slice is certain to fit with this layout: weights, slots and gradients take "
    )
