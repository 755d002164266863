"""Runs grouped by what they are but for the seed, their mean curves, and how much sooner they reach a baseline."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from switch_tf.report.run_records import RunRecords
from switch_tf.report.study_tables import reaches

UNITS = ("steps", "tokens", "hours", "FLOPs")
_SEED = re.compile(r"[-_.]?seed[-_=]?\d+$")
# What differs between the runs of a group.
_OF_A_RUN = {"SEED", "MODEL_DIR", "Experiment.seed", "Experiment.model_dir"}


class Group(NamedTuple):
    """Runs with equal settings but for the seed.

    name: of the runs, without their seeds.
    runs: in the order in which they were given.
    """

    name: str
    runs: list[RunRecords]

    @property
    def is_sparse(self) -> bool:
        """Whether the model has experts."""
        return bool(self.runs[0].experiment.model.sparse_layer_names)


class Curve(NamedTuple):
    """A group's held-out curve: steps [T] that all its runs have, mean [T] and standard deviation [T] over the runs."""

    steps: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray


class SpeedUp(NamedTuple):
    """How soon a group reaches the best value of the baseline.

    best: the best value of the group's mean curve.
    lead: that minus the baseline's.
    positions: where its curve reaches the baseline's best value, by unit; NaN where it does not.
    factors: the baseline's position of its best value, divided by those.
    """

    best: float
    lead: float
    positions: dict[str, float]
    factors: dict[str, float]


def settings_of(run: RunRecords) -> dict[str, str]:
    """Returns the lines of a run's config.gin that may not differ within a group."""
    return {name: value for name, value in run.bindings.items() if name not in _OF_A_RUN}


def group_runs(runs: Sequence[RunRecords]) -> list[Group]:
    """Groups runs whose config.gin differs in the seed alone."""
    groups: list[Group] = []
    for run in runs:
        known = next((group for group in groups if settings_of(group.runs[0]) == settings_of(run)), None)
        if known is not None:
            known.runs.append(run)
        else:
            groups.append(Group(run.name, [run]))
    return [Group(_SEED.sub("", group.name) or group.name, group.runs) for group in groups]


def curve_of(group: Group) -> Curve | None:
    """Averages the held-out curves of a group's runs; None if they share no evaluated step."""
    tables = [
        dict(zip(run.evaluations["step"], run.evaluations["neg_log_perplexity"]))
        for run in group.runs
        if "step" in run.evaluations
    ]
    steps = sorted(set.intersection(*map(set, tables))) if tables else []
    if not steps:
        return None
    values = np.array([[table[step] for step in steps] for table in tables])
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
    return Curve(np.array(steps), values.mean(axis=0), deviation)


def positions(group: Group, steps: np.ndarray, unit: str) -> np.ndarray:
    """Converts a group's steps to a unit; hours are those of its mean run."""
    return np.mean([run.positions(steps, unit) for run in group.runs], axis=0)


def baseline_of(groups: Sequence[Group], name: str | None = None) -> Group | None:
    """Finds the baseline: the group or run of that name, or else the first dense group beside a sparse one.

    Returns:
      None if there is no such group.
    """
    if name is not None:
        return next((group for group in groups if name in (group.name, *(run.name for run in group.runs))), None)
    dense = [group for group in groups if not group.is_sparse]
    return dense[0] if dense and len(dense) < len(groups) else None


def speed_up(group: Group, baseline: Group) -> SpeedUp | None:
    """Compares a group with the baseline (the paper's Figures 4 to 6); None if one of them has no evaluations."""
    curve, base = curve_of(group), curve_of(baseline)
    if curve is None or base is None or not (np.isfinite(curve.mean).any() and np.isfinite(base.mean).any()):
        return None
    target = float(np.nanmax(base.mean))
    best_step = base.steps[[int(np.nanargmax(base.mean))]]
    reached = {unit: reaches(positions(group, curve.steps, unit), curve.mean, target) for unit in UNITS}
    factors = {unit: float(positions(baseline, best_step, unit)[0]) / reached[unit] for unit in UNITS}
    return SpeedUp(float(np.nanmax(curve.mean)), float(np.nanmax(curve.mean)) - target, reached, factors)
