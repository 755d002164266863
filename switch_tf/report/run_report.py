"""`report.html`: everything about one run or several on one page that needs neither a network nor a server."""

import html
import os
from collections.abc import Sequence

import numpy as np

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.health.rules import periods
from switch_tf.planning.costs import human
from switch_tf.report.findings import Finding, findings_of
from switch_tf.report.html_elements import figure_grid, page, table
from switch_tf.report.router_sections import router_section, thinned
from switch_tf.report.run_records import Columns, RunRecords
from switch_tf.report.speedups import (
    UNITS,
    Group,
    baseline_of,
    curve_of,
    group_runs,
    positions,
    settings_of,
    speed_up,
)
from switch_tf.report.svg_charts import NUM_COLORS, Line, line_chart, short

# Points of all lines, and pixels of all heat maps, on a page: together some 3 MB.
_LINE_POINTS = 150_000
_MAP_PIXELS = 1_500_000
_LINES_OF_A_LAYER = 10
_LABELS = {"steps": "step", "tokens": "tokens", "hours": "hours of updates", "FLOPs": "training FLOPs (matmuls)"}


def _budget(total: int, parts: int, least: int, most: int) -> int:
    return max(least, min(most, total // max(parts, 1)))


def _duration(seconds: float) -> str:
    if np.isnan(seconds):
        return ""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _last(columns: Columns, name: str) -> str:
    return f"{columns[name][-1]:.4f}" if name in columns else ""


def _facts(run: RunRecords) -> dict[str, str]:
    """Returns what a run was, by name."""
    experiment, costs = run.experiment, run.costs
    model = experiment.model
    steps = f"{run.last_step:,}" + (f" of {run.train_steps:,}" if run.train_steps else "")
    speeds = run.steps.get("tokens_per_second", np.array([]))
    layers = f"{model.num_encoder_layers} + {model.num_decoder_layers} layers, d_model {model.d_model}"
    sparse = f", {model.num_sparse_layers} of them with {model.num_experts} experts" if model.sparse_layer_names else ""
    return {
        "model": f"{layers}, d_ff {model.d_ff}{sparse}",
        "router": f"{model.router}, capacity factor {model.capacity_factor:g}" if sparse else "",
        "data": f"{experiment.mixture_or_task}, {experiment.batch_size} x {dict(experiment.task_feature_lengths)}",
        "devices": f"{experiment.engine}{f', {experiment.mesh_shape}' if experiment.mesh_shape else ''}",
        "parameters": human(costs["parameters"]),
        "active per token": human(costs["active_parameters_per_token"]),
        "weights and slots": human(costs["weight_bytes"] + costs["slot_bytes"], "B"),
        "FLOPs per sequence": human(costs["forward_flops_per_sequence"]),
        "steps": steps,
        "tokens": human(run.last_step * run.tokens_per_step),
        "training time": _duration(float(run.seconds(np.array([run.last_step]))[0])),
        "tokens/s (median)": f"{np.nanmedian(speeds):,.0f}" if len(speeds) else "",
        "held-out NLP": _last(run.evaluations, "neg_log_perplexity"),
        "held-out accuracy": _last(run.evaluations, "accuracy"),
        "versions": ", ".join(f"{name} {version}" for name, version in run.versions.items()),
    }


def _overview(runs: Sequence[RunRecords]) -> str:
    facts = [_facts(run) for run in runs]
    rows = [[name, *(of[name] for of in facts)] for name in facts[0] if any(of[name] for of in facts)]
    text = table(["", *(run.name for run in runs)], rows, wrapped=True)
    return "<h2>Runs</h2>" + text + "<p>NLP: negative log perplexity, nats per target token; higher is better.</p>"


def _differences(runs: Sequence[RunRecords]) -> str:
    settings = [settings_of(run) for run in runs]
    names = sorted(set().union(*settings))
    rows = [[name, *(of.get(name, "") for of in settings)] for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if not rows:
        return ""
    return "<h3>Settings that differ</h3>" + table(["", *(run.name for run in runs)], rows, wrapped=True)


def _finding_items(run: RunRecords) -> list[str]:
    """Returns an item for each rule and layer; one that held several times names all of them."""
    found: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings_of(run):
        found.setdefault((finding.layer, finding.rule), []).append(finding)
    items = []
    for (_, rule), findings in found.items():
        findings = sorted(findings, key=lambda finding: finding.since)
        spans = [
            f"since step {finding.since}" if finding.until is None else f"steps {finding.since} to {finding.until}"
            for finding in findings
        ]
        end = "" if findings[-1].until is None else "; no longer"
        sentence = html.escape(findings[-1].sentence)
        items.append(f'<li class="finding {rule}">{sentence} <span class="since">({", ".join(spans)}{end})</span></li>')
    return items


def _findings(runs: Sequence[RunRecords]) -> str:
    parts = []
    for run in runs:
        if not run.experiment.model.sparse_layer_names:
            continue
        items, name = _finding_items(run), html.escape(run.name)
        if items:
            parts.append(f"<h3>{name}</h3><ul>{''.join(items)}</ul>")
        elif "step" not in run.steps:
            parts.append(f"<h3>{name}</h3><p>No step has been recorded yet.</p>")
        elif not run.loads or run.last_step < sum(periods(run.train_steps or run.last_step)):
            parts.append(f"<h3>{name}</h3><p>Too few steps have been recorded to judge the routers.</p>")
        else:
            parts.append(f'<h3>{name}</h3><p class="good">No router shows a fault.</p>')
    return "<h2>Findings</h2>" + "".join(parts) if parts else ""


def _quality_lines(groups: Sequence[Group], unit: str, points: int) -> list[Line]:
    lines = []
    for index, group in enumerate(groups):
        style = f"c{index % NUM_COLORS}"
        for run in group.runs:
            if "neg_log_perplexity" in run.steps:
                x = run.positions(run.steps["step"], unit)
                thin = thinned(x, run.steps["neg_log_perplexity"], points)
                lines.append(Line(f"{run.name}, training", *thin, f"{style} thin"))
        curve = curve_of(group)
        if curve is not None:
            low, high = curve.mean - curve.deviation, curve.mean + curve.deviation
            band = (low, high) if len(group.runs) > 1 else None
            at = positions(group, curve.steps, unit)
            lines.append(Line(f"{group.name}, held-out", at, curve.mean, style, band, has_dots=True))
    return lines


def _curves(groups: Sequence[Group], points: int) -> str:
    charts = []
    for unit in UNITS:
        lines = _quality_lines(groups, unit, points)
        if not lines:
            return "<h2>Learning curves</h2><p>No step has been recorded yet.</p>"
        # The first steps of training would stretch the axis over everything else.
        values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
        if not len(values):
            return "<h2>Learning curves</h2><p>No loss that has been recorded is finite.</p>"
        limits = (float(np.quantile(values, 0.1)) - 0.2, float(values.max()) + 0.1)
        charts.append(line_chart("negative log perplexity (higher is better)", _LABELS[unit], lines, limits))
    entries = [
        (f"c{index % NUM_COLORS}", f"{group.name} ({len(group.runs)} seeds)" if len(group.runs) > 1 else group.name)
        for index, group in enumerate(groups)
    ]
    note = "<p>Thin: training. Dots: held-out; the band is one standard deviation over seeds.</p>"
    if all("step" not in run.evaluations for group in groups for run in group.runs):
        note = "<p>Training only: no evaluation on held-out data has been recorded yet.</p>"
    return "<h2>Learning curves</h2>" + note + figure_grid(charts, entries)


def _speed_ups(groups: Sequence[Group], baseline: Group) -> str:
    rows = []
    for group in groups:
        result = None if group is baseline else speed_up(group, baseline)
        if result is not None:
            reached = [
                "not reached"
                if np.isnan(result.factors[unit])
                else f"{short(result.positions[unit])} ({result.factors[unit]:.2f}x)"
                for unit in UNITS
            ]
            rows.append([group.name, f"{result.best:.4f}", f"{result.lead:+.4f}", *reached])
    if not rows:
        return ""
    header = ["", "best NLP", "lead", *(f"{unit} to reach it" for unit in UNITS)]
    return f"<h3>Speed-up over {html.escape(baseline.name)}, to its best held-out value</h3>" + table(header, rows)


def report_page(runs: Sequence[RunRecords], baseline: str | None = None) -> str:
    """Makes the page.

    Args:
      runs: in the order in which they are shown.
      baseline: a run or group by its name, that speed-ups compare with; None: the first dense one.

    Returns:
      HTML.

    Raises:
      SettingError: if no run has the baseline's name.
    """
    groups = group_runs(runs)
    base = baseline_of(groups, baseline)
    if baseline is not None and base is None:
        names = ", ".join(group.name for group in groups)
        raise SettingError(f"--baseline={baseline} is none of the runs: choose one of {names}.")
    num_layers = sum(len(run.loads) for run in runs)
    num_lines = _LINES_OF_A_LAYER * num_layers + 4 * len(runs)
    points = _budget(_LINE_POINTS, num_lines, 16, 200)
    num_rows = sum(min(256, loads.shape[1]) for run in runs for _, loads in run.loads.values())
    columns = _budget(_MAP_PIXELS, num_rows, 8, 160)
    parts = [_findings(runs), _overview(runs), _differences(runs), _curves(groups, points)]
    if base is not None:
        parts.append(_speed_ups(groups, base))
    for run in runs:
        if run.loads:
            parts.append(f"<h2>Routers of {html.escape(run.name)}</h2>{router_section(run, points, columns)}")
    return page("Report of " + ", ".join(run.name for run in runs), "\n".join(parts))


def write_report(runs: Sequence[RunRecords], output: str, baseline: str | None = None) -> str:
    """Writes `report.html`.

    Args:
      runs: see `report_page`.
      output: a folder.
      baseline: see `report_page`.

    Returns:
      The file's path.

    Raises:
      SettingError: if no run has the baseline's name.
    """
    text = report_page(runs, baseline)
    storage.make_folder(output)
    path = os.path.join(output, "report.html")
    storage.write_atomically(path, text)
    return path
