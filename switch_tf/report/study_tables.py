"""Tables and plots of a study: means and standard deviations over seeds, and the speed-up over a baseline."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # No screen is needed to write a file.
import matplotlib.pyplot as plt
import numpy as np
import tensorflow as tf
from tabulate import tabulate

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.runs.recorder import read_csv
from switch_tf.runs.study import Study, StudyRun

CURVE_COLUMNS = ("variant", "seed", "step", "tokens", "neg_log_perplexity", "accuracy")
SUMMARY_COLUMNS = (
    "variant",
    "seeds",
    "steps",
    "neg_log_perplexity",
    "std",
    "lead",
    "lead_std",
    "steps_to_baseline",
    "speedup_steps",
    "speedup_tokens",
    "tokens_per_second",
)


class Curves(NamedTuple):
    """The held-out curves of one variant's finished runs.

    steps: int [T].
    tokens: int [T].
    values: float [seeds, T], negative log perplexity.
    seeds: of each row.
    tokens_per_second: median over all steps of all seeds.
    """

    steps: np.ndarray
    tokens: np.ndarray
    values: np.ndarray
    seeds: tuple[int, ...]
    tokens_per_second: float


def read_curves(runs: Sequence[StudyRun]) -> dict[str, Curves]:
    """Reads the curves of all runs that are done, by variant.

    Raises:
      SettingError: if runs of one variant were evaluated at different steps.
    """
    done: dict[str, list[StudyRun]] = {}
    for run in runs:
        if run.is_done():
            done.setdefault(run.variant, []).append(run)
    curves = {}
    for variant, runs_of_variant in done.items():
        rows = [run.evaluations() for run in runs_of_variant]
        steps = [[int(row["step"]) for row in rows_of_run] for rows_of_run in rows]
        if any(other != steps[0] for other in steps):
            raise SettingError(f"The runs of '{variant}' were evaluated at different steps: set one EVAL_PERIOD.")
        curves[variant] = Curves(
            np.array(steps[0]),
            np.array(steps[0]) * runs_of_variant[0].tokens_per_step,
            np.array([[float(row["neg_log_perplexity"]) for row in rows_of_run] for rows_of_run in rows]),
            tuple(run.seed for run in runs_of_variant),
            float(np.median(np.concatenate([_speeds(run) for run in runs_of_variant]))),
        )
    return curves


def _speeds(run: StudyRun) -> np.ndarray:
    return np.array([float(row["tokens_per_second"]) for row in read_csv(os.path.join(run.model_dir, "metrics.csv"))])


def reaches(positions: np.ndarray, values: np.ndarray, target: float) -> float:
    """Returns where a curve first reaches a value, interpolated between its points; NaN where it does not.

    Args:
      positions: [T], rising: steps or tokens.
      values: [T].
      target: the value.
    """
    above = np.flatnonzero(values >= target)
    if not len(above):
        return float("nan")
    index = above[0]
    if index == 0:
        return float(positions[0])
    before, after = values[index - 1], values[index]
    share = (target - before) / (after - before)
    return float(positions[index - 1] + share * (positions[index] - positions[index - 1]))


def _spread(values: np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")


def summary(curves: Mapping[str, Curves], baseline: str) -> list[dict[str, object]]:
    """Sums up each variant beside the baseline.

    Args:
      curves: by variant.
      baseline: a variant; where it is not among them, what compares with it is NaN.

    Returns:
      A row for each variant by `SUMMARY_COLUMNS`. `lead` is the mean over the seeds that both have of the difference
      of the last values; `steps_to_baseline` is where the mean curve reaches the baseline's last mean value.
    """
    base = curves.get(baseline)
    rows: list[dict[str, object]] = []
    for variant, curve in curves.items():
        mean = curve.values.mean(axis=0)
        lead = np.array([])
        to_steps = to_tokens = float("nan")
        if base is not None:
            shared = [seed for seed in curve.seeds if seed in base.seeds]
            last = [curve.values[curve.seeds.index(seed), -1] for seed in shared]
            lead = np.array(last) - np.array([base.values[base.seeds.index(seed), -1] for seed in shared])
            target = base.values[:, -1].mean()
            to_steps, to_tokens = reaches(curve.steps, mean, target), reaches(curve.tokens, mean, target)
        row = (
            variant,
            len(curve.seeds),
            int(curve.steps[-1]),
            float(mean[-1]),
            _spread(curve.values[:, -1]),
            float(lead.mean()) if len(lead) else float("nan"),
            _spread(lead),
            to_steps,
            float(base.steps[-1]) / to_steps if base is not None else float("nan"),
            float(base.tokens[-1]) / to_tokens if base is not None else float("nan"),
            curve.tokens_per_second,
        )
        rows.append(dict(zip(SUMMARY_COLUMNS, row)))
    return rows


def _text(value: object, digits: int = 4) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.{digits}f}"
    return str(value)


def _write_csv(path: str, columns: Sequence[str], rows: Sequence[Mapping[str, object]]) -> None:
    with tf.io.gfile.GFile(path, "w") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _text(value, 6) for name, value in row.items()} for row in rows)


def _curve_rows(runs: Sequence[StudyRun]) -> list[dict[str, object]]:
    return [
        {
            "variant": run.variant,
            "seed": run.seed,
            "step": int(row["step"]),
            "tokens": int(row["step"]) * run.tokens_per_step,
            "neg_log_perplexity": float(row["neg_log_perplexity"]),
            "accuracy": float(row["accuracy"]),
        }
        for run in runs
        if run.is_done()
        for row in run.evaluations()
    ]


def plot(curves: Mapping[str, Curves], path: str) -> None:
    """Draws the mean curve of each variant with a band of one standard deviation, and the last values."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(curves)))
    for (variant, curve), color in zip(curves.items(), colors):
        mean, spread = curve.values.mean(axis=0), curve.values.std(axis=0, ddof=min(1, len(curve.seeds) - 1))
        left.plot(curve.tokens / 1e6, mean, "o-", markersize=3, color=color, label=f"{variant} ({len(curve.seeds)})")
        left.fill_between(curve.tokens / 1e6, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
    left.set(xlabel="million tokens", ylabel="held-out negative log perplexity (nats; higher is better)")
    left.grid(alpha=0.3)
    left.legend(loc="lower right", title="mean and standard deviation (seeds)")
    places = np.arange(len(curves))
    last = [curve.values[:, -1] for curve in curves.values()]
    right.errorbar(
        places, [values.mean() for values in last], [np.nan_to_num(_spread(values)) for values in last], fmt="o"
    )
    right.set_xticks(places, list(curves), rotation=30, ha="right")
    right.set(ylabel="the same, at the end")
    right.grid(alpha=0.3)
    image = io.BytesIO()
    figure.savefig(image, dpi=120)
    plt.close(figure)
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(image.getvalue())


def write_report(study: Study, runs: Sequence[StudyRun]) -> None:
    """Prints the table and writes `curves.csv`, `summary.csv` and `curves.png` into the study's folder.

    Raises:
      SettingError: if no run is done.
    """
    curves = read_curves(runs)
    if not curves:
        raise SettingError(f"No run in {study.folder} is done yet: there is nothing to report.")
    storage.make_folder(study.folder)
    rows = summary(curves, study.baseline_name)
    _write_csv(os.path.join(study.folder, "curves.csv"), CURVE_COLUMNS, _curve_rows(runs))
    _write_csv(os.path.join(study.folder, "summary.csv"), SUMMARY_COLUMNS, rows)
    plot(curves, os.path.join(study.folder, "curves.png"))
    table = [[_text(row[name]) for name in SUMMARY_COLUMNS] for row in rows]
    print(tabulate(table, SUMMARY_COLUMNS, tablefmt="plain", disable_numparse=True))
    print(
        f"Lead and speed-up are over '{study.baseline_name}'. Wrote curves.csv, summary.csv and curves.png into",
        end=" ",
    )
    print(f"{study.folder}.")
