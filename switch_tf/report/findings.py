"""Findings of a finished or running run, from its records: the rules of `switch_tf.health` on window after window."""

from typing import NamedTuple

import numpy as np

from switch_tf.health.rules import AVERAGED, LayerWindow, Monitor, periods
from switch_tf.report.run_records import RunRecords

_MOST_WINDOWS = 200


class Finding(NamedTuple):
    """A finding of a run: what is wrong with which layer, since which step, and until which one (None: to the end)."""

    layer: str
    rule: str
    since: int
    until: int | None
    sentence: str


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def window_at(records: RunRecords, layer: str, begin: int, end: int) -> LayerWindow | None:
    """Averages a layer's records over the steps after `begin` until `end`.

    Returns:
      The window; None where no step or no load is recorded. Loads that are recorded seldom are the last ones before
      the end.
    """
    if layer not in records.loads or "step" not in records.steps:
        return None
    load_steps, loads = records.loads[layer]
    chosen = np.flatnonzero((load_steps > begin) & (load_steps <= end))
    if not len(chosen):
        chosen = np.flatnonzero(load_steps <= end)[-1:]
    rows = (records.steps["step"] > begin) & (records.steps["step"] <= end)
    if not len(chosen) or not rows.any():
        return None
    # Of a stack's tokens: its inputs or its targets.
    lengths = records.experiment.task_feature_lengths
    length = lengths["inputs" if layer.startswith("encoder/") else "targets"]
    means = {
        name: _mean(records.steps[f"{layer}/{name}"][rows]) if f"{layer}/{name}" in records.steps else float("nan")
        for name in AVERAGED
    }
    return LayerWindow(loads[chosen].mean(axis=0), len(chosen) * records.experiment.batch_size * length, **means)


def findings_of(records: RunRecords) -> list[Finding]:
    """Applies the rules to windows over the whole run.

    Args:
      records: of the run.

    Returns:
      Those that hold at the end first, then those that have ended, each in the order in which they began.
    """
    if "step" not in records.steps:
        return []
    settling, width = periods(records.train_steps or records.last_step)
    monitor = Monitor(width, records.experiment.model.capacity_factor)
    steps = records.steps["step"]
    candidates = steps[steps >= settling + width]
    ends = np.unique(
        candidates[np.linspace(0, len(candidates) - 1, _MOST_WINDOWS).astype(int)] if len(candidates) else []
    )
    begun: dict[tuple[str, str], int] = {}
    sentences: dict[tuple[str, str], str] = {}
    ended = []
    for end in ends.astype(int):
        windows = {layer: window_at(records, layer, max(end - width, settling), end) for layer in records.loads}
        events = monitor.check(int(end), {layer: window for layer, window in windows.items() if window is not None})
        for event in events:
            key = event.layer, event.rule
            if event.begins:
                begun[key] = event.step
            else:
                ended.append(Finding(*key, begun.pop(key), event.step, sentences[key]))
        sentences |= {key: active.sentence for key, active in monitor.active.items()}
    holding = [Finding(*key, since, None, sentences[key]) for key, since in begun.items()]
    return sorted(holding, key=lambda finding: finding.since) + ended
