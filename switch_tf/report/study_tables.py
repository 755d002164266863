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

# What is compared, unless a study says otherwise; then the column has the name of that.
MEASURE = "neg_log_perplexity"
CURVE_COLUMNS = ("variant", "seed", "step", "tokens", MEASURE, "accuracy")
SUMMARY_COLUMNS = (
    "variant",
    "seeds",
    "steps",
    MEASURE,
    "std",
    "lead",
    "lead_std",
    "steps_to_baseline",
    "speedup_steps",
    "speedup_tokens",
    "tokens_per_second",
)
# Of a study with a teacher.
SHARE_COLUMNS = ("share_of_gain", "share_std")


class Curves(NamedTuple):
    """The held-out curves of one variant's finished runs.

    steps: int [T].
    tokens: int [T].
    values: float [seeds, T], negative log perplexity, or the score that the study compares.
    final: float [seeds], what is compared: the last negative log perplexity, or the highest score.
    seeds: of each row.
    tokens_per_second: median over all steps of all seeds.
    """

    steps: np.ndarray
    tokens: np.ndarray
    values: np.ndarray
    final: np.ndarray
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
        found = [run.curve() for run in runs_of_variant]
        if not all(found):
            continue  # A run that the study only starts from has no such score.
        steps = [[step for step, _ in curve] for curve in found]
        if any(other != steps[0] for other in steps):
            raise SettingError(f"The runs of '{variant}' were evaluated at different steps: set one EVAL_PERIOD.")
        values = np.array([[value for _, value in curve] for curve in found])
        curves[variant] = Curves(
            np.array(steps[0]),
            np.array(steps[0]) * runs_of_variant[0].tokens_per_step,
            values,
            values[:, -1] if runs_of_variant[0].score is None else values.max(axis=1),
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


def _leads(curve: Curves, base: Curves | None) -> dict[int, float]:
    """The lead over the baseline by seed, of the seeds that both have."""
    if base is None:
        return {}
    theirs = dict(zip(base.seeds, base.final))
    return {seed: float(value - theirs[seed]) for seed, value in zip(curve.seeds, curve.final) if seed in theirs}


def _share_of_gain(leads: Mapping[int, float], gains: Mapping[int, float]) -> dict[str, object]:
    """The share of a teacher's gain over the baseline that a variant keeps: of the means, and its spread over seeds."""
    shared = [seed for seed in leads if seed in gains]
    if not shared:
        return dict.fromkeys(SHARE_COLUMNS, float("nan"))
    kept, gain = (np.array([values[seed] for seed in shared]) for values in (leads, gains))
    return dict(zip(SHARE_COLUMNS, (float(kept.mean() / gain.mean()), _spread(kept / gain))))


def summary(curves: Mapping[str, Curves], baseline: str, teacher: str | None = None) -> list[dict[str, object]]:
    """Sums up each variant beside the baseline.

    Args:
      curves: by variant.
      baseline: a variant; where it is not among them, what compares with it is NaN.
      teacher: the variant whose gain is to be kept; None for none.

    Returns:
      A row for each variant by `SUMMARY_COLUMNS` and `SHARE_COLUMNS`. `lead` is the mean over the seeds that both have
      of the difference of the final values; `steps_to_baseline` is where the mean curve reaches the baseline's final
      mean value; `share_of_gain` is the lead over that of the teacher (Sec. 4.2).
    """
    base = curves.get(baseline)
    gains = _leads(curves[teacher], base) if teacher is not None and teacher in curves else {}
    rows: list[dict[str, object]] = []
    for variant, curve in curves.items():
        mean = curve.values.mean(axis=0)
        leads = _leads(curve, base)
        lead = np.array(list(leads.values()))
        to_steps = to_tokens = float("nan")
        if base is not None:
            target = base.final.mean()
            to_steps, to_tokens = reaches(curve.steps, mean, target), reaches(curve.tokens, mean, target)
        row = (
            variant,
            len(curve.seeds),
            int(curve.steps[-1]),
            float(curve.final.mean()),
            _spread(curve.final),
            float(lead.mean()) if len(lead) else float("nan"),
            _spread(lead),
            to_steps,
            float(base.steps[-1]) / to_steps if base is not None else float("nan"),
            float(base.tokens[-1]) / to_tokens if base is not None else float("nan"),
            curve.tokens_per_second,
        )
        rows.append(dict(zip(SUMMARY_COLUMNS, row)) | _share_of_gain(leads, gains))
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
            MEASURE: float(row[MEASURE]),
            "accuracy": float(row["accuracy"]),
        }
        for run in runs
        if run.is_done()
        for row in run.evaluations()
    ]


def _score_rows(runs: Sequence[StudyRun], score: str) -> list[dict[str, object]]:
    return [
        {"variant": run.variant, "seed": run.seed, "step": step, "tokens": step * run.tokens_per_step, score: value}
        for run in runs
        if run.is_done()
        for step, value in run.curve()
    ]


def plot(curves: Mapping[str, Curves], path: str, measure: str = MEASURE) -> None:
    """Draws the mean curve of each variant with a band of one standard deviation, and the final values."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2), layout="constrained")
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(curves)))
    for (variant, curve), color in zip(curves.items(), colors):
        mean, spread = curve.values.mean(axis=0), curve.values.std(axis=0, ddof=min(1, len(curve.seeds) - 1))
        left.plot(curve.tokens / 1e6, mean, "o-", markersize=3, color=color, label=f"{variant} ({len(curve.seeds)})")
        left.fill_between(curve.tokens / 1e6, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)
    label = "held-out negative log perplexity (nats)" if measure == MEASURE else measure
    left.set(xlabel="million tokens", ylabel=label)
    left.grid(alpha=0.3)
    left.legend(loc="lower right", title="mean and standard deviation (seeds)")
    places = np.arange(len(curves))
    last = [curve.final for curve in curves.values()]
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
    measure = study.score or MEASURE
    columns = SUMMARY_COLUMNS if study.teacher is None else (*SUMMARY_COLUMNS, *SHARE_COLUMNS)
    rows = summary(curves, study.baseline_name, study.teacher)
    if study.score is None:
        _write_csv(os.path.join(study.folder, "curves.csv"), CURVE_COLUMNS, _curve_rows(runs))
    else:
        names = (*CURVE_COLUMNS[:4], measure)
        _write_csv(os.path.join(study.folder, "curves.csv"), names, _score_rows(runs, measure))
    header = [measure if name == MEASURE else name for name in columns]
    renamed = [dict(zip(header, (row[name] for name in columns))) for row in rows]
    _write_csv(os.path.join(study.folder, "summary.csv"), header, renamed)
    plot(curves, os.path.join(study.folder, "curves.png"), measure)
    table = [[_text(value) for value in row.values()] for row in renamed]
    print(tabulate(table, header, tablefmt="plain", disable_numparse=True))
    print(
        f"Lead and speed-up are over '{study.baseline_name}'. Wrote curves.csv, summary.csv and curves.png into",
        end=" ",
    )
    print(f"{study.folder}.")
