"""Files through which the lowering and the compiling process pass their results on, in one temporary folder."""

import resource

REQUEST = "request.json"  # Arguments of `plan.read_plan`.
LOWERED = "lowered.mlirbc"  # The annotated program, as MLIR bytecode.
LOWERING = "lowering.json"  # Seconds and host memory of lowering.
TARGET = "target.json"  # The topology and the compiler's effort.
COMPILED = "compiled.json"  # Memory statistics, or the compiler's error.
TEXT = "compiled.hlo"  # The optimized program of one device, as HLO text.


def peak_memory() -> int:
    """Returns the peak resident memory of this process, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
