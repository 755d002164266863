"""Exports a study's runs for a machine with JAX and an accelerator: `tools/train_exported_study.py` trains them there.

    python -m tools.export_study gin/studies/experts.gin --output=exported --seeds=0,1,2

A run's training and evaluation step are exported as `switch-tf export --format=stablehlo` does it; its initial weights
and its batches are those that `switch-tf study` would train with. What several runs share is written once.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tqdm

from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.export.pure_programs import PureProgram, evaluation_step, training_step
from switch_tf.export.stablehlo import write_program
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.exporting import on_one_device
from switch_tf.runs.exporting_programs import features_of
from switch_tf.runs.run import Run
from switch_tf.runs.study import Study, StudyRun

# The other features of a batch follow from these two.
TOKENS = ("encoder_input_tokens", "decoder_target_tokens")


def main(words: Sequence[str] | None = None) -> None:
    """Writes programs, weights, batches and `runs.json`, which lists the runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="+", metavar="STUDY.gin")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="the folder to write, or to add to")
    parser.add_argument("--seeds", default="0", help="comma-separated (default: %(default)s)")
    parser.add_argument("--binding", action="append", default=[], help="of the studies, NAME=VALUE; repeatable")
    parser.add_argument("--skip", action="append", default=[], help="a variant that is not exported; repeatable")
    options = parser.parse_args(words)
    exporter = Exporter(options.output)
    seeds = tuple(map(int, options.seeds.split(",")))
    for study in options.studies:
        gin_config.load([study], [*options.binding, f"Study.seeds = {seeds}"])
        for run in tqdm.tqdm(Study().runs(), desc=study):
            if run.variant not in options.skip:
                exporter.add(run)


class Exporter:
    """Writes a folder of runs; a file is named by a digest of what determines it."""

    def __init__(self, folder: pathlib.Path):
        """Opens the folder.

        Args:
          folder: new, or with runs already.
        """
        self._folder = folder
        self._list = folder / "runs.json"
        self._runs: list[dict[str, Any]] = json.loads(self._list.read_text()) if self._list.exists() else []
        for name in ("programs", "arrays"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def add(self, study_run: StudyRun) -> None:
        """Exports one run."""
        gin_config.load(study_run.gin_files, study_run.bindings)
        experiment = on_one_device(gin_config.parameter("train.experiment", gin_file="gin/runs/pretrain.gin"))
        experiment.install_vocabulary()
        optimizer = gin_config.parameter("train.optimizer")()
        run = Run(experiment, optimizer)
        features = features_of(experiment)
        programs = {
            "train": training_step(run.model, optimizer, gin_config.parameter("train.objective"), features),
            "evaluate": evaluation_step(run.model, features),
        }
        weights = {name: variable.numpy() for name, variable in run.weights().items()}
        self._runs.append(
            {
                "model_dir": study_run.model_dir,
                "seed": study_run.seed,
                "steps": study_run.steps,
                "eval_period": gin_config.parameter("EvaluateHeldOut.period"),
                "tokens_per_step": study_run.tokens_per_step,
                "program": self._programs(study_run, programs),
                "weights": self._arrays(_digest_of_arrays(weights), lambda: weights),
                "training": self._training(experiment, study_run),
                "evaluation": self._evaluation(experiment),
            }
        )
        self._list.write_text(json.dumps(self._runs, indent=1))

    def _programs(self, run: StudyRun, programs: Mapping[str, PureProgram]) -> str:
        bindings = [line for line in run.bindings if not line.startswith(("SEED", "MODEL_DIR"))]
        name = _digest(run.gin_files, bindings)
        folder = self._folder / "programs" / name
        if not folder.exists():
            folder.mkdir()
            signatures = {program: write_program(str(folder), program, each) for program, each in programs.items()}
            for path in folder.glob("*.stablehlo"):  # The `.jax` files hold them too.
                path.unlink()
            (folder / "signatures.json").write_text(json.dumps(signatures, indent=1))
        return name

    def _training(self, experiment: Experiment, run: StudyRun) -> str:
        """Writes the batches of a run; a longer run of the same data begins with those of a shorter one."""
        name = _digest("training", _data(experiment), run.seed)
        path = self._folder / "arrays" / f"{name}.npz"
        if path.exists():
            with np.load(path) as arrays:
                if len(arrays[TOKENS[0]]) >= run.steps:
                    return name
            path.unlink()
        batches = experiment.training_batches(experiment.make_engine())
        return self._arrays(name, lambda: _tokens(next(batches) for _ in range(run.steps)))

    def _evaluation(self, experiment: Experiment) -> str:
        data, num_batches = _data(experiment), gin_config.parameter("EvaluateHeldOut.num_batches")
        name = _digest("evaluation", data, num_batches)
        return self._arrays(name, lambda: _tokens(evaluation_batches(*data, num_batches, "validation")))

    def _arrays(self, name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> str:
        path = self._folder / "arrays" / f"{name}.npz"
        if not path.exists():
            # numpy's annotation takes the names of arrays for its own flags.
            np.savez_compressed(path, **make())  # type: ignore[arg-type]
        return name


def _data(experiment: Experiment) -> tuple[str, dict[str, int], int]:
    return experiment.mixture_or_task, dict(experiment.task_feature_lengths), experiment.batch_size


def _tokens(batches: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Stacks the `TOKENS` of batches: uint16 [T, B, L]."""
    kept: dict[str, list[np.ndarray]] = {name: [] for name in TOKENS}
    for batch in batches:
        targets = np.asarray(batch["decoder_target_tokens"])
        shifted = np.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        assert np.array_equal(batch["decoder_input_tokens"], shifted)
        assert np.array_equal(batch["decoder_loss_weights"], targets != 0)
        for name, arrays in kept.items():
            arrays.append(np.asarray(batch[name]).astype(np.uint16))
    return {name: np.stack(arrays) for name, arrays in kept.items()}


def _digest(*settings: object) -> str:
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:16]


def _digest_of_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
