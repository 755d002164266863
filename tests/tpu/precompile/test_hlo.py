"""Parsing HLO: against FLOPs that XLA counts, and against replica groups written by hand."""

import jax
import jax.numpy as jnp
import pytest

from switch_tf.errors import SettingError
from tpu.precompile.hlo import HloProgram, replica_groups

LOOP = """\
HloModule step

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%body (state: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %state = (s32[], f32[4,8]) parameter(0)
  %value = f32[4,8]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %moved = bf16[4,8]{1,0} all-to-all(%value), channel_id=7, replica_groups={{0,2},{1,3}}, metadata={op_name="layer_1/x"}
  %moved.clone = bf16[4,8]{1,0} all-to-all(%value), channel_id=7, replica_groups={{0,2},{1,3}}
  %product = f32[4,4]{1,0} dot(%value, %value), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  ROOT %next = (s32[], f32[4,8]) tuple(%state, %value)
}

%condition (state.1: (s32[], f32[4,8])) -> pred[] {
  %state.1 = (s32[], f32[4,8]) parameter(0)
  %bound = s32[]{:T(256)} constant(6)
  %counter = s32[] get-tuple-element(%state.1), index=0
  ROOT %goes_on = pred[] compare(%counter, %bound), direction=LT
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %loop = (s32[], f32[4,8]) while(%x), condition=%condition, body=%body
  %all = (f32[4,8]{1,0}, f32[2]{0}) all-reduce-start(%x, %x), channel_id=9, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %result = f32[4,8] get-tuple-element(%loop), index=1
}
"""


def test_collectives_and_matmuls_in_a_loop_count_once_per_iteration():
    program = HloProgram(LOOP)
    all_to_all, all_reduce = sorted(program.collectives(), reverse=True)
    assert all_to_all.kind == "all-to-all" and all_to_all.executions == 6
    assert all_to_all.groups == ((0, 2), (1, 3)) and all_to_all.shapes == ("bf16[4,8]",)
    assert all_to_all.num_bytes == 2 * 4 * 8
    assert (all_reduce.kind, all_reduce.executions, all_reduce.num_bytes) == ("all-reduce", 1, 4 * (4 * 8 + 2))
    assert program.matmul_flops() == 6 * 2 * 4 * 4 * 8


@pytest.mark.parametrize(
    ("start", "shape", "num_bytes"),
    [
        ("(bf16[4,8]{1,0}, bf16[4,8]{1,0}, u32[], u32[]) collective-permute-start(%x)", "bf16[4,8]", 64),
        ("(f32[4]{0}, f32[32]{0}) all-gather-start(%x)", "f32[32]", 128),
    ],
)
def test_operands_of_asynchronous_collectives_are_not_counted(start, shape, num_bytes):
    started = f"%started = {start}, channel_id=11, replica_groups={{{{0,1}}}}"
    program = HloProgram(LOOP.replace("  ROOT %result", f"  {started}\n  ROOT %result"))
    (found,) = (each for each in program.collectives() if each.kind in start)
    assert (found.shapes, found.num_bytes) == ((shape,), num_bytes)


def test_a_loop_without_a_constant_bound_is_an_error():
    with pytest.raises(SettingError, match="The loop loop has no trip count that its condition condition shows"):
        HloProgram(LOOP.replace("s32[]{:T(256)} constant(6)", "s32[]{:T(256)} parameter(1)"))


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x={{9}}", ((0, 1), (2, 3))),
        ("replica_groups={}, dimensions={0}", ()),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ((0, 2, 4, 6), (1, 3, 5, 7))),
        ("replica_groups=[4,3]<=[2,3,2]T(0,2,1)", ((0, 2, 4), (1, 3, 5), (6, 8, 10), (7, 9, 11))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_groups_in_all_notations(text, groups):
    assert replica_groups(f"%x), channel_id=1, {text}") == groups


@pytest.mark.parametrize(
    ("left", "right", "settings"),
    [
        ((2, 9, 5, 3), (3, 2, 3, 4), {"window_strides": (2, 1), "padding": ((1, 2), (0, 1))}),
        ((1, 6, 6, 2), (3, 3, 2, 5), {"window_strides": (1, 1), "padding": "SAME", "rhs_dilation": (2, 1)}),
        ((1, 4, 4, 2), (3, 3, 2, 5), {"window_strides": (1, 1), "padding": ((2, 2), (2, 2)), "lhs_dilation": (2, 3)}),
        ((3, 1, 1, 7), (1, 12, 7, 64), {"window_strides": (1, 1), "padding": ((0, 0), (11, 11))}),
    ],
)
def test_convolution_flops_equal_xlas(left, right, settings):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=("NHWC", "HWIO", "NHWC"), **settings)

    lowered = jax.jit(convolve).lower(jnp.zeros(left), jnp.zeros(right))
    program = HloProgram(lowered.compiler_ir("hlo").get_hlo_module().to_string())
    assert program.matmul_flops() == lowered.cost_analysis()["flops"]


def test_batched_matmul_flops_equal_xlas():
    lowered = jax.jit(lambda x, y: jnp.einsum("bnqk,bnsk->bnqs", x, y)).lower(
        jnp.zeros([2, 3, 5, 7]), jnp.zeros([2, 3, 4, 7])
    )
    program = HloProgram(lowered.compiler_ir("hlo").get_hlo_module().to_string())
    assert program.matmul_flops() == lowered.cost_analysis()["flops"] == 2 * 2 * 3 * 5 * 4 * 7
