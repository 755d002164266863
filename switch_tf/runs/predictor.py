"""A trained model in Python: texts to predictions, to likelihoods of targets and to vectors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from switch_tf.data.task_lookup import vocabulary_of
from switch_tf.decoding.decoder import EXAMPLES, PREFIX, make_decoder, make_encoder
from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError
from switch_tf.evaluation.likelihood import make_scorer
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import Engine
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import load_run

_INPUTS = "encoder_input_tokens"
# The shortest length that a batch is padded to; the next ones are twice as long, up to that of the run.
_SHORTEST = 32
TOO_LONG = ("refuse", "cut")


class Candidate(NamedTuple):
    """One predicted text, and its score: a log probability; that of beam search has a length penalty."""

    text: str
    score: float


class Prediction(NamedTuple):
    """What a model predicts for a text: a candidate, or the beams (best first) or samples."""

    candidates: tuple[Candidate, ...]

    @property
    def text(self) -> str:
        """The first candidate's text."""
        return self.candidates[0].text

    @property
    def score(self) -> float:
        """The first candidate's score."""
        return self.candidates[0].score


class Predictor:
    """Predicts with a model. Results do not depend on which texts are given together."""

    def __init__(
        self,
        model: EncoderDecoder,
        engine: Engine,
        vocabulary: seqio.Vocabulary,
        lengths: dict[str, int],
        decoding: Decoding,
        batch_size: int = 16,
        too_long: str = "refuse",
    ):
        """Compiles nothing yet: each method compiles at its first call, for each length of a batch.

        Args:
          model: built by the engine.
          engine: where the model is.
          vocabulary: of the run.
          lengths: tokens of inputs and targets at most.
          decoding: how `predict` decodes.
          batch_size: texts that go through the model together; rounded up to what the mesh needs.
          too_long: "refuse" raises an error for a text of more tokens than the lengths; "cut" drops its end.

        Raises:
          SettingError: if an argument is out of range.
        """
        if too_long not in TOO_LONG:
            raise SettingError(f"too_long = '{too_long}' must be 'refuse' or 'cut'.")
        if batch_size < 1:
            raise SettingError(f"batch_size = {batch_size} must be at least 1.")
        self.engine = engine
        self.vocabulary = vocabulary
        self.lengths = lengths
        self._too_long = too_long
        self._batch_size = batch_size
        self._max_decoded = decoding.max_length or lengths["targets"]
        self._decode = make_decoder(model, decoding, lengths["targets"], engine)
        self._score = make_scorer(model, engine, dropless=True)
        self._encode = make_encoder(model, engine)

    def predict(
        self, texts: Sequence[str | bytes], *, prefixes: Sequence[str | bytes] | None = None
    ) -> list[Prediction]:
        """Predicts a target for each text.

        Args:
          texts: as the model was trained on: with `<extra_id_0>` where words are missing for a pre-trained model, with
            the prefix of the task for a fine-tuned one.
          prefixes: what each target starts with; None: nothing is given.

        Returns:
          A prediction for each text. The random draws of sampling depend on a text's place in `texts`.

        Raises:
          SettingError: if a text has more tokens than the run's inputs, unless they are cut.
        """
        rows = [self.tokenize(text) for text in texts]
        starts = None if prefixes is None else [self.tokenize_prefix(prefix) for prefix in prefixes]
        return [prediction for _, prediction in sorted(self.decode_rows(rows, starts))]

    def score(self, inputs: Sequence[str | bytes], targets: Sequence[str | bytes]) -> list[float]:
        """Returns the log likelihood of each target given its input, in nats, EOS included.

        Raises:
          SettingError: if there are not as many targets as inputs, or a text is too long.
        """
        if len(inputs) != len(targets):
            raise SettingError(f"{len(inputs)} inputs have {len(targets)} targets: each needs one.")
        rows = [self.tokenize(text) for text in inputs]
        return self.score_rows(rows, [self.tokenize(text, "targets") for text in targets])

    def encode(self, texts: Sequence[str | bytes]) -> list[np.ndarray]:
        """Returns the encoder's output for each text: float32 [tokens of the text with EOS, M].

        Raises:
          SettingError: if a text is too long.
        """
        rows = [self.tokenize(text) for text in texts]
        found: dict[int, np.ndarray] = {}
        for indices, tokens in self._batches(rows):
            for index, states in zip(indices, self._run(self._encode, {_INPUTS: tokens})):
                found[index] = states[: len(rows[index])]
        return [found[index] for index in range(len(rows))]

    def tokenize(self, text: str | bytes, feature: str = "inputs") -> list[int]:
        """Returns the token ids of a text with EOS at the end.

        Args:
          text: bytes that are not UTF-8 are replaced, each by U+FFFD.
          feature: "inputs" or "targets", whose length must hold it.

        Raises:
          SettingError: if it is too long, unless texts are cut.
        """
        ids = [*self.vocabulary.encode(text), self.vocabulary.eos_id]
        return self.fitting(ids, feature)

    def tokenize_prefix(self, text: str | bytes) -> list[int]:
        """Returns the token ids of what a target starts with.

        Raises:
          SettingError: if it leaves no room for a prediction.
        """
        ids = self.vocabulary.encode(text)
        if len(ids) >= self._max_decoded:
            raise SettingError(
                f"The prefix has {len(ids)} tokens and at most {self._max_decoded} are decoded: shorten it, or set "
                "--gin.MAX_DECODE_LENGTH."
            )
        return ids

    def fitting(self, ids: list[int], feature: str = "inputs") -> list[int]:
        """Returns ids that fit a feature's length, cut to it if texts are cut.

        Raises:
          SettingError: if they are too many, and texts are not cut.
        """
        length = self.lengths[feature]
        if len(ids) <= length:
            return ids
        if self._too_long == "refuse":
            raise SettingError(
                f"A text has {len(ids)} tokens and TASK_FEATURE_LENGTHS['{feature}'] is {length}: shorten the text, "
                "cut it by --too_long=cut, or set --gin.TASK_FEATURE_LENGTHS (the model takes any length)."
            )
        return [*ids[: length - 1], self.vocabulary.eos_id]

    def decode_rows(
        self, rows: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]] | None = None, first_number: int = 0
    ) -> Iterator[tuple[int, Prediction]]:
        """Decodes rows of token ids.

        Args:
          rows: inputs with EOS.
          prefixes: of the targets, without EOS.
          first_number: of the first row; the random draws of sampling depend on the numbers of the rows.

        Yields:
          The index of a row and its prediction, short rows first.
        """
        for indices, tokens in self._batches(rows):
            numbers = np.array(indices, np.int32).reshape(-1, 1) + first_number
            batch = {_INPUTS: tokens, EXAMPLES: numbers}
            if prefixes is not None:
                batch[PREFIX] = _padded([prefixes[index] for index in indices], max(1, *map(len, prefixes)))
            decoded = self._run(self._decode, batch)
            for index, sequences, scores in zip(indices, decoded.tokens, decoded.scores):
                candidates = [Candidate(self.text_of(ids), float(score)) for ids, score in zip(sequences, scores)]
                yield index, Prediction(tuple(candidates))

    def score_rows(self, rows: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> list[float]:
        """Returns the log likelihoods of targets given inputs, both token ids with EOS."""
        length = max(map(len, targets), default=1)
        found: dict[int, float] = {}
        for indices, tokens in self._batches(rows):
            outputs = _padded([targets[index] for index in indices], self._bucket(length, "targets"))
            shifted = np.pad(outputs, [(0, 0), (1, 0)])[:, :-1]
            batch = {_INPUTS: tokens, "decoder_input_tokens": shifted, "decoder_target_tokens": outputs}
            found |= zip(indices, map(float, self._run(self._score, batch)))
        return [found[index] for index in range(len(rows))]

    def text_of(self, tokens: np.ndarray) -> str:
        """Returns the text of token ids, int32 [T], up to EOS."""
        ids = tokens.tolist()
        end = ids.index(self.vocabulary.eos_id) if self.vocabulary.eos_id in ids else len(ids)
        return self.vocabulary.decode([i for i in ids[:end] if i != 0])

    def _bucket(self, length: int, feature: str) -> int:
        """Returns the length that a batch is padded to: few different ones, as each is compiled."""
        bucket = _SHORTEST
        while bucket < length:
            bucket *= 2
        return max(length, min(bucket, self.lengths[feature]))

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yields the indices of some rows, and these rows padded to one length; short ones first."""
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        size = min(self._batch_size, len(rows))
        for first in range(0, len(rows), max(size, 1)):
            indices = order[first : first + size]
            yield indices, _padded([rows[index] for index in indices], self._bucket(len(rows[indices[-1]]), "inputs"))

    def _run(self, function: Any, batch: dict[str, np.ndarray]) -> Any:
        """Runs a compiled function on a batch that is filled up with padding; returns the results of its rows."""
        rows = len(batch[_INPUTS])
        multiple = self.engine.batch_multiple
        size = math.ceil(rows / multiple) * multiple
        if rows > 1:  # One text alone is not to wait for 15 rows of padding.
            size = math.ceil(self._batch_size / multiple) * multiple
        full = {name: np.pad(array, [(0, size - rows), (0, 0)]) for name, array in batch.items()}
        return tf.nest.map_structure(lambda array: array[:rows], function(full))


def predictor_of(
    experiment: Experiment, decoding: Decoding, step: int | None = None, batch_size: int = 16, too_long: str = "refuse"
) -> Predictor:
    """Loads a checkpoint to predict with.

    Args:
      experiment: its model directory holds the checkpoint.
      decoding: how to decode.
      step: which checkpoint; None for the newest.
      batch_size: texts that go through the model together.
      too_long: "refuse" or "cut".

    Raises:
      SettingError: if there is no such checkpoint, or an argument is out of range.
    """
    run = load_run(experiment, step)
    vocabulary = vocabulary_of(experiment.mixture_or_task)
    lengths = dict(experiment.task_feature_lengths)
    return Predictor(run.model, run.engine, vocabulary, lengths, decoding, batch_size, too_long)


def _padded(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    """Returns rows of ids as int32 [rows, length], padded with 0."""
    array = np.zeros([len(rows), length], np.int32)
    for index, row in enumerate(rows):
        array[index, : len(row)] = row
    return array
