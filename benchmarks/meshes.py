"""A Switch model and its dense twin on each engine and mesh: time of a step and of the first one, memory.

Run by `make bench`. Each row runs in processes of its own, one row after the other, on this machine's CPU split into
logical devices. They share the cores, so no mesh can be faster than one device here; the difference to the first row is
the cost of the mesh: collectives, and work that every device repeats. The dense model has the same FLOPs per token, so
what the Switch model's step takes beyond it is the price of routing, on one device and on each mesh.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.measuring import spread

ROOT = pathlib.Path(__file__).parents[1]
SPARSE, DENSE = "switch_tiny_8", "t5_tiny"
# 32 sequences of 128 and 29 tokens; each a routing group, so that the work is the same on all meshes.
SETTINGS = ("BATCH_SIZE = 32", "MODEL_DIR = 'unused'", "VOCABULARY = None")
OF_GROUPS = {SPARSE: ("GROUP_SIZE = None",), DENSE: ()}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table: its name, the layout file, changed macros, and the number of processes."""

    name: str
    layout: str
    settings: tuple[str, ...] = ()
    num_processes: int = 1


ROWS = (
    Row("single", "single"),
    Row("tpu (MirroredStrategy), data:8", "mirrored_8"),
    Row("dtensor, data:8", "cpu_data_8"),
    Row("dtensor, data:4,model:2", "cpu_data_4_model_2"),
    Row("dtensor, data:2,model:4", "cpu_data_2_model_4"),
    Row("dtensor, data:4,model:2, 2 processes", "cpu_data_4_model_2", ("NUM_LOGICAL_DEVICES = 4",), 2),
)


def measure(model: str, layout: str, settings: list[str], num_steps: int) -> dict[str, float]:
    """Trains a model on random tokens in this process; returns seconds and bytes."""
    import numpy as np

    from switch_tf.runs import gin_config
    from switch_tf.runs.experiment import Experiment
    from switch_tf.runs.loop import make_update
    from switch_tf.runs.run import Run
    from switch_tf.training.adafactor import Adafactor
    from switch_tf.training.losses import Objective

    files = (f"gin/models/{model}.gin", "gin/runs/python_docs.gin", f"gin/layouts/{layout}.gin")
    gin_config.load(files, [*SETTINGS, *OF_GROUPS[model], *settings])
    experiment = Experiment()
    engine = experiment.make_engine()
    with engine.scope():
        run = Run(experiment, Adafactor(), engine=engine)
    update = make_update(run, Objective(), 1)
    random, lengths = np.random.default_rng(0), experiment.task_feature_lengths
    rows = engine.local_rows(experiment.batch_size)
    shapes = {"encoder_input_tokens": "inputs", "decoder_input_tokens": "targets", "decoder_target_tokens": "targets"}
    features = {
        name: random.integers(2, 4000, [experiment.batch_size, lengths[kind]], dtype=np.int32)[rows]
        for name, kind in shapes.items()
    }
    seconds = []
    for _ in range(num_steps + 1):
        began = time.perf_counter()
        with engine.scope():
            engine.fetch(update(engine.feed(features)).loss)
        seconds.append(time.perf_counter() - began)
    engine.processes.close()
    return {
        "first_step": seconds[0],
        "step": statistics.median(seconds[1:]),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def run(row: Row, model: str, num_steps: int) -> dict[str, float]:
    """Measures a model on a row's mesh, in processes of its own; times are the first process's, memory is the sum."""
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    addresses = ",".join(f"localhost:{port + index}" for index in range(row.num_processes))
    with tempfile.TemporaryDirectory() as folder:
        outputs = [pathlib.Path(folder) / str(index) for index in range(row.num_processes)]
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.meshes", "--one", model, row.layout, "--steps", str(num_steps)]
                + ["--json", str(output), *(f"--set={setting}" for setting in row.settings)],
                cwd=ROOT,
                env=os.environ
                | ({"SWITCH_TF_PROCESSES": addresses, "SWITCH_TF_PROCESS": str(index)} if len(outputs) > 1 else {}),
            )
            for index, output in enumerate(outputs)
        ]
        if any(process.wait() for process in processes):
            sys.exit(f"{row.name} failed.")
        results = [json.loads(output.read_text()) for output in outputs]
    return {**results[0], "memory": sum(result["memory"] for result in results)}


def compare(row: Row, num_steps: int, rounds: int) -> dict[str, float]:
    """Measures the Switch model and the dense one in turn; medians, and quartiles of the ratio of their steps."""
    both = [(run(row, SPARSE, num_steps), run(row, DENSE, num_steps)) for _ in range(rounds)]
    medians = {name: statistics.median(sparse[name] for sparse, _ in both) for name in both[0][0]}
    return medians | spread("over_dense", [sparse["step"] / dense["step"] for sparse, dense in both])


def table(results: dict[str, dict[str, float]]) -> str:
    """Formats the results as a Markdown table."""
    alone = results[ROWS[0].name]["step"]
    lines = ["| engine and mesh | step | relative to one device | over the dense model | first step | memory |"]
    lines.append("|---|---|---|---|---|---|")
    lines += [
        f"| {name} | {1000 * result['step']:.0f} ms | {result['step'] / alone:.2f} | {result['over_dense']:.2f} "
        f"({result['over_dense_low']:.2f} - {result['over_dense_high']:.2f}) | {result['first_step']:.0f} s | "
        f"{result['memory'] / 2**20:,.0f} MiB |"
        for name, result in results.items()
    ]
    return "\n".join(lines)


def main() -> None:
    """Measures all rows; with --one, a single model and layout in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps after the first (default: %(default)s)")
    parser.add_argument("--json", required=True, help="where to write the numbers")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each model (default: %(default)s)")
    parser.add_argument("--one", nargs=2, metavar=("MODEL", "LAYOUT"), help="measure one mesh in this process")
    parser.add_argument("--set", action="append", default=[], metavar="BINDING", help="change a macro, with --one")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if options.one:
        results = measure(*options.one, options.set, options.steps)
    else:
        results = {row.name: compare(row, options.steps, options.rounds) for row in ROWS}
        print(table(results))
    pathlib.Path(options.json).write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
