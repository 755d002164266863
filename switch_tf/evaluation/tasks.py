"""Scores of tasks by `seqio.Evaluator`: the model's current weights answer, each task's own metrics judge."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import gin
import numpy as np
import seqio
import tensorflow as tf

from switch_tf.data.autotuning import without_autotuning
from switch_tf.data.batches import Batch
from switch_tf.data.task_lookup import check_vocabulary, empty_split, find_task
from switch_tf.decoding.decoder import EXAMPLES, make_decoder
from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError, check_types, nearest
from switch_tf.evaluation.likelihood import make_scorer
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import Engine

# Of each task, scores by the names of its metrics; averages stand under the name of their mixture or benchmark.
Scores = dict[str, dict[str, float]]

AVERAGE = "average"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class TaskEvaluation:
    """Which tasks are scored, and how.

    Attributes:
      mixture_or_task: whose tasks are scored, those of them that have metrics; None: none while training, and those
        of the experiment's data by `switch-tf evaluate`.
      num_examples: how many examples of each task, from its first on; None: all.
      batch_size: examples that are decoded at once; rounded up to what the mesh needs.
      averages: scores by task -> averages of benchmarks, by their names. A mixture without one gets the mean over its
        tasks of the mean of their scores.
      best_metric: "glue_rte/accuracy", say, or "average" for that of `mixture_or_task`: the checkpoint that is highest
        in it stays. None: the newest ones alone stay.
      decoding: how predictions are decoded; of several samples, the first one is scored.
    """

    mixture_or_task: str | None = None
    num_examples: int | None = None
    batch_size: int = 64
    averages: Callable[[Mapping[str, Mapping[str, float]]], dict[str, float]] | None = None
    best_metric: str | None = None
    decoding: Decoding = dataclasses.field(default_factory=Decoding)

    def __post_init__(self) -> None:
        check_types(self)
        if self.batch_size < 1:
            raise SettingError(f"TaskEvaluation.batch_size = {self.batch_size} must be at least 1.")
        if self.num_examples is not None and self.num_examples < 1:
            raise SettingError(f"NUM_EVAL_EXAMPLES = {self.num_examples} must be at least 1, or None for all.")

    @property
    def best_name(self) -> str | None:
        """Returns the best metric's whole name, `task/metric`."""
        return f"{self.mixture_or_task}/{AVERAGE}" if self.best_metric == AVERAGE else self.best_metric


class TaskResults(NamedTuple):
    """What an evaluation of tasks found.

    Attributes:
      scores: of each task, and averages.
      outputs: of each task, what the model gave for each example: token ids or log likelihoods.
    """

    scores: Scores
    outputs: Mapping[str, Mapping[seqio.metrics.ModelOutputType, list[Any]]]


def flat(scores: Scores) -> dict[str, float]:
    """Returns scores by their whole names, `task/metric`."""
    return {f"{task}/{metric}": value for task, values in scores.items() for metric, value in values.items()}


def has_metrics(mixture_or_task: str, split: str) -> bool:
    """Whether any task of a mixture has metrics and the split."""
    tasks = seqio.get_subtasks(find_task(mixture_or_task))
    return bool(seqio.evaluation.get_valid_eval_tasks(tasks, split))


def held_out_name(trained_on: str, settings: TaskEvaluation | None, split: str) -> str:
    """Returns whose likelihood is measured: of the data that are trained on, or, if they lack the split, of the tasks.

    MNLI is trained on as `glue_mnli`, which has no validation split, and scored as `glue_mnli_matched`.
    """
    scored = settings.mixture_or_task if settings is not None else None
    return trained_on if scored is None or split in find_task(trained_on).splits else scored


class TaskEvaluator:
    """Scores a model's current weights on tasks at each call; examples are read once, at the start."""

    def __init__(
        self,
        model: EncoderDecoder,
        engine: Engine,
        settings: TaskEvaluation,
        trained_on: str,
        lengths: Mapping[str, int],
        split: str,
    ):
        """Reads the examples.

        Args:
          model: built by the engine; the run's vocabulary is installed.
          engine: where the model is.
          settings: which tasks.
          trained_on: the seqio name of the run's data, scored where the settings name no task.
          lengths: tokens of each task feature.
          split: which split of the tasks.

        Raises:
          SettingError: if there is no such task, none with metrics and examples, or no metric of the name of the best.
        """
        self._engine = engine
        self._settings = settings
        self._name = settings.mixture_or_task or trained_on
        find_task(self._name, "EVAL_TASK")
        if not has_metrics(self._name, split):
            raise SettingError(f"EVAL_TASK = '{self._name}' has no task with metrics and a split '{split}'.")
        check_vocabulary(self._name, model.config.vocab_size)
        self._evaluator = seqio.Evaluator(
            self._name,
            seqio.EncDecFeatureConverter(pack=False),
            eval_split=split,
            sequence_length=dict(lengths),
            num_examples=settings.num_examples,
            async_compute_metrics=False,
        )
        self._batch_size = self._check_tasks(split)
        self._decode = make_decoder(model, settings.decoding, lengths["targets"], engine)
        self._score = make_scorer(model, engine)
        if settings.best_name is not None:
            self._check_best_metric(settings.best_name)

    def _check_tasks(self, split: str) -> int:
        """Checks that every task can be scored; returns the one batch size, which no task is much smaller than."""
        largest = 0
        for task in self._evaluator.eval_tasks:
            if not {metric.model_output_type for metric in task.metric_objs} <= {
                seqio.metrics.ModelOutputType.PREDICTION,
                seqio.metrics.ModelOutputType.SCORE,
            }:
                raise SettingError(
                    f"{task.name} has a metric of neither predictions nor scores: take it out of the task."
                )
            size = int(self._evaluator.cached_task_datasets[task.name].cardinality())
            if size == 0:
                raise empty_split(task.name, split)
            largest = max(largest, size)
        multiple = self._engine.batch_multiple
        return math.ceil(min(self._settings.batch_size, largest) / multiple) * multiple

    def _check_best_metric(self, name: str) -> None:
        """Scores the targets themselves, without the model: what is wrong with a metric's name shows at the start."""

        def targets(dataset: tf.data.Dataset) -> list[tuple[int, np.ndarray]]:
            return [(index, example["decoder_target_tokens"]) for index, example in dataset.as_numpy_iterator()]

        def zeros(dataset: tf.data.Dataset) -> list[tuple[int, float]]:
            return [(index, 0.0) for index, _ in dataset.as_numpy_iterator()]

        known = flat(self._evaluate(targets, zeros).scores)
        if name not in known:
            hint = nearest(name, known)
            raise SettingError(f"BEST_METRIC = '{self._settings.best_metric}' is no metric of EVAL_TASK{hint}.")

    def __call__(self) -> TaskResults:
        """Decodes or scores all examples, in batches of one shape, and computes every metric.

        All processes must call it; each gets the same results.
        """
        return self._evaluate(self._predictions, self._log_likelihoods)

    def _predictions(self, dataset: tf.data.Dataset) -> list[tuple[int, np.ndarray]]:
        # The first sequence is the only one, the best one, or the first sample.
        return self._in_batches(dataset, lambda batch: self._decode(batch).tokens[:, 0])

    def _log_likelihoods(self, dataset: tf.data.Dataset) -> list[tuple[int, float]]:
        return self._in_batches(dataset, self._score)

    def _in_batches(self, dataset: tf.data.Dataset, of_batch: Callable[[Batch], np.ndarray]) -> list[tuple[int, Any]]:
        found: list[tuple[int, Any]] = []
        for indices, batch in without_autotuning(dataset.batch(self._batch_size)).as_numpy_iterator():
            missing = self._batch_size - len(indices)
            batch[EXAMPLES] = np.asarray(indices, np.int32).reshape(-1, 1)
            full = {name: np.pad(array, [(0, missing)] + [(0, 0)] * (array.ndim - 1)) for name, array in batch.items()}
            found += zip(indices.tolist(), of_batch(full))
        return found

    def _evaluate(self, predict: Callable, score: Callable) -> TaskResults:
        metrics, outputs = self._evaluator.evaluate(compute_metrics=True, predict_fn=predict, score_fn=score)
        scores = {task: _numbers(values) for task, values in metrics.result().items()}
        averages = {self._name: float(np.mean([np.mean(list(values.values())) for values in scores.values()]))}
        if self._settings.averages is not None:
            averages |= self._settings.averages(scores)
        for name, average in averages.items():
            scores[name] = scores.get(name, {}) | {AVERAGE: average}
        return TaskResults(scores, outputs)

    def answers(self, results: TaskResults, task_name: str) -> Iterator[dict[str, str | float]]:
        """Tells what the model answered to every example of a task.

        Args:
          results: of a call.
          task_name: one of the tasks that `results.outputs` names.

        Yields:
          Texts by `inputs`, `target`, `prediction`; `score`, the log likelihood of the target, where that was asked.
        """
        features = find_task(task_name).output_features
        outputs = results.outputs[task_name]

        def text(example: Mapping[str, np.ndarray], feature: str) -> str:
            pretokenized = example.get(f"{feature}_pretokenized")
            if isinstance(pretokenized, bytes):
                return pretokenized.decode()
            return features[feature].vocabulary.decode(example[feature].tolist())

        for index, example in enumerate(self._evaluator.cached_task_datasets[task_name].as_numpy_iterator()):
            answer: dict[str, str | float] = {"inputs": text(example, "inputs"), "target": text(example, "targets")}
            if seqio.metrics.ModelOutputType.PREDICTION in outputs:
                tokens = outputs[seqio.metrics.ModelOutputType.PREDICTION][index].tolist()
                answer["prediction"] = features["targets"].vocabulary.decode(tokens)
            if seqio.metrics.ModelOutputType.SCORE in outputs:
                answer["score"] = float(outputs[seqio.metrics.ModelOutputType.SCORE][index])
            yield answer


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    """Returns the metrics that are numbers; seqio also knows texts and histograms."""
    values = {name: value.value if isinstance(value, seqio.metrics.Scalar) else value for name, value in values.items()}
    kinds = (int, float, np.number)
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, kinds) or (isinstance(value, np.ndarray) and value.ndim == 0)
    }
