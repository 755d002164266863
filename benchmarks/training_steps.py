"""How fast training steps of several models consume examples on this machine, and how long they wait for input.

Each model trains on the quick start's text in a process of its own (`python -m benchmarks.training_steps --model=0`),
which `benchmarks.input` starts to compare consumption with the throughput of the input pipelines.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

# As `switch-tf` sets them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

ROOT = pathlib.Path(__file__).parents[1]
SHORT, LONG = {"inputs": 128, "targets": 29}, {"inputs": 512, "targets": 114}


@dataclasses.dataclass(frozen=True)
class Model:
    """A model's gin file, its batch, the steps to time after two warm-up steps, and the free memory that it needs."""

    name: str
    batch_size: int
    lengths: dict[str, int]
    steps: int
    gigabytes: int = 2


MODELS = (
    Model("t5_tiny", 16, SHORT, 60),
    Model("switch_tiny_8", 16, SHORT, 60),
    Model("switch_tiny_8", 16, LONG, 15),
    Model("t5_small", 4, LONG, 4, 4),
    Model("switch_base_8", 2, LONG, 2, 8),
)


def measure(model: Model, folder: str) -> dict[str, list[float]]:
    """Trains in this process on uncached text; returns the seconds of each step, and how many of them it waited."""
    from switch_tf import compat
    from switch_tf.runs import gin_config
    from switch_tf.runs.experiment import Experiment
    from switch_tf.runs.loop import make_update
    from switch_tf.runs.run import Run
    from switch_tf.training.adafactor import Adafactor
    from switch_tf.training.losses import Objective

    compat.keep_freed_memory()
    files = (f"gin/models/{model.name}.gin", "gin/runs/python_docs.gin")
    settings = {"MODEL_DIR": folder, "BATCH_SIZE": model.batch_size, "TASK_FEATURE_LENGTHS": model.lengths}
    gin_config.load(files, [f"{name} = {value!r}" for name, value in settings.items()])
    experiment = Experiment()
    engine = experiment.make_engine()
    experiment.install_vocabulary()
    batches = experiment.training_batches(engine)
    run = Run(experiment, Adafactor(), engine=engine)
    update = make_update(run, Objective(), 1)
    times: dict[str, list[float]] = {"step": [], "wait": []}
    for _ in range(model.steps + 2):
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        engine.fetch(update(engine.feed(batch)).loss)
        times["step"].append(time.perf_counter() - began)
        times["wait"].append(waited)
    return {name: seconds[2:] for name, seconds in times.items()}


def free_gigabytes() -> float:
    """Returns the free memory of this machine."""
    facts = dict(line.split(":") for line in pathlib.Path("/proc/meminfo").read_text().splitlines())
    return int(facts["MemAvailable"].split()[0]) / 2**20


def measure_in_a_process(index: int) -> dict[str, list[float]] | None:
    """Measures one of `MODELS` in a process of its own; None if there is too little memory for it."""
    if free_gigabytes() < MODELS[index].gigabytes:
        return None
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "times.json"
        command = [sys.executable, "-m", "benchmarks.training_steps", f"--model={index}", f"--output={output}"]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(output.read_text())


def main() -> None:
    """Measures one model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=int, required=True, help="index in MODELS")
    parser.add_argument("--output", required=True, help="where to write the seconds")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pathlib.Path(options.output).write_text(json.dumps(measure(MODELS[options.model], folder)))


if __name__ == "__main__":
    main()
