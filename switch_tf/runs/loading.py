"""`switch_tf.load`: a model directory as an object to predict with."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from switch_tf.decoding.settings import Decoding
from switch_tf.runs import gin_config, loop  # noqa: F401 (`loop` registers everything that gin files bind)
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.model_directory import read_description
from switch_tf.runs.predictor import Predictor, predictor_of


def load(
    model_dir: str,
    *,
    step: int | None = None,
    gin_files: Sequence[str] = (),
    bindings: Sequence[str] = (),
    batch_size: int = 16,
    too_long: str = "refuse",
    **decoding: Any,
) -> Predictor:
    """Loads a trained model: `switch_tf.load("runs/mine").predict(["The <extra_id_0> sat down."])[0].text`.

    It replaces gin's current configuration by that of the model directory.

    Args:
      model_dir: that `train` or `convert` wrote.
      step: which checkpoint; None for the newest.
      gin_files: files to add, such as a layout of gin/layouts.
      bindings: lines of gin to add, "TASK_FEATURE_LENGTHS = {'inputs': 1024, 'targets': 128}".
      batch_size: texts that go through the model together.
      too_long: "refuse" raises an error for a text of more tokens than the run's lengths; "cut" drops its end.
      **decoding: attributes of `Decoding` to change, `decoder="beam", num_beams=8`.

    Returns:
      An object with `predict`, `score` and `encode`.

    Raises:
      SettingError: if there is no such model directory or checkpoint, or a setting is wrong.
    """
    recorded = read_description(model_dir)
    gin_config.load(gin_files, [*bindings, f"MODEL_DIR = {model_dir!r}"], recorded=recorded)
    settings = dataclasses.replace(Decoding(), **decoding)
    return predictor_of(Experiment(), settings, step, batch_size, too_long)
