"""The vocabulary of a run: one SentencePiece model in `MODEL_DIR/vocabulary/`, given or trained, for all its tasks."""

import io
import os
import pathlib
from collections.abc import Iterable

import gin
import sentencepiece
import seqio
import tensorflow as tf
from google.protobuf.message import DecodeError

from switch_tf.errors import SettingError

NUM_SENTINELS = 100
FILE_NAME = "sentencepiece.model"

_selected_file: str | None = None


def select_vocabulary(path: str) -> None:
    """Makes the SentencePiece model at `path` the vocabulary of all tasks that use `RunVocabulary`."""
    global _selected_file
    _selected_file = path


def _unreadable(path: str, error: Exception) -> SettingError:
    reason = " ".join(str(error).split())
    return SettingError(f"The vocabulary {path} cannot be read as a SentencePiece model: {reason}")


class RunVocabulary(seqio.SentencePieceVocabulary):
    """The vocabulary that the run selected, with T5's 100 sentinels (`<extra_id_0>` has the highest id).

    Tasks are registered when their module is imported, long before a run knows its vocabulary; this one looks the
    file up when it is first needed.
    """

    def __init__(self):
        super().__init__("", extra_ids=NUM_SENTINELS)

    def _model_context(self):
        if _selected_file is None:
            raise SettingError("No vocabulary is selected: bind Experiment.vocabulary, or train one.")
        if self._sentencepiece_model_file != _selected_file:
            self._sentencepiece_model_file = _selected_file
            self._model = None
        try:
            return super()._model_context()
        except (tf.errors.OpError, OSError, RuntimeError, DecodeError) as error:
            raise _unreadable(_selected_file, error) from error

    def __eq__(self, other):
        return isinstance(other, RunVocabulary)

    def __hash__(self):
        return hash(RunVocabulary)


def train_sentencepiece(lines: Iterable[str], vocab_size: int) -> bytes:
    """Trains a unigram model with byte fallback; the same lines give the same bytes.

    Args:
      lines: text; empty lines are skipped.
      vocab_size: ids without the sentinels: padding 0, end of sequence 1, unknown 2, 256 bytes, pieces.

    Returns:
      The serialised model.

    Raises:
      SettingError: if there is no text, or too little for so many pieces.
    """
    lines = [line for line in lines if line.strip()]
    if not lines:
        raise SettingError("The corpus is empty: a vocabulary cannot be trained on it.")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="unigram",
            byte_fallback=True,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            max_sentence_length=1 << 16,
            # More threads find other pieces from one run to the next.
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise SettingError(f"A vocabulary of {vocab_size} pieces cannot be trained on this corpus: {reason}") from error
    return model.getvalue()


def _install(model_dir: str, contents: bytes, source: str) -> str:
    """Puts `contents` into the model directory, or checks that the vocabulary there is the same; selects it."""
    folder = os.path.join(model_dir, "vocabulary")
    path = os.path.join(folder, FILE_NAME)
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            if file.read() != contents:
                raise SettingError(
                    f"MODEL_DIR = '{model_dir}' was made with another vocabulary than {source}: use another MODEL_DIR, "
                    f"or take {path} as the vocabulary."
                )
    else:
        tf.io.gfile.makedirs(folder)
        # A rename is atomic: a run that is killed here leaves no half of a vocabulary.
        with tf.io.gfile.GFile(path + ".writing", "wb") as file:
            file.write(contents)
        tf.io.gfile.rename(path + ".writing", path, overwrite=True)
    select_vocabulary(path)
    return path


@gin.configurable
class VocabularyFile:
    """A SentencePiece model that exists: a local path or one in a bucket."""

    def __init__(self, path: str = gin.REQUIRED):
        self.path = path

    def install(self, model_dir: str) -> str:
        """Copies the model into `model_dir` and selects it; returns the copy's path.

        Raises:
          SettingError: if the file cannot be read, is no SentencePiece model, or is not the one already there.
        """
        try:
            with tf.io.gfile.GFile(self.path, "rb") as file:
                contents = file.read()
            sentencepiece.SentencePieceProcessor(model_proto=contents)
        except (tf.errors.OpError, OSError, RuntimeError) as error:
            raise _unreadable(self.path, error) from error
        return _install(model_dir, contents, self.path)


@gin.configurable
class InitialVocabulary:
    """The vocabulary of the run that this one begins from, copied once."""

    def __init__(self, checkpoint: str = gin.REQUIRED):
        self.checkpoint = checkpoint

    def install(self, model_dir: str) -> str:
        """Copies the model, unless `model_dir` has one already, and selects it; returns its path.

        Raises:
          SettingError: if neither has one.
        """
        path = os.path.join(model_dir, "vocabulary", FILE_NAME)
        if tf.io.gfile.exists(path):
            select_vocabulary(path)
            return path
        checkpoint = self.checkpoint.rstrip("/")
        # A model directory, or `checkpoints/step_...` in one.
        for initial in (checkpoint, os.path.dirname(os.path.dirname(checkpoint))):
            given = os.path.join(initial, "vocabulary", FILE_NAME)
            if tf.io.gfile.exists(given):
                return VocabularyFile(given).install(model_dir)
        raise SettingError(
            f"INITIAL_CHECKPOINT = '{self.checkpoint}' is neither a model directory with a vocabulary nor a checkpoint "
            "in one."
        )


@gin.configurable
class TrainedVocabulary:
    """A SentencePiece model trained on the text of a task, once, when the model directory is made."""

    def __init__(self, task: str = gin.REQUIRED, num_pieces: int = 4096, split: str = "train"):
        self.task = task
        self.num_pieces = num_pieces
        self.split = split

    def _lines(self) -> Iterable[str]:
        source = seqio.TaskRegistry.get(self.task).source
        for example in source.get_dataset(split=self.split, shuffle=False).as_numpy_iterator():
            yield from example["text"].decode().splitlines()

    def install(self, model_dir: str) -> str:
        """Trains the model, unless `model_dir` has one already, and selects it; returns its path.

        Raises:
          SettingError: if the task's text is empty or too little.
        """
        path = pathlib.Path(model_dir) / "vocabulary" / FILE_NAME
        if tf.io.gfile.exists(str(path)):
            select_vocabulary(str(path))
            return str(path)
        print(f"Training a vocabulary of {self.num_pieces} pieces on {self.task} ...", flush=True)
        return _install(model_dir, train_sentencepiece(self._lines(), self.num_pieces), f"one trained on {self.task}")
