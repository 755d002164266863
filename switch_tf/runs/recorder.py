"""What a run writes for people: CSV files with one row for each step, and TensorBoard files."""

import contextlib
import csv
import os
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints.folder import checkpoints_of, write_error
from switch_tf.health.rules import Event
from switch_tf.models.config import ModelConfig
from switch_tf.runs.tensorboard_files import Board
from switch_tf.training.step import StepMetrics
from switch_tf.training.step_metrics import (
    EVALUATION_SCALARS,
    NESTED_METRICS,
    ROUTING_SCALARS,
    UPDATE_SCALARS,
    scalars_of,
)

_TASK_SCORES = "task_eval.csv"
_FINDINGS = "findings.csv"
EVENTS = "events.csv"
# How many of the rows before a restart hooks can look back to.
LAST_STEPS = 100


class CsvRecord:
    """A CSV file whose first column is the step; opening it for a step drops the rows after that step."""

    def __init__(self, path: str, columns: Sequence[str], resume_step: int, model_dir: str | None = None):
        """Opens the file.

        A run that was killed may have written rows after its last checkpoint; the run that resumes writes them again.

        Args:
          path: of the file, on a disk; created if it does not exist.
          columns: after `step`.
          resume_step: the last step whose rows stay.
          model_dir: the run's model directory, for errors; None where the file lies in it.

        Raises:
          SettingError: if the file cannot be written.
        """
        self.path = path
        self._model_dir = model_dir or os.path.dirname(path)
        self.columns = ("step", *columns)
        rows = [row for row in read_csv(path) if int(row["step"]) <= resume_step]
        self.last_rows = rows[-LAST_STEPS:]
        try:
            with storage.replacing(path) as unfinished, tf.io.gfile.GFile(unfinished, "w") as file:
                writer = csv.DictWriter(file, self.columns, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        except (OSError, tf.errors.OpError) as error:
            raise write_error(path, error, checkpoints_of(self._model_dir)) from error

    def append(self, rows: Sequence[Mapping[str, object]]) -> None:
        """Appends rows, all of them or (where the disk is full) an error.

        Raises:
          SettingError: if the file cannot be written.
        """
        try:
            with tf.io.gfile.GFile(self.path, "a") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerows(rows)
        except (OSError, tf.errors.OpError) as error:
            raise write_error(self.path, error, checkpoints_of(self._model_dir)) from error


def read_csv(path: str) -> list[dict[str, str]]:
    """Reads a CSV record's complete rows; an empty list where there is no file."""
    if not storage.exists(path):
        return []
    with tf.io.gfile.GFile(path) as file:
        text = file.read()
    # A line that a kill truncated has no end.
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [row for row in csv.DictReader(lines) if None not in row.values()]


class RunRecorder:
    """Writes a run's numbers: `metrics.csv`, `experts.csv` (loads), `eval.csv`, `findings.csv`, `events.csv`,
    `task_eval.csv`, and TensorBoard's files.

    In a bucket, where nothing can be appended to a file, they are copies of local files: the CSV files are copied
    before every checkpoint, so that a run that resumes has the rows of all steps before it; all files are copied now
    and then, and when the recorder is closed.
    """

    def __init__(
        self,
        model_dir: str,
        config: ModelConfig,
        resume_step: int,
        step_scalars: Sequence[str] = (),
        evaluation_scalars: Sequence[str] = (),
    ):
        """Opens the files of a run.

        Args:
          model_dir: where they are.
          config: names the sparse layers.
          resume_step: the last step whose rows stay.
          step_scalars: further columns of `metrics.csv`.
          evaluation_scalars: further columns of `eval.csv`.

        Raises:
          SettingError: if they cannot be written.
        """
        self._model_dir = model_dir
        self._layers = config.sparse_layer_names
        per_layer = [f"{layer}/{name}" for layer in self._layers for name in ROUTING_SCALARS]
        updates = [f"{layer}/{name}" for layer in self._layers for name in UPDATE_SCALARS]
        scalars = [name for name in StepMetrics._fields if name not in NESTED_METRICS] + [*step_scalars]
        loads = [f"load_{expert}" for expert in range(config.num_experts)]

        self._of_layers = frozenset([*per_layer, *updates])
        self._resume_step = resume_step
        self._mirror = storage.Mirror(model_dir)
        self._records: list[str] = []
        self._metrics = self._record("metrics.csv", [*scalars, *per_layer, *updates, "tokens_per_second"])
        self._evaluations = self._record("eval.csv", [*EVALUATION_SCALARS, *evaluation_scalars, *per_layer])
        self._experts = self._record("experts.csv", ["layer", *loads]) if self._layers else None
        self._findings = self._record(_FINDINGS, ["layer", "rule", "event", "sentence"]) if self._layers else None
        # Most runs score no tasks and go back from no spike, and have no such files.
        self._task_scores = self._open_task_scores() if self._has(_TASK_SCORES) else None
        self._events = self._open_events() if self._has(EVENTS) else None
        with self._writing_board():
            self._board = Board(self._mirror.path, model_dir)
        self.copy_records()

    def _record(self, name: str, columns: Sequence[str]) -> CsvRecord:
        self._records.append(name)
        with self._writing(os.path.join(self._model_dir, name)):
            path = self._mirror.fetch(name)
        return CsvRecord(path, columns, self._resume_step, self._model_dir)

    def _has(self, name: str) -> bool:
        return storage.exists(os.path.join(self._model_dir, name))

    def _open_task_scores(self) -> CsvRecord:
        return self._record(_TASK_SCORES, ["task", "metric", "value"])

    def _open_events(self) -> CsvRecord:
        return self._record(EVENTS, ["event", "spike_step", "loss", "median_loss"])

    @property
    def last_steps(self) -> list[dict[str, str]]:
        """The rows of `metrics.csv` before a restart, `LAST_STEPS` of them at most."""
        return self._metrics.last_rows

    def write(self, steps: Sequence[tuple[int, StepMetrics]], tokens_per_second: float) -> None:
        """Writes some consecutive steps: their scalars, and the expert loads of the last one.

        TensorBoard gets the layers' scalars of the last step alone: there are many, and each takes 20 microseconds.

        Args:
          steps: (step, metrics as numpy).
          tokens_per_second: the speed since the last call.
        """
        rows = [
            {"step": step, **scalars_of(metrics), "tokens_per_second": tokens_per_second} for step, metrics in steps
        ]
        self._metrics.append(rows)
        last_step, last = steps[-1]
        if self._experts is not None:
            self._experts.append(
                [
                    {"step": last_step, "layer": layer}
                    | {f"load_{expert}": float(load) for expert, load in enumerate(metrics.expert_load)}
                    for layer, metrics in last.routing.items()
                ]
            )
        with self._writing_board():
            self._board.write_scalars([self._without_layers(row) for row in rows[:-1]] + rows[-1:], "train")
            self._board.write_loads(last_step, {layer: metrics.expert_load for layer, metrics in last.routing.items()})
        with self._writing(self._model_dir):
            self._mirror.copy_seldom()

    def _without_layers(self, row: Mapping[str, float]) -> dict[str, float]:
        return {name: value for name, value in row.items() if name not in self._of_layers}

    def has_evaluation(self, step: int) -> bool:
        """Whether the evaluation after `step` has its row."""
        return any(row["step"] == str(step) for row in read_csv(self._evaluations.path))

    def write_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one evaluation's numbers, those that `make_evaluator` returns."""
        self._evaluations.append([{"step": step, **values}])
        with self._writing_board():
            self._board.write_scalars([{"step": step, **values}], "eval")

    def write_task_scores(self, step: int, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Writes the scores of tasks, one row for each metric of each task."""
        values = {(task, metric): value for task, metrics in scores.items() for metric, value in metrics.items()}
        rows = [
            {"step": step, "task": task, "metric": metric, "value": value} for (task, metric), value in values.items()
        ]
        if self._task_scores is None:
            self._task_scores = self._open_task_scores()
        self._task_scores.append(rows)
        with self._writing_board():
            by_tag = {f"{task}/{metric}": value for (task, metric), value in values.items()}
            self._board.write_scalars([{"step": step, **by_tag}], "tasks")

    def write_settings(self, settings: Mapping[str, bool | int | float | str]) -> None:
        """Writes the run's settings for TensorBoard's table of hyperparameters."""
        with self._writing_board():
            self._board.write_settings(settings)

    def findings(self) -> list[Event]:
        """Returns the findings of the run so far, in order."""
        rows = [] if self._findings is None else read_csv(self._findings.path)
        return [
            Event(int(row["step"]), row["layer"], row["rule"], row["event"] == "begins", row["sentence"])
            for row in rows
        ]

    def write_findings(self, events: Sequence[Event]) -> None:
        """Writes findings that begin or end."""
        assert self._findings is not None, "Only sparse layers have findings."
        self._findings.append(
            [
                {
                    "step": event.step,
                    "layer": event.layer,
                    "rule": event.rule,
                    "event": "begins" if event.begins else "ends",
                    "sentence": event.sentence,
                }
                for event in events
            ]
        )
        with self._writing_board():
            self._board.write_findings(events)

    def write_spike(self, checkpoint: int, spike_step: int, loss: float, median_loss: float) -> None:
        """Writes that the run goes back to a checkpoint and passes over the batches up to a spike's.

        Args:
          checkpoint: the step of the checkpoint.
          spike_step: the step whose loss is a spike.
          loss: of that step.
          median_loss: of the steps before it.
        """
        if self._events is None:
            self._events = self._open_events()
        values = {"spike_step": spike_step, "loss": loss, "median_loss": median_loss}
        self._events.append([{"step": checkpoint, "event": "went_back", **values}])

    def copy_records(self) -> None:
        """Copies all rows so far to the model directory, which must come before a checkpoint of their steps.

        Raises:
          SettingError: if they cannot be written.
        """
        with self._writing(self._model_dir):
            self._mirror.copy(self._records)

    def close(self) -> None:
        """Copies everything that was written to the model directory.

        Raises:
          SettingError: if it cannot be written.
        """
        with self._writing(self._model_dir):
            self._mirror.copy()

    @contextlib.contextmanager
    def _writing_board(self) -> Iterator[None]:
        with self._writing("TensorBoard's files"):
            yield

    @contextlib.contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            raise write_error(what, error, checkpoints_of(self._model_dir)) from error
