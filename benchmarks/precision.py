"""Time and memory of the same training step with each `ACTIVATION_DTYPE`, on this machine's processor.

Run by `make bench`. Each dtype trains in a process of its own, one after the other, in several rounds; both are
compared with float32 within a round. Which is faster depends on the processor's instructions.
"""

import argparse
import json
import pathlib

from benchmarks.measuring import spread
from benchmarks.meshes import Row, run
from switch_tf import startup
from switch_tf.partitioning.processor import bfloat16_instructions

DTYPES = ("float32", "bfloat16")


def compare(num_rounds: int, num_steps: int) -> dict[str, dict[str, float]]:
    """Returns step time and memory with each dtype, absolute and relative to float32."""
    rounds = [
        {dtype: run(Row(dtype, "single", (f"ACTIVATION_DTYPE = '{dtype}'",)), num_steps) for dtype in DTYPES}
        for _ in range(num_rounds)
    ]
    found = {}
    for dtype in DTYPES:
        found[dtype] = {}
        for name in ("step", "memory"):
            values = [results[dtype][name] for results in rounds]
            ratios = [results[dtype][name] / results[DTYPES[0]][name] for results in rounds]
            found[dtype] |= spread(name, values) | spread(f"{name}_ratio", ratios)
    return found


def table(results: dict[str, dict[str, float]]) -> str:
    """Formats the results as a Markdown table."""
    lines = ["| `ACTIVATION_DTYPE` | step | relative | memory | relative |", "|---|---|---|---|---|"]
    lines += [
        f'| `"{dtype}"` | {result["step"]:.3f} s | {result["step_ratio"]:.2f} ({result["step_ratio_low"]:.2f} - '
        f"{result['step_ratio_high']:.2f}) | {result['memory'] / 2**20:,.0f} MiB | {result['memory_ratio']:.2f} |"
        for dtype, result in results.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="steps after the first (default: %(default)s)")
    parser.add_argument("--json", required=True, help="where to write the numbers")
    options = parser.parse_args()
    startup.prepare_libraries()
    results, instructions = compare(options.rounds, options.steps), bfloat16_instructions()
    print(f"bfloat16 instructions of this processor: {', '.join(instructions) or 'none'}")
    print(table(results))
    pathlib.Path(options.json).write_text(json.dumps({"instructions": instructions, "dtypes": results}, indent=2))


if __name__ == "__main__":
    main()
