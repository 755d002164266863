"""Processors with bfloat16 instructions and without, by what Linux says of them."""

import pytest

from switch_tf.partitioning.processor import bfloat16_instructions, faster_dtype, is_slower_dtype

# Lines of /proc/cpuinfo of Linux, shortened.
ROME = "processor\t: 0\nmodel name\t: AMD EPYC 7B12\nflags\t\t: fpu fma avx avx2 sha_ni\nbugs\t\t: spectre_v1\n"
GENOA = "processor\t: 0\nmodel name\t: AMD EPYC 9B14\nflags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni\n"
SAPPHIRE_RAPIDS = "flags\t\t: avx512f avx512_bf16 avx512_fp16 amx_bf16 amx_tile amx_int8\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd sve i8mm bf16 dgh\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize(
    ("cpuinfo", "instructions"),
    [
        (ROME, []),
        (GENOA, ["avx512_bf16"]),
        (SAPPHIRE_RAPIDS, ["amx_bf16", "avx512_bf16"]),
        (GRAVITON_3, ["bf16"]),
        ("model name\t: avx512_bf16\n", []),
    ],
)
def test_instructions_are_found(cpuinfo, instructions, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert bfloat16_instructions(str(path)) == instructions
    faster, slower = ("bfloat16", "float32") if instructions else ("float32", "bfloat16")
    assert faster_dtype(str(path)).startswith(f"ACTIVATION_DTYPE = '{faster}' is faster on this CPU")
    assert is_slower_dtype(slower, str(path)) and not is_slower_dtype(faster, str(path))


def test_another_system_has_none(tmp_path):
    assert bfloat16_instructions(str(tmp_path / "absent")) == []
