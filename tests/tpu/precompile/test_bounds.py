"""Lower bounds: bytes over links and FLOPs of a step, against counts by hand."""

import dataclasses

import pytest

from switch_tf.partitioning.layout import Layout
from switch_tf.runs.teacher_settings import TeacherSettings
from tests.support.step_plans import RULES, make_plan
from tpu.precompile.bounds import step_flops, total_collectives
from tpu.precompile.hlo import Collective
from tpu.precompile.plan import PlannedTeacher
from tpu.topologies import find_slice


def collective(
    kind: str, groups: tuple[tuple[int, ...], ...], executions: int = 1, covering_flops: float | None = None
) -> Collective:
    is_asynchronous = covering_flops is not None
    return Collective(kind, ("f32[1000]",), 4000, groups, "", executions, is_asynchronous, covering_flops or 0.0)


def test_collectives_are_totalled_by_mesh_dimension_and_timed_by_bytes_sent():
    layout = Layout.parse("data:4,model:2", RULES)
    along_data, along_model = ((0, 2, 4, 6), (1, 3, 5, 7)), ((0, 1), (2, 3), (4, 5), (6, 7))
    found = total_collectives(
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
    # The cores of one chip need no link.
    assert rows["all-reduce", "model"].seconds == 0
    # Four chips, each with the sum of its two cores.
    assert rows["all-reduce", "data+model"].seconds == pytest.approx(2 * 4000 * 3 / 4 / rate)
    assert rows["all-reduce", "model"].largest == "f32[1000]"
    # Each core sends three shards, each as large as the result.
    assert rows["reduce-scatter", "data"].seconds == pytest.approx(2 * 3 * 4000 / rate)


def test_a_device_that_is_a_whole_chip_has_all_of_its_links():
    layout = Layout.parse("data:8,model:2", RULES)
    along_model = tuple((2 * chip, 2 * chip + 1) for chip in range(8))
    (row,) = total_collectives([collective("all-reduce", along_model)], layout, find_slice("v4:2x2x4"))
    assert row.seconds == pytest.approx(2 * 4000 / 2 / 300e9)


def test_matmuls_beside_a_collective_cover_it():
    layout, slice_ = Layout.parse("data:8,model:2", RULES), find_slice("v4:2x2x4")
    along_data = (tuple(range(0, 16, 2)), tuple(range(1, 16, 2)))
    # A v4 chip sends 4000 * 7 / 8 bytes over its 300 GB/s in 11.7 ns, and computes 275e12 FLOP/s.
    alone = 4000 * 7 / 8 / 300e9
    covered, half, uncovered = 275e12 * alone * 2, 275e12 * alone / 2, 0.0
    found = [collective("all-to-all", along_data, 3, flops) for flops in (covered, half, uncovered, None)]
    (row,) = total_collectives(found, layout, slice_)
    assert (row.number, row.asynchronous) == (12, 9)
    assert row.seconds == pytest.approx(12 * alone)
    assert row.exposed_seconds == pytest.approx(3 * (0 + 0.5 + 1 + 1) * alone)


def test_full_slots_cost_nothing_extra():
    flops = step_flops(make_plan(), compiled=1.0)
    # 512 + 128 tokens in groups of 32; 4 experts of 8 slots each.
    assert flops.all_slots == flops.model > 0


def test_a_router_has_a_column_for_each_expert():
    few, many = step_flops(make_plan(), 1.0), step_flops(make_plan(num_experts=8), 1.0)
    # Four more columns, in one sparse layer of each stack; three passes, eight devices.
    assert many.model - few.model == pytest.approx(3 * 16 * (32 + 8) * 2 * 16 * 4 / 8)


def test_an_empty_slot_costs_as_much_as_a_token():
    plan, roomy = make_plan(), make_plan(capacity_factor=2.0)
    extra = step_flops(roomy, 1.0).all_slots - step_flops(plan, 1.0).all_slots
    # As many empty slots as tokens, in one sparse layer of each stack; two matrices, three passes, eight devices.
    assert extra == pytest.approx(3 * 16 * (32 + 8) * 2 * 2 * 16 * 32 / 8)


def test_evaluation_is_one_forward_pass():
    train, evaluate = make_plan(), make_plan(step="evaluate", eval_capacity_factor=1.0)
    assert 3 * step_flops(evaluate, 1.0).all_slots == pytest.approx(step_flops(train, 1.0).all_slots)


def test_a_teacher_adds_a_forward_pass_of_its_own():
    settings = {"eval_capacity_factor": 1.0, "num_experts": 8}
    student, teacher = make_plan(num_experts=0), make_plan(step="evaluate", **settings)
    planned = PlannedTeacher(TeacherSettings("teacher"), teacher.config)
    both, alone, forward = (
        step_flops(plan, 1.0) for plan in (dataclasses.replace(student, teacher=planned), student, teacher)
    )
    assert both.model == pytest.approx(alone.model + forward.model)
    assert both.all_slots == pytest.approx(alone.all_slots + forward.all_slots)


def test_decoding_on_a_mesh_gives_each_token_a_slot_in_every_expert():
    decode = step_flops(make_plan(step="decode"), 1.0)
    # No token is dropped: each of the 4 experts has room for all.
    empty = 16 * (32 + 8) * (4 - 1)
    assert decode.all_slots - decode.model == pytest.approx(empty * 2 * 2 * 16 * 32 / 8)


def test_microbatches_change_groups_but_not_tokens():
    plan = make_plan(group_size=256, min_expert_capacity=16)
    whole, split = step_flops(plan, 1.0), step_flops(dataclasses.replace(plan, num_microbatches=4), 1.0)
    assert whole.model == split.model
    # Four groups of 32 tokens on each device instead of one of 128, each with at least 16 slots per expert.
    assert split.all_slots > whole.all_slots
