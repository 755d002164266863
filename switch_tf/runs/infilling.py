"""Fills the sentinels of texts with what a run's model predicts for them."""

import itertools
import math
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import seqio
import tensorflow as tf

from switch_tf import storage
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.data.task_lookup import vocabulary_of
from switch_tf.decoding.greedy import make_greedy
from switch_tf.errors import SettingError
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import Run, load_run

# More texts than this go through the model in several batches.
_PREDICTION_BATCH = 16


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


def _encode(texts: Sequence[str], vocabulary: seqio.Vocabulary, length: int) -> np.ndarray:
    tokens = np.zeros([len(texts), length], np.int32)
    for row, text in enumerate(texts):
        ids = [*vocabulary.encode(text), vocabulary.eos_id]
        if len(ids) > length:
            raise SettingError(
                f"A text has {len(ids)} tokens and TASK_FEATURE_LENGTHS['inputs'] is {length}: shorten the text, or "
                "set --gin.TASK_FEATURE_LENGTHS (the model takes any length)."
            )
        tokens[row, : len(ids)] = ids
    return tokens


def _decode(tokens: np.ndarray, vocabulary: seqio.Vocabulary) -> str:
    ids = tokens.tolist()
    end = ids.index(vocabulary.eos_id) if vocabulary.eos_id in ids else len(ids)
    return vocabulary.decode([i for i in ids[:end] if i != 0])


def _texts(texts: Sequence[str], file: str | None) -> list[str]:
    if file is not None:
        try:
            with sys.stdin if file == "-" else tf.io.gfile.GFile(file) as lines:
                texts = [*texts, *(line.strip() for line in lines if line.strip())]
        except (OSError, UnicodeDecodeError, tf.errors.OpError) as error:
            raise SettingError(f"--file={file} cannot be read: {storage.refusal(error) or error}.") from error
    if not texts:
        raise SettingError('predict needs a text: switch-tf predict ... "The <extra_id_0> sat down." (or --file).')
    if not all("<extra_id_0>" in text for text in texts):
        raise SettingError("Each text needs a sentinel where words are missing, from <extra_id_0> on.")
    return list(texts)


def predict(texts: Sequence[str], file: str | None, num_held_out: int | None, step: int | None) -> None:
    """Fills the sentinels of texts and prints the results; of held-out examples also what stood there."""
    if num_held_out is None:
        texts = _texts(texts, file)
    elif num_held_out < 1:
        raise SettingError(f"--held_out={num_held_out} must be at least 1.")
    experiment = Experiment()
    run = load_run(experiment, step)
    vocabulary = vocabulary_of(experiment.mixture_or_task)
    lengths = experiment.task_feature_lengths
    if num_held_out is None:
        inputs = _encode(texts, vocabulary, lengths["inputs"])
        for text, prediction in zip(texts, _predictions(run, inputs, vocabulary)):
            run.engine.say(fill(text, prediction))
        run.engine.processes.close()
        return
    batches = evaluation_batches(experiment.mixture_or_task, lengths, 1, None, cache=experiment.cache)
    number = sum(1 for _ in batches)
    examples = list(itertools.islice(batches, 0, None, max(1, number // num_held_out)))[:num_held_out]
    inputs = np.concatenate([example["encoder_input_tokens"] for example in examples])
    targets = np.concatenate([example["decoder_target_tokens"] for example in examples])
    for tokens, target, prediction in zip(inputs, targets, _predictions(run, inputs, vocabulary)):
        text, truth = _decode(tokens, vocabulary), _decode(target, vocabulary)
        run.engine.say(f"input: {text}\nmodel: {fill(text, prediction)}\ntruth: {fill(text, truth)}\n")
    run.engine.processes.close()


def _predictions(run: Run, inputs: np.ndarray, vocabulary: seqio.Vocabulary) -> Iterator[str]:
    """Decodes every row of `inputs`, int32 [any number, L], in batches of one shape, so that it compiles once."""
    decode = make_greedy(run.model, run.experiment.task_feature_lengths["targets"], run.engine)
    multiple = run.engine.batch_multiple
    size = math.ceil(min(_PREDICTION_BATCH, len(inputs)) / multiple) * multiple
    for first in range(0, len(inputs), size):
        part = inputs[first : first + size]
        padded = np.pad(part, [(0, size - len(part)), (0, 0)])
        for tokens in decode(padded)[: len(part)]:
            yield _decode(tokens, vocabulary)
