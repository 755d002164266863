"""The work of `predict` and `score`: texts of one's own through a trained model."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tqdm

from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.infilling import FIRST_SENTINEL, fill, predict_held_out, shown
from switch_tf.runs.prediction_files import Results, json_fields, lines_of
from switch_tf.runs.predictor import Prediction, Predictor, predictor_of
from switch_tf.runs.task_inputs import Fields, TaskInputs

# Lines that are sorted by length, predicted and written together.
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
      texts: given on the command line.
      file: one line for each text, or JSON lines; "-": standard input.
      fields: of the JSON objects: the texts (of `predict` one, or none for plain lines; of `score` inputs and targets).
      task: a seqio task that preprocesses the JSON objects and postprocesses the predictions.
      held_out: how many held-out examples to take instead of texts.
      prefix: what each target starts with.
      stream: whether to predict each line as it comes.
      output: see `Results`.
      too_long: see `Predictor`.
      batch_size: see `Predictor`.
      step: which checkpoint.
    """

    texts: Sequence[str] = ()
    file: str | None = None
    fields: tuple[str, ...] = ()
    task: str | None = None
    held_out: int | None = None
    prefix: str | None = None
    stream: bool = False
    output: str | None = None
    too_long: str = "refuse"
    batch_size: int = 16
    step: int | None = None

    @property
    def source(self) -> str | None:
        """Where lines come from."""
        return "-" if self.stream and self.file is None else self.file


class _Row(NamedTuple):
    """One input.

    record: what its result is written with.
    text: as it was given; empty where a task makes it from fields.
    tokens: ids of the inputs.
    features: that a task made of it.
    """

    record: dict[str, Any]
    text: str
    tokens: list[int]
    features: Fields | None = None


def predict(request: Request) -> int:
    """Predicts, and prints or writes the results.

    Args:
      request: what to predict; the model is that of gin's configuration.

    Returns:
      How many lines have no result.

    Raises:
      SettingError: if nothing is asked for, a text of the command line is too long, or a file is not there.
    """
    if not request.texts and request.source is None and request.held_out is None:
        raise SettingError('predict needs a text: switch-tf predict ... "The <extra_id_0> sat down." (or --file).')
    experiment = Experiment()
    predictor = _predictor(experiment, request)
    if request.held_out is not None:
        predict_held_out(experiment, predictor, request.held_out)
        predictor.engine.processes.close()
        return 0
    task = None if request.task is None else TaskInputs(request.task)
    results = Results(request.output, predictor.engine.is_first_process)
    with tqdm.tqdm(unit="text", disable=None if request.output not in (None, "-") else True) as progress:
        for chunk in _chunks(request):
            _predict_chunk(predictor, request, task, chunk, results)
            progress.update(len(chunk))
    results.close()
    predictor.engine.processes.close()
    return results.num_errors


def _predictor(experiment: Experiment, request: Request) -> Predictor:
    return predictor_of(experiment, Decoding(), request.step, request.batch_size, request.too_long)


def _chunks(request: Request) -> Iterator[list[tuple[int, bytes]]]:
    """Yields numbered lines: many together, or each alone if they are a stream."""
    given = (text.encode() for text in request.texts)
    lines = itertools.chain(given, lines_of(request.source) if request.source is not None else ())
    numbered = enumerate(lines, 1)
    size = 1 if request.stream else _CHUNK
    while chunk := list(itertools.islice(numbered, size)):
        yield chunk


def _predict_chunk(
    predictor: Predictor,
    request: Request,
    task: TaskInputs | None,
    chunk: Sequence[tuple[int, bytes]],
    results: Results,
) -> None:
    rows = _rows(predictor, request, task, chunk)
    good = [row for row in rows if isinstance(row, _Row)]
    prefixes = None
    if request.prefix is not None:
        prefixes = [predictor.tokenize_prefix(request.prefix)] * len(good)
    found = predictor.decode_rows([row.tokens for row in good], prefixes, chunk[0][0])
    predictions = iter(sorted(found, key=lambda pair: pair[0]))
    for (number, line), row in zip(chunk, rows):
        if isinstance(row, SettingError):
            if request.source is None:
                raise row
            results.write_error(number, row, {"inputs": _text(line)})
            continue
        _, prediction = next(predictions)
        _write(results, row, prediction, task)


def _rows(
    predictor: Predictor, request: Request, task: TaskInputs | None, chunk: Sequence[tuple[int, bytes]]
) -> list[_Row | SettingError]:
    """Tokenizes lines; an error stands where a line is bad."""
    if task is not None:
        return _task_rows(predictor, task, chunk)
    rows: list[_Row | SettingError] = []
    for _, line in chunk:
        try:
            if request.fields:
                record = _object(line, request.fields)
                text = record[request.fields[0]]
                rows.append(_Row(record, text, predictor.tokenize(text)))
            else:
                rows.append(_Row({"inputs": _text(line)}, _text(line), predictor.tokenize(line)))
        except SettingError as error:
            rows.append(error)
    return rows


def _task_rows(predictor: Predictor, task: TaskInputs, chunk: Sequence[tuple[int, bytes]]) -> list[_Row | SettingError]:
    objects = [json_fields(line) for _, line in chunk]
    prepared = iter(task.preprocessed([fields for fields in objects if isinstance(fields, dict)]))
    rows: list[_Row | SettingError] = []
    for fields in objects:
        if isinstance(fields, SettingError):
            rows.append(fields)
            continue
        features = next(prepared)
        if isinstance(features, SettingError):
            rows.append(features)
            continue
        try:
            rows.append(_Row(fields, "", predictor.fitting(features["inputs"].tolist()), features))
        except SettingError as error:
            rows.append(error)
    return rows


def _object(line: bytes, names: Sequence[str]) -> dict[str, Any]:
    fields = json_fields(line, names)
    if isinstance(fields, SettingError):
        raise fields
    return fields


def _write(results: Results, row: _Row, prediction: Prediction, task: TaskInputs | None) -> None:
    record = row.record | {"prediction": prediction.text, "score": prediction.score}
    if FIRST_SENTINEL in row.text:
        record["filled"] = fill(row.text, prediction.text)
    if len(prediction.candidates) > 1:
        record["candidates"] = [candidate._asdict() for candidate in prediction.candidates]
    lines = [shown(row.text, each.text) for each in prediction.candidates]
    if task is not None and row.features is not None:
        record["answer"] = task.answer(prediction.text, row.features)
        lines = [str(record["answer"])]
    results.write("\n".join(lines), record)


def score(request: Request) -> int:
    """Prints or writes the log likelihood of given targets.

    Args:
      request: with an input and a target as texts, or a file of JSON objects with `fields`.

    Returns:
      How many lines have no result.

    Raises:
      SettingError: if nothing is asked for, or a file is not there.
    """
    if len(request.texts) != 2 and (request.texts or request.source is None):
        raise SettingError('score needs a text and its target: switch-tf score ... "2 + 2 =" "4" (or --file).')
    predictor = _predictor(Experiment(), request)
    results = Results(request.output, predictor.engine.is_first_process)
    if request.texts:
        (value,) = predictor.score(request.texts[:1], request.texts[1:])
        inputs, targets = request.texts
        results.write(f"{value:.4f}", {"inputs": inputs, "targets": targets, "score": value})
    else:
        for chunk in _chunks(request):
            _score_chunk(predictor, request.fields, chunk, results)
    results.close()
    predictor.engine.processes.close()
    return results.num_errors


def _score_chunk(
    predictor: Predictor, names: Sequence[str], chunk: Sequence[tuple[int, bytes]], results: Results
) -> None:
    rows: list[tuple[dict[str, Any], list[int], list[int]] | SettingError] = []
    for _, line in chunk:
        try:
            fields = _object(line, names)
            inputs = predictor.tokenize(fields[names[0]])
            rows.append((fields, inputs, predictor.tokenize(fields[names[1]], "targets")))
        except SettingError as error:
            rows.append(error)
    good = [row for row in rows if not isinstance(row, SettingError)]
    values = iter(predictor.score_rows([inputs for _, inputs, _ in good], [targets for _, _, targets in good]))
    for (number, line), row in zip(chunk, rows):
        if isinstance(row, SettingError):
            results.write_error(number, row, {"inputs": _text(line)})
            continue
        value = next(values)
        results.write(f"{value:.4f}", row[0] | {"score": value})


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace")
