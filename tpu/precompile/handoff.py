"""The files by which the processes of a compilation hand over, and what both say of themselves."""

import resource

REQUEST = "request.json"  # arguments of `plan.read_plan`
LOWERED = "lowered.mlirbc"  # the program, for a mesh
LOWERING = "lowering.json"  # what it took
TARGET = "target.json"  # for which TPUs, with which effort
COMPILED = "compiled.json"  # what the compiler says, or why it does not
TEXT = "compiled.hlo"  # one device's program


def peak_memory() -> int:
    """Returns the most bytes that this process has had in memory."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
