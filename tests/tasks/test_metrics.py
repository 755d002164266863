"""Metrics have the values of their definitions, scores stay numbers, and averages are those that T5 printed."""

import math

import pytest

from tasks import metrics

# T5's baseline on the validation sets (Raffel et al. 2020, Table 16), which it averages to 83.28 and 71.36.
T5_BASELINE = {
    "glue_cola": {"matthews_corrcoef": 53.84},
    "glue_sst2": {"accuracy": 92.68},
    "glue_mrpc": {"f1": 92.07, "accuracy": 88.92},
    "glue_stsb": {"pearson_corrcoef": 88.02, "spearman_corrcoef": 87.94},
    "glue_qqp": {"f1": 88.67, "accuracy": 91.56},
    "glue_mnli_matched": {"accuracy": 84.24},
    "glue_mnli_mismatched": {"accuracy": 84.57},
    "glue_qnli": {"accuracy": 90.48},
    "glue_rte": {"accuracy": 76.28},
    "super_glue_boolq": {"accuracy": 76.62},
    "super_glue_cb": {"mean_3class_f1": 91.22, "accuracy": 91.96},
    "super_glue_copa": {"accuracy": 66.20},
    "super_glue_multirc": {"f1": 66.13, "exact_match": 25.78},
    "super_glue_record": {"f1": 69.05, "em": 68.16},
    "super_glue_rte": {"accuracy": 75.34},
    "super_glue_wic": {"accuracy": 68.04},
    "super_glue_wsc_simple_eval": {"accuracy": 78.56},
}
ALL = [value for value in vars(metrics).values() if hasattr(value, "names")]


def test_averages_are_those_that_t5_printed():
    averages = metrics.benchmark_averages(T5_BASELINE | {"squad": {"em": 1.0}, "glue_wnli": {"accuracy": 0.0}})
    assert averages == {"glue": pytest.approx(83.28, abs=0.005), "super_glue": pytest.approx(71.36, abs=0.005)}


def test_an_incomplete_benchmark_has_no_average():
    assert metrics.benchmark_averages({}) == {}
    without_rte = {name: scores for name, scores in T5_BASELINE.items() if name != "super_glue_rte"}
    assert metrics.benchmark_averages(without_rte).keys() == {"glue"}
    assert metrics.benchmark_averages(T5_BASELINE | {"glue_mrpc": {"accuracy": 90.0}}).keys() == {"super_glue"}


# Partly right predictions, and their scores in percent, computed by hand from the metrics' definitions.
PARTLY_RIGHT = [
    (metrics.accuracy, [1, 0, 1, 1], [1, 0, 0, 1], {"accuracy": 75}),
    # Precision 1/2, recall 1/3.
    (metrics.f1, [1, 1, 1, 0], [1, 0, 0, 1], {"f1": 40}),
    # 2 true positives, 1 true negative, 1 false negative: 2 / sqrt(2 * 3 * 1 * 2).
    (metrics.matthews, [1, 1, 1, 0], [1, 1, 0, 0], {"matthews_corrcoef": 100 / math.sqrt(3)}),
    # Covariance 3, variances 2 and 14/3.
    (metrics.pearson, [1.0, 2.0, 3.0], [1.0, 2.0, 4.0], {"pearson_corrcoef": 300 / math.sqrt(28 / 3)}),
    # Ranks differ by 1 twice: 1 - 6 * 2 / (4 * 15).
    (metrics.spearman, [1.0, 2.0, 3.0, 4.0], [1.0, 30.0, 20.0, 400.0], {"spearman_corrcoef": 80}),
    # Of the classes 2/3, 2/3 and 1.
    (metrics.mean_3class_f1, [0, 0, 1, 2], [0, 1, 1, 2], {"mean_3class_f1": 700 / 9}),
    # Over the answers of all questions: precision 1/2, recall 1/2.
    (
        metrics.multirc_f1,
        [{"value": 1, "group": 0}, {"value": 0, "group": 0}, {"value": 1, "group": 1}],
        [{"value": 1}, {"value": 1}, {"value": 0}],
        {"f1": 50},
    ),
    # All answers to a question must be right: to one of three.
    (
        metrics.multirc_exact_match,
        [{"value": label, "group": group} for group in range(3) for label in (1, 0)],
        [{"value": label} for label in (1, 0, 1, 1, 0, 0)],
        {"exact_match": 100 / 3},
    ),
    # The second is the first again, for another right answer, and counts once; one of two words, then both.
    (
        metrics.record,
        [{"value": ["red car", "bus"], "group": group} for group in ("first", "first", "other")],
        [{"value": "car"}, {"value": "bus"}, {"value": "bus"}],
        {"em": 50, "f1": (200 / 3 + 100) / 2},
    ),
    (metrics.squad, [["red car", "bus"], ["two words"]], ["car", "Two words."], {"em": 50, "f1": (200 / 3 + 100) / 2}),
    (metrics.trivia_qa, [["red car", "bus"], ["two words"]], ["car", "bus"], {"em": 0, "f1": 100 / 3}),
    # 2 of 4 words, 1 of 3 pairs of words, all of what was predicted.
    (
        metrics.rouge,
        ["cats sat on mats"],
        ["cats sat"],
        {"rouge1": 200 / 3, "rouge2": 50, "rougeLsum": 200 / 3},
    ),
]


@pytest.mark.parametrize(
    ("metric", "targets", "predictions", "expected"),
    PARTLY_RIGHT,
    ids=lambda value: ",".join(getattr(value, "names", ())),
)
def test_a_metric_scores_what_is_partly_right(metric, targets, predictions, expected):
    assert metric(targets, predictions) == pytest.approx(expected)
    assert tuple(expected) == metric.names


def test_every_metric_is_tested_by_value():
    assert [metric for metric, *_ in PARTLY_RIGHT] == ALL


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: ",".join(metric.names))
def test_an_empty_set_scores_nothing(metric):
    assert metric([], []) == dict.fromkeys(metric.names, 0.0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("metric", [metrics.matthews, metrics.pearson, metrics.spearman])
@pytest.mark.parametrize(("targets", "predictions"), [([0, 1, 1], [1, 1, 1]), ([1, 1], [0, 1]), ([1], [1])])
def test_a_correlation_with_a_constant_is_none(metric, targets, predictions):
    (score,) = metric(targets, predictions).values()
    assert type(score) is float and score == 0.0


@pytest.mark.parametrize(
    ("metric", "targets", "predictions", "expected"),
    [
        (metrics.accuracy, [-1, -1, 1], [-1, -1, 1], {"accuracy": 100.0}),
        (metrics.accuracy, [1, 0], [-1, 0], {"accuracy": 50.0}),
        (metrics.accuracy, [-1], [-1], {"accuracy": 0.0}),
        (metrics.accuracy, ["yes", "no"], ["yes", ""], {"accuracy": 50.0}),
        (metrics.f1, [1, 0], [-1, -1], {"f1": 0.0}),
        (metrics.squad, [["a b", "c"], []], ["The C.", ""], {"em": 100.0, "f1": 100.0}),
        (metrics.trivia_qa, [[]], [""], {"em": 0.0, "f1": 0.0}),
        (
            metrics.multirc_exact_match,
            [{"value": 1, "group": 0}, {"value": 0, "group": 0}, {"value": 1, "group": 1}],
            [{"value": 1}, {"value": 1}, {"value": 1}],
            {"exact_match": 50.0},
        ),
        (metrics.multirc_f1, [{"value": -1, "group": 0}], [{"value": -1}], {"f1": 0.0}),
    ],
)
def test_hidden_answers_do_not_count_and_invalid_ones_are_wrong(metric, targets, predictions, expected):
    assert metric(targets, predictions) == expected


@pytest.mark.parametrize(("text", "value"), [("3.2", 3.2), ("", -1), ("acceptable", -1), ("nan", -1), ("-inf", -1)])
def test_similarities(text, value):
    assert metrics.similarity(text) == value and math.isfinite(metrics.similarity(text))
