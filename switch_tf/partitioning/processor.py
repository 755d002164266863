"""Which dtype of activations this machine's processor computes faster with."""

import pathlib

CPUINFO = "/proc/cpuinfo"
# As Linux names them, on x86 and on Arm: instructions that multiply bfloat16 matrices, which oneDNN uses.
_BFLOAT16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def bfloat16_instructions(cpuinfo: str = CPUINFO) -> list[str]:
    """Returns the processor's instructions for bfloat16, sorted; none where Linux does not say.

    Args:
      cpuinfo: the file in which Linux describes the processor.
    """
    try:
        lines = pathlib.Path(cpuinfo).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    described = (line.partition(":") for line in lines)
    flags = {flag for name, _, words in described if name.strip() in ("flags", "Features") for flag in words.split()}
    return sorted(_BFLOAT16 & flags)


def faster_dtype(cpuinfo: str = CPUINFO) -> str:
    """Says which `ACTIVATION_DTYPE` is faster on this processor, and why: half a sentence.

    Args:
      cpuinfo: the file in which Linux describes the processor.
    """
    instructions = bfloat16_instructions(cpuinfo)
    if instructions:
        return f"ACTIVATION_DTYPE = 'bfloat16' is faster on this CPU, which has {', '.join(instructions)}"
    return "ACTIVATION_DTYPE = 'float32' is faster on this CPU, which has no instructions for bfloat16"


def is_slower_dtype(activation_dtype: str, cpuinfo: str = CPUINFO) -> bool:
    """Whether the processor computes faster with the other dtype.

    Args:
      activation_dtype: "float32" or "bfloat16".
      cpuinfo: the file in which Linux describes the processor.
    """
    return (activation_dtype == "bfloat16") != bool(bfloat16_instructions(cpuinfo))
