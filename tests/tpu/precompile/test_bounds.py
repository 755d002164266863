"""Bounds: bytes over links and FLOPs of a step, against counts by hand."""

import dataclasses

import pytest

from switch_tf.models.config import ModelConfig
from switch_tf.partitioning.layout import Layout
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from tpu.precompile.bounds import exchanges, step_flops
from tpu.precompile.hlo import Collective
from tpu.precompile.plan import Plan
from tpu.topologies import find_slice

RULES = "batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"


def make_plan(mesh_shape: str = "data:4,model:2", step: str = "train", **settings) -> Plan:
    config = {
        "vocab_size": 64,
        "d_model": 16,
        "d_ff": 32,
        "d_kv": 8,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_experts": 4,
        "group_size": 32,
        "capacity_factor": 1.0,
        "min_expert_capacity": 1,
    } | settings
    layout = Layout.parse(mesh_shape, RULES)
    return Plan(step, ModelConfig(**config), layout, 16, 32, 8, 1, Adafactor, Objective())


def collective(kind: str, groups: tuple[tuple[int, ...], ...], executions: int = 1) -> Collective:
    return Collective(kind, ("f32[1000]",), 4000, groups, "", executions)


def test_exchanges_are_named_by_the_mesh_and_timed_by_what_is_sent():
    layout = Layout.parse("data:4,model:2", RULES)
    along_data, along_model = ((0, 2, 4, 6), (1, 3, 5, 7)), ((0, 1), (2, 3), (4, 5), (6, 7))
    found = exchanges(
        [
            collective("all-to-all", along_data, executions=3),
            collective("all-reduce", along_model),
            collective("all-reduce", ()),
            collective("reduce-scatter", along_data),
        ],
        layout,
        find_slice("v3:2x2"),
    )
    rows = {(row.kind, row.dimension): row for row in found}
    assert rows.keys() == {
        ("all-to-all", "data"),
        ("all-reduce", "model"),
        ("all-reduce", "data+model"),
        ("reduce-scatter", "data"),
    }
    # Two cores, 2 * i and 2 * i + 1, share a v3 chip and its 328 GB/s.
    rate = 328e9
    assert rows["all-to-all", "data"].number == 3 and rows["all-to-all", "data"].num_bytes == 12000
    assert rows["all-to-all", "data"].seconds == pytest.approx(2 * 12000 * 3 / 4 / rate)
    # Between the cores of one chip no link is needed.
    assert rows["all-reduce", "model"].seconds == 0
    # Four chips, each with the sum of its two cores.
    assert rows["all-reduce", "data+model"].seconds == pytest.approx(2 * 4000 * 3 / 4 / rate)
    assert rows["all-reduce", "model"].largest == "f32[1000]"
    # Three other parts, each as large as the result, from each core.
    assert rows["reduce-scatter", "data"].seconds == pytest.approx(2 * 3 * 4000 / rate)


def test_where_each_chip_is_one_device_all_of_its_links_are_its_own():
    layout = Layout.parse("data:8,model:2", RULES)
    along_model = tuple((2 * chip, 2 * chip + 1) for chip in range(8))
    (row,) = exchanges([collective("all-reduce", along_model)], layout, find_slice("v4:2x2x4"))
    assert row.seconds == pytest.approx(2 * 4000 / 2 / 300e9)


def test_flops_of_slots_are_those_of_tokens_where_each_slot_has_its_token():
    flops = step_flops(make_plan(), compiled=1.0)
    # 512 + 128 tokens in groups of 32; 4 experts of 8 slots each.
    assert flops.of_slots == flops.of_tokens > 0


def test_empty_slots_cost_what_an_expert_costs():
    plan, roomy = make_plan(), make_plan(capacity_factor=2.0)
    extra = step_flops(roomy, 1.0).of_slots - step_flops(plan, 1.0).of_slots
    # As many empty slots as tokens, in one sparse layer of each stack; two matrices, three passes, eight devices.
    assert extra == pytest.approx(3 * 16 * (32 + 8) * 2 * 2 * 16 * 32 / 8)


def test_one_pass_without_a_gradient():
    train, evaluate = make_plan(), make_plan(step="evaluate", eval_capacity_factor=1.0)
    assert 3 * step_flops(evaluate, 1.0).of_slots == pytest.approx(step_flops(train, 1.0).of_slots)


def test_decoding_on_a_mesh_has_a_slot_in_every_expert():
    decode = step_flops(make_plan(step="decode"), 1.0)
    # No token is dropped: each of the 4 experts has room for all.
    empty = 16 * (32 + 8) * (4 - 1)
    assert decode.of_slots - decode.of_tokens == pytest.approx(empty * 2 * 2 * 16 * 32 / 8)


def test_microbatches_change_groups_and_no_tokens():
    plan = make_plan(group_size=256, min_expert_capacity=16)
    whole, parts = step_flops(plan, 1.0), step_flops(dataclasses.replace(plan, num_microbatches=4), 1.0)
    assert whole.of_tokens == parts.of_tokens
    # Four groups of 32 tokens on each device, no longer one of 128, with 16 slots for each expert at least.
    assert parts.of_slots > whole.of_slots
