"""The vocabulary of a run: one SentencePiece model in `MODEL_DIR/vocabulary/`, given or trained, for all its tasks."""

import functools
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import gin
import sentencepiece
import seqio
import tensorflow as tf
from google.protobuf.message import DecodeError

from switch_tf import storage
from switch_tf.data.sentencepiece import (
    MAX_CHARACTERS,
    NUM_SENTINELS,
    first_texts,
    path_in,
    texts_of_task,
    train_sentencepiece,
)
from switch_tf.errors import SettingError

_SENTINEL = re.compile("▁?<extra_id_[0-9]+>")
# A sentinel is a piece that begins with a space, which no text needs to have before it.
_IN_TEXT, _SPACED = re.compile(r"([^ \t\n\f\r])(<extra_id_[0-9])"), r"\1 \2"
_IN_BYTES = re.compile(_IN_TEXT.pattern.encode())

_selected_file: str | None = None


def select_vocabulary(path: str) -> None:
    """Makes the SentencePiece model at `path` the vocabulary of all tasks that use `RunVocabulary`."""
    global _selected_file
    _selected_file = path


def _unreadable(path: str, error: Exception) -> SettingError:
    refusal = storage.refusal(error)
    if refusal is not None:
        return SettingError(f"The vocabulary {path} cannot be read: {refusal}.")
    reason = " ".join(str(error).split()).rstrip(".")
    remedy = "set VocabularyFile.path to another"
    if path.startswith("gs://"):
        remedy = (
            "without a network, copy that file here from a machine with one and set VocabularyFile.path to the copy"
        )
    return SettingError(f"The vocabulary {path} cannot be read as a SentencePiece model ({reason}): {remedy}.")


class _Pieces(NamedTuple):
    """What must be known of a model's own pieces.

    Attributes:
      num_sentinels: how many sentinels are among them: mC4's has 100, C4's none.
      after_space: whether sentinels are pieces that begin with a space, as those that seqio adds.
    """

    num_sentinels: int
    after_space: bool


@functools.cache
def _pieces_of(path: str) -> _Pieces:
    """Reads a model's special pieces.

    Raises:
      SettingError: if padding, end, unknown or a sentinel has another id than the model and span corruption expect.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        model = sentencepiece.SentencePieceProcessor(model_proto=file.read())
    ids = (model.pad_id(), model.eos_id(), model.unk_id())
    if ids != (0, 1, 2):
        raise SettingError(
            f"The vocabulary {path} has the ids {ids[0]}, {ids[1]} and {ids[2]} for padding, end and unknown, "
            "not 0, 1 and 2: train one with `switch-tf vocabulary`, or with pad_id=0, eos_id=1, unk_id=2, bos_id=-1."
        )
    pieces = map(model.id_to_piece, range(len(model)))
    sentinels = {index: piece for index, piece in enumerate(pieces) if _SENTINEL.fullmatch(piece)}
    for index, piece in sentinels.items():
        if piece.lstrip("▁") != f"<extra_id_{len(model) - 1 - index}>":
            raise SettingError(
                f"The vocabulary {path} has {piece} as its piece {index}, but sentinels must be its last pieces, "
                "<extra_id_0> the very last: leave them out of the model, and the run adds 100."
            )
    return _Pieces(len(sentinels), all(piece.startswith("▁") for piece in sentinels.values()))


class RunVocabulary(seqio.SentencePieceVocabulary):
    """The vocabulary that the run selected, with T5's 100 sentinels (`<extra_id_0>` has the highest id).

    A model that has sentinels of its own gets no others. In a text a sentinel is one wherever it stands: "print(" and
    ")" may be its neighbours. Tasks are registered when their module is imported, before a
    run knows its vocabulary; this one looks the file up when it is first needed.
    """

    def __init__(self) -> None:
        super().__init__("", extra_ids=NUM_SENTINELS)
        self._num_sentinels: int | None = None
        self._after_space = True

    @property
    def num_sentinels(self) -> int:
        """How many spans an example can have at most: each needs a sentinel of its own."""
        self.load_model()
        assert self._num_sentinels is not None
        return self._num_sentinels

    def _model_context(self) -> Any:
        if _selected_file is None:
            raise SettingError("No vocabulary is selected: bind Experiment.vocabulary, or train one.")
        if self._sentencepiece_model_file != _selected_file:  # type: ignore[has-type]  # An attribute of seqio's class.
            self._sentencepiece_model_file = _selected_file
            self._num_sentinels = None
            self._model = None
        try:
            if self._num_sentinels is None:
                inside, self._after_space = _pieces_of(_selected_file)
                self._extra_ids = 0 if inside else NUM_SENTINELS
                self._num_sentinels = inside or NUM_SENTINELS
            return super()._model_context()
        except (tf.errors.OpError, OSError, RuntimeError, DecodeError) as error:
            raise _unreadable(_selected_file, error) from error

    def _encode(self, s: str | bytes) -> Sequence[int]:
        self.load_model()
        if self._after_space:
            s = _IN_TEXT.sub(_SPACED, s) if isinstance(s, str) else _IN_BYTES.sub(_SPACED.encode(), s)
        return super()._encode(s)

    def _encode_tf(self, s: tf.Tensor) -> tf.Tensor:
        self.load_model()
        return super()._encode_tf(tf.strings.regex_replace(s, _IN_TEXT.pattern, _SPACED) if self._after_space else s)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunVocabulary)

    def __hash__(self) -> int:
        return hash(RunVocabulary)


def _install(model_dir: str, contents: bytes, source: str) -> str:
    """Writes `contents` to the model directory, or checks that the vocabulary there is the same, and selects it.

    Raises:
      SettingError: if there is another vocabulary.
      OSError: if the folder cannot be written; TensorFlow's errors are converted, so that callers can tell this from
        text that cannot be read.
    """
    path = path_in(model_dir)
    if storage.exists(path):
        with tf.io.gfile.GFile(path, "rb") as file:
            if file.read() != contents:
                raise SettingError(
                    f"'{model_dir}' was made with another vocabulary than {source}: use another MODEL_DIR (CACHE_DIR "
                    f"for `switch-tf cache`), or set VocabularyFile.path = '{path}'."
                )
    else:
        try:
            storage.make_folder(os.path.dirname(path))
            storage.write_atomically(path, contents)
        except tf.errors.OpError as error:
            raise OSError(str(error)) from error
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
          SettingError: if the file cannot be read, is not a SentencePiece model, or is not the one in `model_dir`.
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
    """The vocabulary of the run whose weights this one starts from, copied once."""

    setting = "INITIAL_CHECKPOINT"

    def __init__(self, checkpoint: str = gin.REQUIRED):
        self.checkpoint = checkpoint

    def install(self, model_dir: str) -> str:
        """Copies the model, unless `model_dir` has one already, and selects it; returns its path.

        Raises:
          SettingError: if neither has one.
        """
        path = path_in(model_dir)
        if storage.exists(path):
            select_vocabulary(path)
            return path
        checkpoint = self.checkpoint.rstrip("/")
        # A model directory, or `checkpoints/step_...` in one.
        for initial in (checkpoint, os.path.dirname(os.path.dirname(checkpoint))):
            given = path_in(initial)
            if storage.exists(given):
                return VocabularyFile(given).install(model_dir)
        raise SettingError(
            f"{self.setting} = '{self.checkpoint}' is neither a model directory with a vocabulary nor a checkpoint in "
            "one: set VOCABULARY = @VocabularyFile()."
        )


@gin.configurable
class TeacherVocabulary(InitialVocabulary):
    """The vocabulary of a teacher, copied once."""

    setting = "TEACHER"

    def __init__(self, checkpoint: str | None = gin.REQUIRED, cache: str | None = None):
        """Names the teacher.

        Args:
          checkpoint: its model directory, or one of its checkpoints; None where there is only a cache.
          cache: what `switch-tf predict --probabilities` wrote.
        """
        super().__init__(checkpoint or cache or "")
        if checkpoint is None:
            self.setting = "TEACHER_CACHE"


@gin.configurable
class TrainedVocabulary:
    """A SentencePiece model trained on the text of a task, once, when the model directory is made."""

    def __init__(
        self,
        task: str = gin.REQUIRED,
        num_pieces: int = 4096,
        split: str = "train",
        max_characters: int = MAX_CHARACTERS,
    ):
        self.task = task
        self.num_pieces = num_pieces
        self.split = split
        self.max_characters = max_characters

    def install(self, model_dir: str) -> str:
        """Trains the model, unless `model_dir` has one already, and selects it; returns its path.

        Raises:
          SettingError: if the task's text is empty or too little.
        """
        path = path_in(model_dir)
        if storage.exists(path):
            select_vocabulary(path)
            return path
        print(f"Training a vocabulary of {self.num_pieces} pieces on {self.task} ...", flush=True)
        texts = first_texts(texts_of_task(self.task, self.split), self.max_characters)
        model = train_sentencepiece((line for text in texts for line in text.splitlines()), self.num_pieces)
        return _install(model_dir, model, f"one trained on {self.task}")
