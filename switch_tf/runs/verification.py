"""Reads all that a model directory holds, to its end: the command `switch-tf check`."""

import csv
import os
from typing import NamedTuple

import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder, UnusableCheckpoint, checkpoints_of
from switch_tf.data.cached_tasks import file_digest
from switch_tf.data.sentencepiece import path_in
from switch_tf.errors import SettingError

_CSV_FILES = ("metrics.csv", "eval.csv", "task_eval.csv", "experts.csv", "findings.csv", "events.csv")


class Finding(NamedTuple):
    """What is said of one file or checkpoint.

    Attributes:
      name: within the model directory.
      fault: what is wrong with it; None where it is whole.
      contents: what has been read, "12 tensors, 3,456 bytes".
    """

    name: str
    fault: str | None
    contents: str = ""


def verify(model_dir: str) -> list[Finding]:
    """Verifies every checkpoint (the checksums of all tensors), the CSV files and the vocabulary.

    Args:
      model_dir: local or in a bucket.

    Returns:
      What was found, a line for each.

    Raises:
      SettingError: if there is no such folder, or a bucket does not answer.
    """
    if not storage.is_folder(model_dir):
        raise SettingError(f"MODEL_DIR = '{model_dir}' is no folder: name one that `train` made.")
    checkpoints = checkpoints_of(model_dir)
    complete = checkpoints.steps()
    findings = [_verify_checkpoint(checkpoints, step, model_dir) for step in complete]
    for name in storage.list_folder(checkpoints.folder):
        if os.path.join(checkpoints.folder, name) not in map(checkpoints.path, complete):
            findings.append(Finding(f"checkpoints/{name}", None, "set aside, or an interrupted write: not used"))
    for name in _CSV_FILES:
        if storage.exists(os.path.join(model_dir, name)):
            findings.append(_verify_csv(model_dir, name))
    return findings


def _verify_checkpoint(checkpoints: CheckpointFolder, step: int, model_dir: str) -> Finding:
    name = f"checkpoints/{os.path.basename(checkpoints.path(step))}"
    try:
        manifest = checkpoints.manifest(step)
    except UnusableCheckpoint as error:
        return Finding(name, str(error))
    try:
        shapes, num_bytes = _read_all(checkpoints.prefix(step))
    except (tf.errors.OpError, ValueError) as error:
        refused = storage.refusal(error)
        if refused is not None:
            raise SettingError(f"{checkpoints.path(step)} cannot be read: {refused}.") from error
        return Finding(name, storage.reason_of(error))
    if manifest.step != step:
        return Finding(name, f"its manifest is of step {manifest.step}")
    wrong = [tensor for tensor, shape in manifest.shapes.items() if shapes.get(tensor) != tuple(shape)]
    if wrong:
        return Finding(name, f"its manifest and its tensors differ in {min(wrong)}")
    vocabulary = path_in(model_dir)
    if manifest.vocabulary is not None and not storage.exists(vocabulary):
        return Finding(name, f"its vocabulary, {vocabulary}, is not there")
    if manifest.vocabulary not in (None, file_digest(vocabulary) if storage.exists(vocabulary) else None):
        return Finding(name, f"{vocabulary} is not the vocabulary that it was trained with")
    return Finding(name, None, f"{len(shapes)} tensors, {num_bytes:,} bytes")


def _read_all(prefix: str) -> tuple[dict[str, tuple[int, ...]], int]:
    """Reads every tensor, one at a time; TensorFlow compares the checksums. Returns shapes by name, and bytes."""
    reader = tf.train.load_checkpoint(storage.literal(prefix))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    num_bytes = 0
    for name, dtype in dtypes.items():
        values = tensor_bundle.read(prefix, name, dtype)
        num_bytes += 0 if dtype == tf.variant else values.shape.num_elements() * dtype.size
    return {name: tuple(shape) for name, shape in shapes.items()}, num_bytes


def _verify_csv(model_dir: str, name: str) -> Finding:
    with tf.io.gfile.GFile(os.path.join(model_dir, name), "rb") as file:
        content = file.read()
    try:
        header, *rows = csv.reader(content.decode().splitlines())
    except (ValueError, csv.Error) as error:
        return Finding(name, f"it is not a CSV file ({error})")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            return Finding(name, f"line {number} has {len(row)} fields, not {len(header)}")
    steps = [row[0] for row in rows]
    if not all(step.isdecimal() for step in steps):
        return Finding(name, "a step is not a number")
    numbers = list(map(int, steps))
    if numbers != sorted(numbers):
        return Finding(name, "its steps are not in order")
    if name == "metrics.csv" and len(set(numbers)) < len(numbers):
        return Finding(name, "a step has two rows")
    return Finding(name, None, f"{len(rows):,} rows")
