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
        ("((bf16[4,8]{1,0}), bf16[4,8]{1,0:S(3)}, u32[]{:S(2)}) all-to-all-start(%x)", "bf16[4,8]", 64),
    ],
)
def test_operands_of_asynchronous_collectives_are_not_counted(start, shape, num_bytes):
    started = f"%started = {start}, channel_id=11, replica_groups={{{{0,1}}}}"
    program = HloProgram(LOOP.replace("  ROOT %result", f"  {started}\n  ROOT %result"))
    (found,) = (each for each in program.collectives() if each.kind in start and each.executions == 1)
    assert (found.shapes, found.num_bytes) == ((shape,), num_bytes)


OVERLAPPED = """\
ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %before = f32[4,4] dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}
  %first = ((f32[4,8]), f32[4,8], u32[]) all-to-all-start(%x), channel_id=1, replica_groups={{0,1}}
  %loop = (s32[], f32[4,8]) while(%x), condition=%condition, body=%body
  %second = ((f32[4,8]), f32[4,8], u32[]) all-to-all-start(%x), channel_id=2, replica_groups={{0,1}}
  %first.done = f32[4,8] all-to-all-done(%first)
  %between = f32[8,8] dot(%x, %x), lhs_contracting_dims={0}, rhs_contracting_dims={0}
  ROOT %second.done = f32[4,8] all-to-all-done(%second)
}
"""


def test_matmuls_between_the_start_and_the_end_of_a_collective_cover_it():
    program = HloProgram(LOOP.partition("ENTRY")[0] + OVERLAPPED)
    in_loop, first, second = program.collectives()
    assert not in_loop.is_asynchronous and in_loop.covering_flops == 0
    assert first.is_asynchronous and first.covering_flops == 6 * 2 * 4 * 4 * 8  # The loop's.
    assert second.is_asynchronous and second.covering_flops == 2 * 8 * 8 * 4
    assert program.matmul_flops() == 7 * 2 * 4 * 4 * 8 + 2 * 8 * 8 * 4


def test_an_unrolled_loop_counts_in_larger_steps():
    """As the compiler writes loops over the shards of a matmul, with unsigned counters."""
    two = "%two = u32[] constant(2)\n  %count = u32[] get-tuple-element(%state), index=0\n"
    two += "  %more = u32[] add(%count, %two)\n  ROOT %next = (s32[], f32[4,8]) tuple(%more, %value)"
    unrolled = LOOP.replace("ROOT %next = (s32[], f32[4,8]) tuple(%state, %value)", two)
    program = HloProgram(unrolled.replace("s32[]{:T(256)} constant(6)", "u32[]{:T(256)} constant(6)"))
    assert program.executions["body"] == 3 and program.matmul_flops() == 3 * 2 * 4 * 4 * 8


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
        ("replica_groups=mesh['a'=2,'b'=1,'c'=3] {'c'}, x={0}", ((0, 1, 2), (3, 4, 5))),
        ("replica_groups=mesh['a'=2,'b'=3] {'a'}", ((0, 3), (1, 4), (2, 5))),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", ((0, 1, 4, 5), (2, 3, 6, 7))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_groups_in_all_notations(text, groups):
    assert replica_groups(f"%x), channel_id=1, {text}") == groups


def test_groups_in_an_unknown_notation_are_an_error():
    with pytest.raises(SettingError, match=r"HLO that switch_tf cannot parse.*replica_groups=mesh"):
        replica_groups("%x), channel_id=1, replica_groups=mesh['a'=4] {'a':(1)2}")


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
