"""Trains the runs that `tools/export_study.py` wrote. Needs JAX and NumPy alone, and any accelerator that JAX knows.

    python train_exported_study.py exported runs/studies --workers=4

Every run gets a folder of the name that the study gave it, with `eval.csv` and `metrics.csv`; `switch-tf study
STUDY.gin --report` makes tables of them. Runs that are done are skipped.
"""

import argparse
import csv
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any


def main() -> None:
    """Trains this worker's share of the runs, or starts the workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("exported", type=pathlib.Path)
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--workers", type=int, default=1, help="processes that share the device")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is None and options.workers > 1:
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        command = [sys.executable, *sys.argv, "--worker"]
        workers = [subprocess.Popen([*command, str(index)], env=environment) for index in range(options.workers)]
        sys.exit(max(worker.wait() for worker in workers))
    runs = json.loads((options.exported / "runs.json").read_text())
    # Runs of one program go to one worker, which compiles it once.
    names = list(dict.fromkeys(run["program"] for run in runs))
    programs: dict[str, Program] = {}
    for run in runs:
        name = run["program"]
        if names.index(name) % options.workers == (options.worker or 0):
            if name not in programs:
                programs[name] = Program(options.exported / "programs" / name)
            train(programs[name], run, options.exported / "arrays", options.output / run["model_dir"])


class Program:
    """A compiled training step, looped over many batches, and the evaluation of a set of batches."""

    def __init__(self, folder: pathlib.Path):
        signatures = json.loads((folder / "signatures.json").read_text())
        step = _exported(folder / "train.jax")
        evaluate = _exported(folder / "evaluate.jax")
        arguments = [entry for entry in signatures["train"]["arguments"] if entry["name"].startswith("slots/")]
        self._slot_shapes = {entry["name"].removeprefix("slots/"): entry["shape"] for entry in arguments}

        def train_on(weights: Tree, slots: Tree, start: jax.Array, tokens: Tree, seed: jax.Array) -> Tree:
            def body(carry: Tree, batch: Tree) -> tuple[Tree, Tree]:
                weights, slots, number = carry
                results = step(weights, slots, number, _features(batch), seed)
                return (results["weights"], results["slots"], number + 1), results["metrics"]

            return jax.lax.scan(body, (weights, slots, start), tokens)

        def evaluate_on(weights: Tree, tokens: Tree) -> Tree:
            def body(total: Tree, batch: Tree) -> tuple[Tree, None]:
                return jax.tree.map(jnp.add, total, evaluate(weights, _features(batch))), None

            first = jax.tree.map(lambda array: array[0], tokens)
            rest = jax.tree.map(lambda array: array[1:], tokens)
            return jax.lax.scan(body, evaluate(weights, _features(first)), rest)[0]

        self.train_on = jax.jit(train_on, donate_argnums=(0, 1))
        self.evaluate_on = jax.jit(evaluate_on)

    def slots(self) -> Tree:
        """Returns the optimizer's slots before the first step."""
        slots: dict[str, dict[str, jax.Array]] = {}
        for name, shape in self._slot_shapes.items():
            weight, _, kind = name.rpartition("/")
            slots.setdefault(weight, {})[kind] = jnp.zeros(shape, jnp.float32)
        return slots


def train(program: Program, run: dict[str, Any], arrays: pathlib.Path, folder: pathlib.Path) -> None:
    """Trains one run and writes its `eval.csv` and `metrics.csv`."""
    if (folder / "eval.csv").exists():
        return
    began = time.monotonic()
    weights, slots = _arrays(arrays / f"{run['weights']}.npz"), program.slots()
    training, held_out = (_arrays(arrays / f"{run[name]}.npz") for name in ("training", "evaluation"))
    period, seed = run["eval_period"], np.int32(run["seed"])
    metrics, evaluations = [], []
    for start in range(0, run["steps"], period):
        tokens = {name: array[start : start + period] for name, array in training.items()}
        since = time.monotonic()
        (weights, slots, _), found = program.train_on(weights, slots, np.int32(start), tokens, seed)
        found = jax.device_get(found)
        speed = run["tokens_per_step"] * period / (time.monotonic() - since)
        metrics.append(_last_row(start + period, found) | {"tokens_per_second": speed})
        sums = jax.device_get(program.evaluate_on(weights, held_out))
        evaluations.append(_evaluation_row(start + period, sums))
    folder.mkdir(parents=True, exist_ok=True)
    _write_csv(folder / "metrics.csv", metrics)
    _write_csv(folder / "eval.csv", evaluations)
    value = evaluations[-1]["neg_log_perplexity"]
    print(f"{run['model_dir']}: {value:.4f} after {run['steps']} steps, {time.monotonic() - began:.1f} s", flush=True)


def _exported(path: pathlib.Path) -> Any:
    return jax.export.deserialize(bytearray(path.read_bytes())).call


def _arrays(path: pathlib.Path) -> dict[str, jax.Array]:
    with np.load(path) as arrays:
        return {name: jnp.asarray(arrays[name]) for name in arrays}


def _features(tokens: dict[str, jax.Array]) -> dict[str, jax.Array]:
    inputs, targets = (tokens[name].astype(jnp.int32) for name in ("encoder_input_tokens", "decoder_target_tokens"))
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets != 0).astype(jnp.int32),
    }


def _last_row(step: int, metrics: Tree) -> dict[str, float]:
    """Returns the scalars of the last step of a loop over steps."""
    row: dict[str, float] = {"step": step}
    row |= {name: float(value[-1]) for name, value in metrics.items() if not isinstance(value, dict)}
    for layer, routing in metrics["routing"].items():
        row |= {f"{layer}/{name}": float(value[-1]) for name, value in routing.items() if value.ndim == 1}
    return row


def _evaluation_row(step: int, sums: Tree) -> dict[str, float]:
    tokens = float(sums["tokens"]["tokens"])
    loss = float(sums["tokens"]["negative_log_likelihood"]) / tokens
    row = {"step": step, "neg_log_perplexity": -loss, "accuracy": float(sums["tokens"]["correct"]) / tokens}
    row |= {"target_tokens": tokens, "balance_loss": float(sums["balance_loss"] / sums["batches"])}
    for layer, routing in sums["routing"].items():
        row |= {f"{layer}/{name}": float(value / sums["batches"]) for name, value in routing.items() if value.ndim == 0}
    assert math.isfinite(loss), step
    return row


def _write_csv(path: pathlib.Path, rows: list[dict[str, float]]) -> None:
    beside = path.with_suffix(".part")
    with open(beside, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    beside.replace(path)


if __name__ == "__main__":
    main()
