"""Time and memory of the same training step with each value of `REMATERIALIZATION`.

Run by `make bench`. Each value trains in a process of its own, one after the other, in several rounds; all are compared
with the first value within a round.
"""

import argparse
import json
import os
import pathlib

from benchmarks.measuring import spread
from benchmarks.meshes import Row, run
from switch_tf.models.config import REMATERIALIZATIONS

# A deeper switch_tiny_8 on long sequences, so that activations dominate the memory.
SETTINGS = (
    "ModelConfig.num_encoder_layers = 8",
    "ModelConfig.num_decoder_layers = 8",
    "TASK_FEATURE_LENGTHS = {'inputs': 512, 'targets': 114}",
)


def compare(num_rounds: int, num_steps: int) -> dict[str, dict[str, float]]:
    """Returns step time and memory of each value, absolute and relative to the first value."""
    rounds = [
        {
            kind: run(Row(kind, "single", (*SETTINGS, f"REMATERIALIZATION = '{kind}'")), num_steps)
            for kind in REMATERIALIZATIONS
        }
        for _ in range(num_rounds)
    ]
    found = {}
    for kind in REMATERIALIZATIONS:
        found[kind] = {}
        for name in ("step", "memory"):
            values = [results[kind][name] for results in rounds]
            ratios = [results[kind][name] / results[REMATERIALIZATIONS[0]][name] for results in rounds]
            found[kind] |= spread(name, values) | spread(f"{name}_ratio", ratios)
    return found


def table(results: dict[str, dict[str, float]]) -> str:
    """Formats the results as a Markdown table."""
    lines = ["| `REMATERIALIZATION` | step | relative | memory | relative |", "|---|---|---|---|---|"]
    lines += [
        f'| `"{kind}"` | {result["step"]:.2f} s | {result["step_ratio"]:.2f} ({result["step_ratio_low"]:.2f} - '
        f"{result['step_ratio_high']:.2f}) | {result['memory'] / 2**20:,.0f} MiB | {result['memory_ratio']:.2f} |"
        for kind, result in results.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps after the first (default: %(default)s)")
    parser.add_argument("--json", required=True, help="where to write the numbers")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    results = compare(options.rounds, options.steps)
    print(table(results))
    pathlib.Path(options.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
