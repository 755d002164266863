"""Scores checkpoints of a model directory: the likelihood of held-out data, and tasks by their metrics."""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence

import seqio
import tensorflow as tf
import tqdm

from switch_tf import storage
from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.data.batches import Batch
from switch_tf.data.evaluation_batches import EvaluationBatches, evaluation_batches
from switch_tf.data.task_lookup import find_task, tasks_of
from switch_tf.errors import SettingError
from switch_tf.evaluation.likelihood import make_evaluator
from switch_tf.evaluation.tasks import (
    Scores,
    TaskEvaluation,
    TaskEvaluator,
    TaskResults,
    flat,
    has_metrics,
    held_out_name,
)
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import load_run

# What is reported of each task of a mixture, beside the scores by its metrics.
_BY_TASK = ("neg_log_perplexity", "target_tokens")


@dataclasses.dataclass(frozen=True)
class CheckpointScores:
    """What was measured of one checkpoint.

    Attributes:
      step: of the checkpoint.
      likelihood: what `make_evaluator` returns, by name.
      tasks: scores of tasks, by task and metric.
    """

    step: int
    likelihood: dict[str, float]
    tasks: Scores

    def flat(self) -> dict[str, float]:
        """Returns every number by its name; those of tasks as `task/metric`."""
        return {"step": self.step, **self.likelihood, **flat(self.tasks)}

    def to_json(self) -> dict:
        """Returns a JSON object; a score that is not a number is null there."""
        tasks = {
            task: {name: value if math.isfinite(value) else None for name, value in scores.items()}
            for task, scores in self.tasks.items()
        }
        return {"step": self.step, **self.likelihood} | ({"tasks": tasks} if tasks else {})


def to_json(scores: Sequence[CheckpointScores]) -> dict:
    """Returns the JSON object of one checkpoint, or `{"checkpoints": [...]}` of several."""
    objects = [each.to_json() for each in scores]
    return objects[0] if len(objects) == 1 else {"checkpoints": objects}


class CheckpointScorer:
    """Scores the checkpoints of one model directory, one after the other."""

    def __init__(
        self,
        experiment: Experiment,
        steps: Sequence[int | str],
        split: str,
        *,
        output: str | None = None,
        num_batches: int | None = None,
        by_task: bool = False,
        show_progress: bool = False,
    ):
        """Loads the first checkpoint and opens the data.

        Args:
          experiment: its model directory holds the checkpoints.
          steps: each a step, "best" or "all"; empty for the newest.
          split: which split of the data.
          output: the folder that `run` writes into; None for the model directory.
          num_batches: batches that a likelihood is measured on at most; None for the whole split.
          by_task: whether to measure the likelihood of each task of a mixture, too.
          show_progress: whether to show a progress bar.

        Raises:
          SettingError: if there is no such checkpoint, split or task.
        """
        self._split = split
        self._output = output or experiment.model_dir
        steps = checkpoints_of(experiment.model_dir).choose(steps)
        self.run = load_run(experiment, steps[0])
        self.engine = self.run.engine
        self.steps: list[int] = self.engine.processes.broadcast_from_first(steps)
        self._likelihood = make_evaluator(self.run.model, self.engine)
        settings = dataclasses.replace(TaskEvaluation(), best_metric=None)  # The best is chosen while training.
        self.held_out = held_out_name(experiment.mixture_or_task, settings, split)
        self._open_batches = functools.partial(
            evaluation_batches,
            lengths=experiment.task_feature_lengths,
            batch_size=experiment.batch_size,
            num_batches=num_batches,
            split=split,
            cache=experiment.cache,
        )
        self._batches = self._open_batches(self.held_out)
        self._tasks = _tasks_with(self.held_out, split) if by_task else []
        self._task_evaluator = None
        if settings.mixture_or_task is not None or has_metrics(experiment.mixture_or_task, split):
            self._task_evaluator = TaskEvaluator(
                self.run.model,
                self.engine,
                settings,
                experiment.mixture_or_task,
                experiment.task_feature_lengths,
                split,
            )
        self._show_progress = show_progress and self.engine.is_first_process

    def __call__(self) -> list[CheckpointScores]:
        """Scores every checkpoint, and writes predictions, tables and TensorBoard's files of those of tasks.

        Returns:
          The scores, in the order of `steps`.

        Raises:
          SettingError: if a checkpoint is damaged, or the output cannot be written.
        """
        found: list[CheckpointScores] = []
        for step in self.steps:
            if step != self.steps[0]:
                self.run.restore(step)
            likelihood = self._likelihood(self._shown(self._batches, f"step {step}"))
            results = None if self._task_evaluator is None else self._task_evaluator()
            scores: Scores = {} if results is None else dict(results.scores)
            for name in self._tasks:
                of_task = self._likelihood(self._shown(self._open_batches(name), f"step {step}, {name}"))
                scores[name] = scores.get(name, {}) | {kind: of_task[kind] for kind in _BY_TASK}
            found.append(CheckpointScores(step, likelihood, scores))
            if self.engine.is_first_process and scores:
                self._write(found, results)
        return found

    def _shown(self, batches: EvaluationBatches, description: str) -> Iterable[Batch]:
        return tqdm.tqdm(batches, desc=description, unit="batch", leave=False) if self._show_progress else batches

    def _write(self, found: Sequence[CheckpointScores], results: TaskResults | None) -> None:
        """Writes what the last checkpoint of `found` answered, and the tables of all so far."""
        with _writing(self._output):
            if results is not None and self._task_evaluator is not None:
                _write_predictions(self._output, found[-1].step, self._split, self._task_evaluator, results)
            _write_board(self._output, found[-1], self._split)
            _write_tables(self._output, self._split, found)


def _tasks_with(mixture_or_task: str, split: str) -> list[str]:
    """Names the tasks of a mixture that have the split, except those that are neither trained on nor scored."""
    provider = find_task(mixture_or_task)
    return [
        task.name
        for task in tasks_of(provider)
        if split in task.splits
        and (task.metric_fns or not isinstance(provider, seqio.Mixture) or provider.get_rate(task) > 0)
    ]


@contextlib.contextmanager
def _writing(folder: str) -> Iterator[None]:
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        reason = storage.refusal(error) or storage.reason_of(error)
        raise SettingError(f"{folder} cannot be written ({reason}): name another folder by --output=...") from error


def _write_predictions(folder: str, step: int, split: str, task_evaluator: TaskEvaluator, results: TaskResults) -> None:
    """Writes `predictions/step_.../<split>/<task>.jsonl`."""
    predictions = os.path.join(folder, "predictions", f"step_{step:08d}", split)
    storage.make_folder(predictions)
    for task in results.outputs:
        with tf.io.gfile.GFile(os.path.join(predictions, f"{task}.jsonl"), "w") as file:
            for answer in task_evaluator.answers(results, task):
                file.write(json.dumps(answer, ensure_ascii=False) + "\n")


def _write_board(folder: str, scores: CheckpointScores, split: str) -> None:
    """Writes `evaluate_<split>/` for TensorBoard, as a run of its own beside the training's curves."""
    mirror = storage.Mirror(os.path.join(folder, f"evaluate_{split}"))
    board = tf.summary.create_file_writer(mirror.path)
    with board.as_default():
        for name, value in flat(scores.tasks).items():
            tf.summary.scalar(f"tasks/{name}", value, step=scores.step)
    board.close()
    mirror.copy()


def _write_tables(folder: str, split: str, found: Sequence[CheckpointScores]) -> None:
    """Writes `scores.csv` and `scores.json` into `evaluate_<split>/`: the checkpoints of this command so far."""
    lines = ["step,task,metric,value"] + [
        f"{scores.step},{task},{metric},{value}"
        for scores in found
        for task, of_task in scores.tasks.items()
        for metric, value in of_task.items()
    ]
    texts = {"scores.csv": "\n".join(lines), "scores.json": json.dumps(to_json(found), indent=2)}
    for name, text in texts.items():
        with tf.io.gfile.GFile(os.path.join(folder, f"evaluate_{split}", name), "w") as file:
            file.write(text + "\n")
