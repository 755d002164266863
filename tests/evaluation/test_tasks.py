"""Tasks are scored by their own metrics on what a model's weights answer."""

import math

import numpy as np
import pytest
import seqio
import tensorflow as tf

from switch_tf.decoding.greedy import greedy
from switch_tf.errors import SettingError
from switch_tf.evaluation.tasks import TaskEvaluation, TaskEvaluator, flat, has_metrics
from switch_tf.models.config import ModelConfig
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import Run

WORDS = ("ab", "cde", "f", "ghij", "kl")
SEEN: dict[str, list] = {}


def _exact(targets, predictions):
    SEEN.update(targets=targets, predictions=predictions)
    return {"exact": 100.0 * np.mean([target == prediction for target, prediction in zip(targets, predictions)])}


def _mean_score(targets, scores):
    SEEN["scores"] = list(scores)
    return {"mean_score": float(np.mean(scores))}


def _undefined(targets, predictions):
    return {"undefined": math.nan}


def _with_aux(targets, predictions, aux_values):
    return {"aux": 0.0}


def _words(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    words = WORDS if split == "validation" else ()
    return tf.data.Dataset.from_tensor_slices(
        {"inputs": tf.constant(words, tf.string, [len(words)]), "targets": tf.constant(words, tf.string, [len(words)])}
    )


def _add(name: str, *metrics) -> None:
    seqio.TaskRegistry.add(
        name,
        seqio.FunctionDataSource(_words, splits=["validation", "empty"]),
        preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
        output_features={name: seqio.Feature(seqio.ByteVocabulary()) for name in ("inputs", "targets")},
        metric_fns=list(metrics),
    )


_add("echo", _exact)
_add("echo_scored", _mean_score)
_add("echo_undefined", _undefined)
_add("echo_with_aux", _with_aux)
_add("echo_unscored")
seqio.MixtureRegistry.add("echoes", ["echo", "echo_scored", "echo_unscored"], default_rate=1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    config = ModelConfig(
        vocab_size=384,
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        num_experts=4,
        sparse_every=1,
        group_size=None,
        eval_capacity_factor=None,
        initializer_scale=1.0,
    )
    model_dir = str(tmp_path_factory.mktemp("run"))
    return Run(Experiment(config, model_dir, "echoes", {"inputs": 8, "targets": 6}, batch_size=2))


def tokens(word: str, length: int) -> np.ndarray:
    ids = [*seqio.ByteVocabulary().encode(word), 1]
    return np.array(ids + [0] * (length - len(ids)), np.int32)


def evaluator_of(run: Run, settings: TaskEvaluation, split: str) -> TaskEvaluator:
    experiment = run.experiment
    return TaskEvaluator(
        run.model, run.engine, settings, experiment.mixture_or_task, experiment.task_feature_lengths, split
    )


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 2, 64])
def test_every_example_is_decoded_once_and_in_order(run, batch_size):
    results = evaluator_of(run, TaskEvaluation("echo", batch_size=batch_size), "validation")()
    inputs = tf.constant([tokens(word, 8) for word in WORDS])
    expected = [seqio.ByteVocabulary().decode(row) for row in greedy(run.model, inputs, 6).numpy().tolist()]
    assert SEEN["targets"] == list(WORDS)
    assert SEEN["predictions"] == expected
    assert results.scores == {"echo": {"exact": 0.0, "average": 0.0}}
    assert all(isinstance(value, float) for value in flat(results.scores).values())


@pytest.mark.parametrize("batch_size", [2, 64])
def test_scores_are_log_likelihoods_of_the_targets(run, batch_size):
    evaluator = evaluator_of(run, TaskEvaluation("echo_scored", batch_size=batch_size), "validation")
    results = evaluator()
    expected = []
    for word in WORDS:
        target = tokens(word, 6)[: len(word) + 1]
        shifted = np.concatenate([[0], target[:-1]])
        logits = run.model(
            {
                "encoder_input_tokens": tf.constant([tokens(word, 8)]),
                "decoder_input_tokens": tf.constant([shifted], tf.int32),
            }
        )
        expected.append(tf.gather(tf.nn.log_softmax(logits[0]), target, batch_dims=1).numpy().sum())
    np.testing.assert_allclose(SEEN["scores"], expected, rtol=1e-5)
    answers = list(evaluator.answers(results, "echo_scored"))
    assert [answer["target"] for answer in answers] == list(WORDS)
    assert answers[0]["score"] == pytest.approx(expected[0], rel=1e-5) and "prediction" not in answers[0]


def test_a_mixture_is_its_tasks_with_metrics_and_their_average(run):
    settings = TaskEvaluation("echoes", num_examples=3, averages=lambda scores: {"bench": scores["echo"]["exact"] + 1})
    evaluator = evaluator_of(run, settings, "validation")
    results = evaluator()
    assert list(results.scores) == ["echo", "echo_scored", "echoes", "bench"]
    assert results.scores["echoes"]["average"] == pytest.approx(results.scores["echo_scored"]["mean_score"] / 2)
    assert results.scores["bench"] == {"average": 1.0}
    (first, *others) = evaluator.answers(results, "echo")
    assert len(others) == 2
    assert first["inputs"] == first["target"] == "ab" and isinstance(first["prediction"], str)


def test_what_is_not_a_number_stays_so(run):
    scores = evaluator_of(run, TaskEvaluation("echo_undefined"), "validation")().scores["echo_undefined"]
    assert math.isnan(scores["undefined"]) and math.isnan(scores["average"])


def test_has_metrics(run):
    assert has_metrics("echoes", "validation") and not has_metrics("echo_unscored", "validation")
    assert not has_metrics("echoes", "test")


@pytest.mark.parametrize(
    ("settings", "split", "sentence"),
    [
        ({"mixture_or_task": "ecko"}, "validation", "EVAL_TASK = 'ecko' is not registered"),
        ({"mixture_or_task": "echo_unscored"}, "validation", "EVAL_TASK = 'echo_unscored' has no task with metrics"),
        ({"mixture_or_task": "echoes"}, "test", "no task with metrics and a split 'test'"),
        ({"mixture_or_task": "echoes"}, "empty", "yields no example in its split 'empty'"),
        ({"mixture_or_task": "echo_with_aux"}, "validation", "metric of neither predictions nor scores"),
        (
            {"mixture_or_task": "echoes", "best_metric": "echo/exakt"},
            "validation",
            r"BEST_METRIC = 'echo/exakt' is no metric of EVAL_TASK \(did you mean 'echo/exact'\?\)",
        ),
    ],
)
def test_wrong_settings_are_one_sentence(run, settings, split, sentence):
    with pytest.raises(SettingError, match=sentence):
        evaluator_of(run, TaskEvaluation(**settings), split)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"batch_size": 0}, "TaskEvaluation.batch_size = 0"),
        ({"num_examples": 0}, "NUM_EVAL_EXAMPLES = 0"),
    ],
)
def test_settings_that_cannot_be(settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        TaskEvaluation(**settings)


def test_the_best_metric_is_known_before_the_model_is_asked(run):
    evaluator_of(run, TaskEvaluation("echoes", best_metric="average"), "validation")
    assert SEEN["predictions"] == list(WORDS)  # The targets themselves.
