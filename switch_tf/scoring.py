"""What `switch-tf evaluate` does: one, some or all checkpoints of a model directory, scored and compared."""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf
import tqdm

from switch_tf import data, storage
from switch_tf.commands import load_run
from switch_tf.errors import SettingError
from switch_tf.evaluation import make_evaluator
from switch_tf.experiment import Experiment
from switch_tf.task_evaluation import (
    Scores,
    TaskEvaluation,
    TaskEvaluator,
    TaskResults,
    flat,
    has_metrics,
    held_out_name,
)
from switch_tf.training.checkpoints import checkpoints_of


def evaluate(steps: Sequence[int | str], split: str, as_json: bool, output: str | None = None) -> None:
    """Scores checkpoints: the likelihood of held-out data, and the metrics of the tasks that have any.

    Prints a table, or one JSON object; of tasks, writes the predictions as JSON lines, and TensorBoard's files.

    Args:
      steps: each a step, "best" or "all"; empty for the newest.
      split: which split of the data.
      as_json: what to print.
      output: the folder to write to; None for the model directory.

    Raises:
      SettingError: if there is no such checkpoint, split or task, or the output cannot be written.
    """
    experiment = Experiment()
    steps = checkpoints_of(experiment.model_dir).choose(steps)
    run = load_run(experiment, steps[0])
    steps = run.engine.processes.first(steps)
    likelihood = make_evaluator(run)
    settings = dataclasses.replace(TaskEvaluation(), best_metric=None)  # It is chosen while training.
    held_out = held_out_name(experiment.mixture_or_task, settings, split)
    batches = data.evaluation_batches(held_out, experiment.task_feature_lengths, experiment.batch_size, None, split)
    task_evaluator = None
    if settings.mixture_or_task is not None or has_metrics(experiment.mixture_or_task, split):
        task_evaluator = TaskEvaluator(run, settings, split)
    is_silent = as_json or not run.engine.is_first_process
    found: list[tuple[dict[str, float], Scores]] = []
    for step in steps:
        if step != steps[0]:
            run.restore(step)
        shown = batches if is_silent else tqdm.tqdm(batches, desc=f"step {step}", unit="batch", leave=False)
        values: dict[str, float] = {"step": step} | likelihood(shown)
        scores: Scores = {}
        if task_evaluator is not None:
            results = task_evaluator()
            scores = results.scores
            if run.engine.is_first_process:
                _write(output or experiment.model_dir, step, split, task_evaluator, results)
        found.append((values, scores))
    if as_json:
        run.engine.say(json.dumps(_json_object(found), indent=2))
    else:
        run.engine.say(f"{experiment.model_dir}, {held_out}, {split}")
        for line in _table([values | flat(scores) for values, scores in found]):
            run.engine.say(line)
    run.engine.processes.close()


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


def _write(folder: str, step: int, split: str, task_evaluator: TaskEvaluator, results: TaskResults) -> None:
    """Writes `predictions/step_.../<split>/<task>.jsonl`, and `evaluate_<split>/` for TensorBoard."""
    predictions = os.path.join(folder, "predictions", f"step_{step:08d}", split)
    try:
        storage.make_folder(predictions)
        for task in results.outputs:
            with tf.io.gfile.GFile(os.path.join(predictions, f"{task}.jsonl"), "w") as file:
                for answer in task_evaluator.answers(results, task):
                    file.write(json.dumps(answer, ensure_ascii=False) + "\n")
        # A folder of its own is a run of its own in TensorBoard: it lies beside the training's curves, not over them.
        mirror = storage.Mirror(os.path.join(folder, f"evaluate_{split}"))
        board = tf.summary.create_file_writer(mirror.path)
        with board.as_default():
            for name, value in flat(results.scores).items():
                tf.summary.scalar(f"tasks/{name}", value, step=step)
        board.close()
        mirror.copy()
    except (OSError, tf.errors.OpError) as error:
        reason = storage.refusal(error) or storage.reason_of(error)
        raise SettingError(f"{folder} cannot be written ({reason}): name another folder by --output=...") from error
