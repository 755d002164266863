"""What `switch-tf evaluate` does: one, some or all checkpoints of a model directory, scored and compared."""

import contextlib
import dataclasses
import functools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import seqio
import tensorflow as tf
import tqdm

from switch_tf import storage
from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.cli.predict import load_run
from switch_tf.data.batches import Batch, EvaluationBatches, evaluation_batches, find_task
from switch_tf.data.cached_tasks import tasks_of
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

# What is told of each task of a mixture, beside the scores by its metrics.
_BY_TASK = ("neg_log_perplexity", "target_tokens")


def evaluate(
    steps: Sequence[int | str],
    split: str,
    as_json: bool,
    output: str | None = None,
    num_batches: int | None = None,
    by_task: bool = False,
) -> None:
    """Scores checkpoints: the likelihood of held-out data, and the metrics of the tasks that have any.

    Prints a table, or one JSON object; of tasks, writes the predictions as JSON lines, the scores as a table (CSV), as
    JSON and for TensorBoard.

    Args:
      steps: each a step, "best" or "all"; empty for the newest.
      split: which split of the data.
      as_json: what to print.
      output: the folder to write to; None for the model directory.
      num_batches: batches that a likelihood is measured on at most; None for the whole split.
      by_task: whether to measure it on each task of a mixture, too.

    Raises:
      SettingError: if there is no such checkpoint, split or task, or the output cannot be written.
    """
    if num_batches is not None and num_batches < 1:
        raise SettingError(f"--num_batches={num_batches} must be at least 1.")
    experiment = Experiment()
    steps = checkpoints_of(experiment.model_dir).choose(steps)
    run = load_run(experiment, steps[0])
    steps = run.engine.processes.broadcast_from_first(steps)
    likelihood = make_evaluator(run)
    settings = dataclasses.replace(TaskEvaluation(), best_metric=None)  # It is chosen while training.
    held_out = held_out_name(experiment.mixture_or_task, settings, split)
    open_batches = functools.partial(
        evaluation_batches,
        lengths=experiment.task_feature_lengths,
        batch_size=experiment.batch_size,
        num_batches=num_batches,
        split=split,
    )
    batches = open_batches(held_out)
    parts = _parts(held_out, split) if by_task else []
    task_evaluator = None
    if settings.mixture_or_task is not None or has_metrics(experiment.mixture_or_task, split):
        task_evaluator = TaskEvaluator(run, settings, split)
    folder = output or experiment.model_dir
    is_silent = as_json or not run.engine.is_first_process

    def shown(batches: EvaluationBatches, what: str) -> Iterable[Batch]:
        return batches if is_silent else tqdm.tqdm(batches, desc=what, unit="batch", leave=False)

    found: list[tuple[dict[str, float], Scores]] = []
    for step in steps:
        if step != steps[0]:
            run.restore(step)
        values: dict[str, float] = {"step": step} | likelihood(shown(batches, f"step {step}"))
        results = None if task_evaluator is None else task_evaluator()
        scores: Scores = {} if results is None else dict(results.scores)
        for name in parts:
            of_task = likelihood(shown(open_batches(name), f"step {step}, {name}"))
            scores[name] = scores.get(name, {}) | {kind: of_task[kind] for kind in _BY_TASK}
        found.append((values, scores))
        if run.engine.is_first_process and scores:
            with _said_if_unwritable(folder):
                if results is not None:
                    _write_predictions(folder, step, split, task_evaluator, results)
                _write_board(folder, step, split, scores)
                _write_tables(folder, split, found)
    if as_json:
        run.engine.say(json.dumps(_json_object(found), indent=2))
    else:
        run.engine.say(f"{experiment.model_dir}, {held_out}, {split}")
        for line in _table([values | flat(scores) for values, scores in found]):
            run.engine.say(line)
    run.engine.processes.close()


def _parts(mixture_or_task: str, split: str) -> list[str]:
    """Names the tasks of a mixture that have the split, but for those that are neither trained on nor scored."""
    provider = find_task(mixture_or_task)
    return [
        task.name
        for task in tasks_of(provider)
        if split in task.splits
        and (task.metric_fns or not isinstance(provider, seqio.Mixture) or provider.get_rate(task) > 0)
    ]


def _json_object(found: Sequence[tuple[dict[str, float], Scores]]) -> dict:
    """One checkpoint's numbers with those of its `tasks`, or, of several, a list of such objects as `checkpoints`."""
    objects = []
    for values, scores in found:
        tasks = {task: {name: _or_null(value) for name, value in of_task.items()} for task, of_task in scores.items()}
        objects.append(values | ({"tasks": tasks} if tasks else {}))
    return objects[0] if len(objects) == 1 else {"checkpoints": objects}


def _or_null(value: float) -> float | None:
    """JSON has no other word for what is not a number."""
    return value if math.isfinite(value) else None


def _table(columns: Sequence[Mapping[str, float]]) -> Iterator[str]:
    """One line for each name, one column for each checkpoint."""
    for name in columns[0]:
        numbers = [values[name] for values in columns]
        yield f"{name:<44}" + "".join(
            f"{number:>14,.0f}" if float(number).is_integer() and "/" not in name else f"{number:>14.4f}"
            for number in numbers
        )


@contextlib.contextmanager
def _said_if_unwritable(folder: str) -> Iterator[None]:
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


def _write_board(folder: str, step: int, split: str, scores: Scores) -> None:
    """Writes `evaluate_<split>/` for TensorBoard: a run of its own, beside the training's curves and not over them."""
    mirror = storage.Mirror(os.path.join(folder, f"evaluate_{split}"))
    board = tf.summary.create_file_writer(mirror.path)
    with board.as_default():
        for name, value in flat(scores).items():
            tf.summary.scalar(f"tasks/{name}", value, step=step)
    board.close()
    mirror.copy()


def _write_tables(folder: str, split: str, found: Sequence[tuple[dict[str, float], Scores]]) -> None:
    """Writes `scores.csv` and `scores.json` into `evaluate_<split>/`: the checkpoints of this command so far."""
    lines = ["step,task,metric,value"] + [
        f"{values['step']},{task},{metric},{value}"
        for values, scores in found
        for task, of_task in scores.items()
        for metric, value in of_task.items()
    ]
    texts = {"scores.csv": "\n".join(lines), "scores.json": json.dumps(_json_object(found), indent=2)}
    for name, text in texts.items():
        with tf.io.gfile.GFile(os.path.join(folder, f"evaluate_{split}", name), "w") as file:
            file.write(text + "\n")
