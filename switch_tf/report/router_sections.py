"""The part of a run's page about its routers: charts of every measure, heat maps of the loads, a table of the end."""

import math

import numpy as np

from switch_tf.health.rules import Thresholds, percent, starved_experts
from switch_tf.report.findings import window_at
from switch_tf.report.html_elements import figure_grid, table
from switch_tf.report.run_records import RunRecords
from switch_tf.report.svg_charts import NUM_COLORS, Line, heat_map, line_chart

# Measures that are columns of metrics.csv, with the titles of their charts.
_CHARTS = {
    "fraction_dropped": "share of the tokens dropped",
    "router_entropy": "router entropy (nats)",
    "router_confidence": "probability of the first choice",
    "norm_scale": "scale of the input norm (RMS)",
    "router_gradient": "gradient norm of the router",
    "expert_gradient": "gradient norm of the experts",
    "router_update": "relative step of the router",
    "expert_update": "relative step of the experts",
}
# Loads are drawn as their binary logarithm relative to an equal share, from an eighth to eight times of it.
_LOAD_LIMIT = 3.0
_MOST_ROWS = 256


def thinned(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Averages a line over equal bins so that about `points` of it are left: x [T], y [T] -> (x [P], y [P])."""
    if len(x) <= points:
        return x, y
    edges = np.linspace(0, len(x), points + 1).astype(int)[:-1]
    counts = np.diff(np.append(edges, len(x)))
    return np.add.reduceat(x, edges) / counts, np.add.reduceat(y, edges) / counts


def _style(index: int, layer: str) -> str:
    return f"c{index % NUM_COLORS}{' dashed' if layer.startswith('decoder/') else ''}"


def _measure_lines(run: RunRecords, measure: str, points: int) -> list[Line]:
    lines = []
    for index, layer in enumerate(run.loads):
        name = f"{layer}/{measure}"
        if name in run.steps and np.isfinite(run.steps[name]).any():
            lines.append(Line(layer, *thinned(run.steps["step"], run.steps[name], points), _style(index, layer)))
    return lines


def _load_lines(run: RunRecords, points: int) -> list[Line]:
    lines = []
    for index, (layer, (steps, loads)) in enumerate(run.loads.items()):
        largest = loads.max(axis=1) * loads.shape[1]
        lines.append(Line(layer, *thinned(steps, largest, points), _style(index, layer)))
    return lines


def _relative_lines(run: RunRecords, points: int) -> list[Line]:
    lines = []
    for index, layer in enumerate(run.loads):
        names = [f"{layer}/output_size", f"{layer}/residual_size"]
        if all(name in run.steps for name in names):
            output, residual = (run.steps[name] for name in names)
            ratio = np.divide(output, residual, out=np.full(len(output), np.nan), where=residual > 0)
            lines.append(Line(layer, *thinned(run.steps["step"], ratio, points), _style(index, layer)))
    return lines


def charts_of(run: RunRecords, points: int) -> list[str]:
    """Draws every measure over the steps, a line for each sparse layer; of `points` points each."""
    num_experts = run.experiment.model.num_experts
    references = {
        "router_entropy": [(math.log(num_experts), f"ln {num_experts}: undecided")],
        "router_confidence": [(1 / num_experts, f"1/{num_experts}: undecided")],
        "norm_scale": [(1.0, "at the start")],
    }
    charts = [
        line_chart(
            "largest load, relative to an equal share", "step", _load_lines(run, points), references=[(1.0, "balance")]
        )
    ]
    relative = _relative_lines(run, points)
    if relative:
        charts.append(line_chart("size of the output, relative to the residual stream", "step", relative))
    for measure, title in _CHARTS.items():
        lines = _measure_lines(run, measure, points)
        if lines:
            charts.append(line_chart(title, "step", lines, references=references.get(measure, ())))
    return charts


def _pooled(loads: np.ndarray) -> np.ndarray:
    """Keeps of each block of experts the load that is farthest from balance: [T, E] -> [T, at most 256]."""
    size = -(-loads.shape[1] // _MOST_ROWS)
    if size == 1:
        return loads
    padded = np.pad(loads, ((0, 0), (0, -loads.shape[1] % size)))
    blocks = padded.reshape(len(loads), -1, size)
    farthest = np.abs(blocks).argmax(axis=-1)
    return np.take_along_axis(blocks, np.expand_dims(farthest, -1), axis=-1)[..., 0]


def load_maps(run: RunRecords, columns: int) -> list[str]:
    """Draws each layer's expert loads over the steps as a heat map of about so many columns."""
    maps = []
    for layer, (steps, loads) in run.loads.items():
        edges = np.unique(np.linspace(0, len(steps), min(columns, len(steps)) + 1).astype(int)[:-1])
        counts = np.diff(np.append(edges, len(steps))).reshape(-1, 1)
        means = np.add.reduceat(loads, edges, axis=0) / counts
        logarithms = np.log2(np.maximum(means * loads.shape[1], 2.0**-_LOAD_LIMIT))
        rows = _pooled(logarithms)
        # The last block may be padded.
        top = rows.shape[1] * -(-loads.shape[1] // rows.shape[1])
        maps.append(heat_map(f"{layer}: expert", "step", steps[edges], rows, _LOAD_LIMIT, float(top)))
    return maps


def _number(value: float, digits: int = 2) -> str:
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def end_table(run: RunRecords) -> str:
    """Tabulates each layer's measures over the last 100 steps."""
    header = ["layer", "largest / mean load", "smallest / mean", "starved", "dropped", "entropy / ln E", "gate x E"]
    rows = []
    for layer in run.loads:
        window = window_at(run, layer, run.last_step - 100, run.last_step)
        if window is None:
            continue
        experts = window.num_experts
        entropy = window.router_entropy / math.log(experts) if experts > 1 else math.nan
        rows.append(
            [
                layer,
                _number(window.expert_load.max() * experts),
                _number(window.expert_load.min() * experts),
                str(len(starved_experts(window, Thresholds()))),
                percent(window.fraction_dropped),
                _number(entropy),
                _number(window.router_confidence * experts),
                "" if math.isnan(window.relative_output) else percent(window.relative_output),
                _number(window.norm_scale, 3),
            ]
        )
    return table([*header, "output / residual", "norm scale"], rows)


def legend_of(run: RunRecords) -> list[tuple[str, str]]:
    """Returns (style, label) of each sparse layer's lines."""
    return [(_style(index, layer), layer) for index, layer in enumerate(run.loads)]


def router_section(run: RunRecords, points: int, columns: int) -> str:
    """Returns the HTML about a sparse run's routers: table, charts, heat maps."""
    return (
        end_table(run)
        + figure_grid(charts_of(run, points), legend_of(run))
        + "<p>Loads, relative to an equal share: blue an eighth or less, red eight times or more.</p>"
        + figure_grid(load_maps(run, columns))
    )
