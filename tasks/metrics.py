"""Scores that can be averaged and written as JSON, and the averages of GLUE and SuperGLUE.

The metrics are t5's, in percent. What they cannot score counts as 0: an empty set, a correlation with a constant
prediction, a prediction that is not a label. Examples whose answer is hidden (test sets) are left out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

import gin
import numpy as np
import t5.data.glue_utils
import t5.data.postprocessors
import t5.evaluation.metrics as t5_metrics

Metric = Callable[[Sequence[Any], Sequence[Any]], dict[str, float]]


class NamedMetric(Protocol):
    """A metric that says under which names it returns scores."""

    names: tuple[str, ...]
    __name__: str

    def __call__(self, targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]: ...


def _is_hidden(target: Any) -> bool:
    """Whether a postprocessed target is hidden: -1 for a label or a similarity, [] for answers."""
    value = target["value"] if isinstance(target, Mapping) else target
    return len(value) == 0 if isinstance(value, list) else np.isscalar(value) and value == -1


def averageable(metric: Metric, *names: str, min_examples: int = 1) -> NamedMetric:
    """Makes a metric return a finite Python float under each of its names, for any input.

    Without this an invalid prediction (-1) would be correct if the label is hidden (-1 too), and the correlations of an
    untrained model, whose predictions are all the same, would be NaN.

    Args:
      metric: (targets, predictions) -> scores by name, as t5's.
      names: of its scores.
      min_examples: how many examples it needs at least.

    Returns:
      A metric that leaves out examples with hidden targets and returns 0.0 for what cannot be computed; its attribute
      `names` holds the names.
    """

    def scores(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
        pairs = [pair for pair in zip(targets, predictions) if not _is_hidden(pair[0])]
        if len(pairs) < min_examples:
            return dict.fromkeys(names, 0.0)
        found = metric(*map(list, zip(*pairs)))
        return {name: float(found[name]) if math.isfinite(found[name]) else 0.0 for name in names}

    named = cast(NamedMetric, scores)
    named.names = names
    return named


accuracy = averageable(t5_metrics.accuracy, "accuracy")
f1 = averageable(t5_metrics.f1_score_with_invalid, "f1")
matthews = averageable(t5.data.glue_utils.GLUE_METRICS["cola"][0], "matthews_corrcoef")
pearson = averageable(t5_metrics.pearson_corrcoef, "pearson_corrcoef", min_examples=2)
spearman = averageable(t5_metrics.spearman_corrcoef, "spearman_corrcoef", min_examples=2)
mean_3class_f1 = averageable(t5_metrics.mean_multiclass_f1(num_classes=3), "mean_3class_f1")
multirc_f1 = averageable(t5_metrics.multirc_f1_over_all_answers, "f1")
multirc_exact_match = averageable(t5_metrics.mean_group_metric(t5_metrics.all_match), "exact_match")
record = averageable(t5_metrics.deduplicate_metric(t5_metrics.squad), "em", "f1")
squad = averageable(t5_metrics.squad, "em", "f1")
trivia_qa = averageable(t5_metrics.trivia_qa, "em", "f1")
rouge = averageable(t5_metrics.rouge, "rouge1", "rouge2", "rougeLsum")


def similarity(string: str, **unused: Any) -> float:
    """Parses a predicted similarity as t5's `string_to_float` does; `nan` and `inf` are invalid too, -1."""
    value = t5.data.postprocessors.string_to_float(string, **unused)
    return value if math.isfinite(value) else -1.0


# The entries of a benchmark's average: each is the mean of its (task, metric) pairs.
_ENTRIES: dict[str, list[list[tuple[str, str]]]] = {
    "glue": [
        [("glue_cola", "matthews_corrcoef")],
        [("glue_sst2", "accuracy")],
        [("glue_mrpc", "f1"), ("glue_mrpc", "accuracy")],
        [("glue_stsb", "pearson_corrcoef"), ("glue_stsb", "spearman_corrcoef")],
        [("glue_qqp", "f1"), ("glue_qqp", "accuracy")],
        [("glue_mnli_matched", "accuracy"), ("glue_mnli_mismatched", "accuracy")],
        [("glue_qnli", "accuracy")],
        [("glue_rte", "accuracy")],
    ],
    "super_glue": [
        [("super_glue_boolq", "accuracy")],
        [("super_glue_cb", "mean_3class_f1"), ("super_glue_cb", "accuracy")],
        [("super_glue_copa", "accuracy")],
        [("super_glue_multirc", "f1"), ("super_glue_multirc", "exact_match")],
        [("super_glue_record", "f1"), ("super_glue_record", "em")],
        [("super_glue_rte", "accuracy")],
        [("super_glue_wic", "accuracy")],
        [("super_glue_wsc_simple_eval", "accuracy")],
    ],
}


@gin.configurable
def benchmark_averages(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Averages GLUE and SuperGLUE over their tasks; a task with two metrics counts their mean, MNLI that of both sets.

    T5 and the paper average like this: the rows of T5's baseline give the published 83.28 and 71.36. WNLI is left out.

    Args:
      scores: by task and metric; other tasks and metrics are ignored.

    Returns:
      "glue" and "super_glue"; a benchmark with a missing score is left out.

    Source: Raffel et al. 2020, Sec. 2.3 and Table 16; Fedus et al. 2022, Sec. 4.1.
    """

    def average(entries: list[list[tuple[str, str]]]) -> float:
        return float(np.mean([np.mean([scores[task][metric] for task, metric in entry]) for entry in entries]))

    def is_complete(entries: list[list[tuple[str, str]]]) -> bool:
        return all(metric in scores.get(task, {}) for entry in entries for task, metric in entry)

    return {name: average(entries) for name, entries in _ENTRIES.items() if is_complete(entries)}
