"""Sentinels of a text replaced by what a model predicts for them."""

import itertools

import numpy as np

from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.errors import SettingError
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.predictor import Predictor

FIRST_SENTINEL = "<extra_id_0>"


def fill(text: str, prediction: str) -> str:
    """Replaces the sentinels of a text by the spans of a prediction, in brackets.

    Args:
      text: with `<extra_id_0>`, `<extra_id_1>`, ...
      prediction: `<extra_id_0> span <extra_id_1> span ...`; a sentinel that it does not have stays empty.

    Returns:
      The text with `[span]` for each sentinel.
    """
    spans: dict[str, str] = {}
    for part in prediction.split("<extra_id_")[1:]:
        number, _, span = part.partition(">")
        spans.setdefault(number, span.strip())
    filled, *parts = text.split("<extra_id_")
    for part in parts:
        number, _, rest = part.partition(">")
        filled += f"[{spans.get(number, '')}]{rest}"
    return filled


def predict_held_out(experiment: Experiment, predictor: Predictor, number: int) -> None:
    """Prints examples that are spread over the held-out split: the input, the prediction, and the truth.

    Args:
      experiment: its data are held out.
      predictor: of its model.
      number: how many examples.

    Raises:
      SettingError: if the number is not positive, or there are no data.
    """
    if number < 1:
        raise SettingError(f"--held_out={number} must be at least 1.")
    lengths = experiment.task_feature_lengths
    batches = evaluation_batches(experiment.mixture_or_task, lengths, 1, None, cache=experiment.cache)
    available = sum(1 for _ in batches)
    examples = list(itertools.islice(batches, 0, None, max(1, available // number)))[:number]
    rows = [_without_padding(example["encoder_input_tokens"][0]) for example in examples]
    for example, (_, prediction) in zip(examples, sorted(predictor.decode_rows(rows))):
        text = predictor.text_of(example["encoder_input_tokens"][0])
        truth = predictor.text_of(example["decoder_target_tokens"][0])
        predictor.engine.say(f"input: {text}\nmodel: {shown(text, prediction.text)}\ntruth: {shown(text, truth)}\n")


def shown(text: str, prediction: str) -> str:
    """Returns a prediction, or the text that it fills where that has sentinels."""
    return fill(text, prediction) if FIRST_SENTINEL in text else prediction


def _without_padding(ids: np.ndarray) -> list[int]:
    return [token for token in ids.tolist() if token != 0]
