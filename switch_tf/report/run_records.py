"""What a model directory says about its run: settings, costs, and the numbers of its steps and evaluations."""

import dataclasses
import functools
import os
import re
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.planning.costs import description
from switch_tf.report.sampled_csv import numbers, read_evenly
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.model_directory import read_description

Columns = Mapping[str, np.ndarray]
# A pass forward and one back, which costs twice as much.
_TRAINING_PASSES = 3
# Long values go on over several lines that are indented.
_BINDING = re.compile(r"^([\w./]+) = (.*(?:\n[ \t]+\S.*)*)", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class RunRecords:
    """One run.

    Attributes:
      model_dir: where it is.
      experiment: its settings.
      train_steps: how many updates it is to make; None if its config.gin does not say.
      bindings: the lines of its config.gin, by parameter or macro.
      versions: of the packages, by name.
      costs: what `description` counts.
      steps: columns of metrics.csv (float [T]; of a large file a sample), empty before the first row.
      evaluations: columns of eval.csv.
      loads: of each sparse layer (steps [T], expert loads [T, E]).
    """

    model_dir: str
    experiment: Experiment
    train_steps: int | None
    bindings: Mapping[str, str]
    versions: Mapping[str, str]
    costs: Mapping[str, int]
    steps: Columns
    evaluations: Columns
    loads: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def name(self) -> str:
        """The last part of the directory's path."""
        return os.path.basename(os.path.normpath(self.model_dir))

    @property
    def last_step(self) -> int:
        """The newest step with a row; 0 before the first."""
        return int(self.steps["step"][-1]) if "step" in self.steps else 0

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a batch, inputs and targets, padding included."""
        return self.experiment.batch_size * sum(self.experiment.task_feature_lengths.values())

    @property
    def flops_per_step(self) -> int:
        """Matmul FLOPs of one update."""
        return _TRAINING_PASSES * self.costs["forward_flops_per_sequence"] * self.experiment.batch_size

    @functools.cached_property
    def _seconds(self) -> tuple[np.ndarray, np.ndarray]:
        steps = self.steps["step"]
        speeds = self.steps["tokens_per_second"]
        known = np.isfinite(speeds) & (speeds > 0)
        steps, durations = steps[known], self.tokens_per_step / speeds[known]
        return steps, np.cumsum(np.diff(steps, prepend=0) * durations)

    def seconds(self, steps: np.ndarray) -> np.ndarray:
        """Returns the time spent on updates until each of some steps; evaluations and checkpoints do not count."""
        known, seconds = self._seconds if "tokens_per_second" in self.steps else (np.array([]), np.array([]))
        return np.interp(steps, known, seconds) if len(known) else np.full(len(steps), np.nan)

    def positions(self, steps: np.ndarray, unit: str) -> np.ndarray:
        """Converts steps to "steps", "tokens", "hours" or "FLOPs"."""
        if unit == "hours":
            return self.seconds(steps) / 3600
        return steps * {"steps": 1, "tokens": self.tokens_per_step, "FLOPs": self.flops_per_step}[unit]


def _columns(path: str) -> dict[str, np.ndarray]:
    rows = read_evenly(path)
    values = numbers(rows.values)
    return {name: values[:, index] for index, name in enumerate(rows.columns)} if len(values) else {}


def _loads(path: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rows = read_evenly(path)
    by_layer: dict[str, list[list[str]]] = {}
    for step, layer, *loads in rows.values:
        by_layer.setdefault(layer, []).append([step, *loads])
    tables = {layer: numbers(values) for layer, values in by_layer.items()}
    return {layer: (table[:, 0], table[:, 1:]) for layer, table in tables.items() if len(table)}


def _versions(model_dir: str) -> dict[str, str]:
    path = os.path.join(model_dir, "versions.txt")
    if not storage.exists(path):
        return {}
    with tf.io.gfile.GFile(path) as file:
        lines = file.read().splitlines()
    return dict(line.split("==", 1) for line in lines if "==" in line)


def read_run(model_dir: str) -> RunRecords:
    """Reads a model directory, which may be written to meanwhile.

    Raises:
      SettingError: if it holds no config.gin, or this version of the project cannot read it.
    """
    text = read_description(model_dir)
    gin_config.load([], [f"MODEL_DIR = {model_dir!r}"], recorded=text)
    experiment = Experiment()
    lengths = experiment.task_feature_lengths
    return RunRecords(
        model_dir=model_dir,
        experiment=experiment,
        train_steps=gin_config.parameter("train.steps", None),
        bindings={name: " ".join(value.strip("\\ ").split()) for name, value in _BINDING.findall(text)},
        versions=_versions(model_dir),
        costs=description(experiment.model, lengths["inputs"], lengths["targets"]),
        steps=_columns(os.path.join(model_dir, "metrics.csv")),
        evaluations=_columns(os.path.join(model_dir, "eval.csv")),
        loads=_loads(os.path.join(model_dir, "experts.csv")),
    )
