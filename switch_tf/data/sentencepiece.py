"""Training SentencePiece vocabularies: from a task's text or from files; `switch-tf vocabulary`."""

import io
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import sentencepiece
import tensorflow as tf
import tqdm

from switch_tf import storage
from switch_tf.data.autotuning import without_autotuning
from switch_tf.data.task_lookup import check_split, find_task, tasks_of
from switch_tf.data.text_files import Patterns, matching_files, read_documents
from switch_tf.errors import SettingError

NUM_SENTINELS = 100
# Enough for 32,000 pieces, and minutes of training; a large corpus is not read to its end.
MAX_CHARACTERS = 20_000_000
# Of a line; SentencePiece leaves longer ones out without a word.
_MAX_BYTES = 1 << 16


class Vocabulary(Protocol):
    """Where the vocabulary of a run, or of a cache, comes from."""

    def install(self, model_dir: str) -> str:
        """Writes the vocabulary to `path_in(model_dir)`, selects it for the tasks and returns that path."""


def path_in(model_dir: str) -> str:
    """Returns where a model directory, or a folder of cached tasks, keeps its vocabulary; local or in a bucket."""
    return os.path.join(model_dir, "vocabulary", "sentencepiece.model")


def train_sentencepiece(lines: Iterable[str], vocab_size: int) -> bytes:
    """Trains a unigram model with byte fallback; the same lines give the same bytes.

    Args:
      lines: text; empty lines are skipped.
      vocab_size: ids without the sentinels: padding 0, end of sequence 1, unknown 2, 256 bytes, pieces.

    Returns:
      The serialized model.

    Raises:
      SettingError: if there is no text, or too little for that many pieces.
    """
    lines = [part for line in lines if line.strip() for part in cut(line)]
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
            max_sentence_length=_MAX_BYTES,
            # With more threads, the pieces differ from one run to the next.
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise SettingError(
            f"A vocabulary of {vocab_size} pieces cannot be trained on this corpus: {_reason(str(error))}."
        ) from error
    return model.getvalue()


def cut(line: str) -> list[str]:
    """Cuts a line that is longer than SentencePiece reads, after a space where there is one; it would be left out."""
    parts = []
    while len(line.encode(errors="replace")) > _MAX_BYTES:
        end = line.rfind(" ", 1, _MAX_BYTES // 4) + 1 or _MAX_BYTES // 4
        parts.append(line[:end])
        line = line[end:]
    return [*parts, line]


def _reason(message: str) -> str:
    """Says in our settings what SentencePiece says in its own."""
    most = re.search(r"value <= (\d+)", message)
    if most is not None:
        return f"it has text for {most[1]} at most; give it more text, or set fewer pieces"
    fewest = re.search(r"required_chars\. \d+ vs (\d+)", message)
    if fewest is not None:
        return f"its characters alone need {fewest[1]}; set more pieces"
    return " ".join(message.split()).rstrip(".")


def _texts(examples: tf.data.Dataset) -> Iterator[str]:
    """Yields every string of every example, or only its "text" if it has one."""
    for example in without_autotuning(examples).as_numpy_iterator():
        chosen = {"text": example["text"]} if "text" in example else example
        for value in chosen.values():
            if isinstance(value, bytes) or (isinstance(value, np.ndarray) and value.dtype == object):
                yield from (text.decode(errors="replace") for text in np.ravel(value))


def texts_of_task(mixture_or_task: str, split: str = "train") -> Iterator[str]:
    """Yields the raw text of a task, or of a mixture's tasks one after the other.

    Args:
      mixture_or_task: a seqio name.
      split: which split.

    Raises:
      SettingError: if the name is unknown, or a task does not have the split.
    """
    for task in tasks_of(find_task(mixture_or_task)):
        check_split(task, split)
        yield from _texts(task.source.get_dataset(split=split, shuffle=False, seed=0))


def texts_of_files(patterns: Patterns, key: str = "text") -> Iterator[str]:
    """Yields the documents of text or JSON lines files.

    Args:
      patterns: names or patterns.
      key: of the text in a JSON object.

    Raises:
      SettingError: for a pattern that matches no file.
    """
    for file in matching_files(patterns, "FILE"):
        yield from _texts(read_documents(tf.constant(file), key))


def first_texts(texts: Iterable[str], max_characters: int, max_documents: int | None = None) -> list[str]:
    """Takes texts until there are enough, with a progress bar.

    Args:
      texts: finite or endless.
      max_characters: the last text taken is the one that reaches this number.
      max_documents: how many texts at most; None for any number.

    Returns:
      The texts.
    """
    taken: list[str] = []
    characters = 0
    with tqdm.tqdm(desc="reading", unit="char", unit_scale=True, leave=False) as bar:
        for text in itertools.islice(texts, max_documents):
            taken.append(text)
            characters += len(text)
            bar.update(len(text))
            if characters >= max_characters:
                break
    return taken


def make_vocabulary(
    output: str,
    num_pieces: int,
    files: Sequence[str] = (),
    mixture_or_task: str | None = None,
    split: str = "train",
    key: str = "text",
    max_characters: int = MAX_CHARACTERS,
    max_documents: int | None = None,
) -> None:
    """Trains a vocabulary, writes it and prints a summary: the command `switch-tf vocabulary`.

    Args:
      output: the file to write; must not exist.
      num_pieces: ids without the sentinels.
      files: text or JSON lines files to read; empty to read the task.
      mixture_or_task: a seqio name; None to read the files.
      split: which split of the task.
      key: of the text in a JSON object.
      max_characters: how much text to read.
      max_documents: how many documents to read at most; None for any number.

    Raises:
      SettingError: if there is no text, too little of it, or the output cannot be written.
    """
    if files and mixture_or_task is None:
        texts = texts_of_files(files, key)
    elif mixture_or_task is not None and not files:
        texts = texts_of_task(mixture_or_task, split)
    else:
        raise SettingError("switch-tf vocabulary needs files, or --task with the gin file that registers it.")
    limits = {"num_pieces": num_pieces, "max_characters": max_characters, "max_documents": max_documents}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise SettingError(f"--{name}={value} must be at least 1.")
    if storage.exists(output):
        raise SettingError(f"--output={output} exists already: delete it, or choose another name.")
    documents = first_texts(texts, max_characters, max_documents)
    characters = sum(map(len, documents))
    print(f"Training {num_pieces} pieces on {len(documents):,} documents, {characters:,} characters ...", flush=True)
    lines = [line for text in documents for line in text.splitlines()]
    num_long = sum(len(cut(line)) > 1 for line in lines)
    if num_long:
        print(f"{num_long:,} lines of more than {_MAX_BYTES:,} bytes are cut.", flush=True)
    model = train_sentencepiece(lines, num_pieces)
    try:
        storage.write_atomically(output, model)
    except (tf.errors.OpError, OSError) as error:
        reason = storage.refusal(error) or storage.reason_of(error)
        raise SettingError(f"--output={output} cannot be written: {reason}.") from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    sample = documents[:: max(1, len(documents) // 200)]
    tokens = sum(map(len, processor.encode(sample)))
    ids = num_pieces + NUM_SENTINELS
    print(
        f"{output}: {num_pieces} pieces, {ids} ids with the {NUM_SENTINELS} sentinels, "
        f"{sum(map(len, sample)) / max(1, tokens):.2f} characters per token.\n"
        f"Use it with --gin.VOCABULARY=@VocabularyFile() --gin.VocabularyFile.path='\"{output}\"' "
        f"--gin.VOCAB_SIZE={-(-ids // 128) * 128}"
    )
