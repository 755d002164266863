"""Documents in files: plain text (a document on each line) and JSON lines (an object on each), compressed or not."""

import codecs
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import seqio
import tensorflow as tf

from switch_tf import storage
from switch_tf.data.file_formats import GZIP, PLAIN, format_of, lines_of
from switch_tf.errors import SettingError

Patterns = str | Sequence[str]

_JSON = "json"
_BYTE_ORDER_MARK = "^\ufeff"
_LINES_PER_CALL = 32
# In a bucket a lookup takes a tenth of a second, and a corpus may have a thousand files.
_CONCURRENT_LOOKUPS = 32


def _is_local_file(name: str) -> bool:
    return not storage.in_bucket(name) and os.path.isfile(name)


def matching_files(patterns: Patterns, setting: str) -> list[str]:
    """Lists the files that names or patterns match.

    Args:
      patterns: one or several; local or in a bucket. What is the name of a local file is no pattern.
      setting: the setting that holds them, for the error.

    Returns:
      The names of the files, in order; folders are left out.

    Raises:
      SettingError: for a pattern that matches no file or cannot be looked up.
    """
    files: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        try:
            found = [pattern] if _is_local_file(pattern) else seqio.utils.list_files(pattern)
            with ThreadPoolExecutor(_CONCURRENT_LOOKUPS) as threads:
                are_files = threads.map(lambda file: tf.io.gfile.exists(file) and not tf.io.gfile.isdir(file), found)
            found = [file for file, is_file in zip(found, are_files) if is_file]
        except (tf.errors.OpError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            refusal = storage.refusal(error)
            fault = f": {refusal}." if refusal else f" cannot be looked up, is the network there? {reason}"
            raise SettingError(f"{setting} = '{pattern}'{fault}") from error
        if not found:
            raise SettingError(f"{setting} = '{pattern}' matches no file.")
        files += found
    if not files:
        raise SettingError(f"{setting} = {patterns!r} names no file.")
    return files


def _texts_of_json(file: bytes, first: int, lines: np.ndarray, key: bytes) -> np.ndarray:
    """Takes the texts out of lines of JSON; the pipeline wraps what it raises in TensorFlow's error."""
    texts = []
    for number, line in enumerate(lines, start=first + 1):
        place = f"{file.decode()}, line {number}"
        if not line.strip():
            continue
        try:
            entry = json.loads(line.removeprefix(codecs.BOM_UTF8))
        except (ValueError, RecursionError) as error:
            raise SettingError(f"{place} is not JSON ({error}): fix or delete that line.") from error
        text = entry.get(key.decode()) if isinstance(entry, dict) else None
        if not isinstance(text, str):
            raise SettingError(
                f"{place} is not a JSON object with a string under '{key.decode()}': fix or delete that line."
            )
        texts.append(text.encode(errors="replace"))  # JSON can hold lone surrogates, which UTF-8 cannot.
    return np.array(texts, object)


def _text(value: bytes | np.ndarray) -> str:
    """Decodes what `tf.numpy_function` passes: bytes in a graph, an array of one object outside."""
    return (value.item() if isinstance(value, np.ndarray) else value).decode()


def _described(file: bytes, key: bytes) -> np.ndarray:
    compression, is_json = format_of(_text(file), _text(key))
    return np.array([compression, _JSON if is_json else ""], object)


def _decompressed(file: bytes, compression: bytes) -> np.ndarray:
    return np.array(lines_of(_text(file), _text(compression)), object)


def read_documents(file: tf.Tensor, key: str = "text") -> tf.data.Dataset:
    """Reads one file of text or of JSON lines, compressed or not: what is in it decides.

    Files that xz, bzip2 or zstd compressed are decompressed as a whole, in memory; gzip's are streamed.

    Args:
      file: the name, a string scalar.
      key: of the text in a JSON object.

    Returns:
      Dataset of {"text": string scalar}; blank lines are skipped.
    """
    # Iterators over stateful functions cannot be saved.
    compression, kind = tf.unstack(
        tf.ensure_shape(tf.numpy_function(_described, [file, tf.constant(key)], tf.string, stateful=False), [2])
    )
    is_json = tf.equal(kind, _JSON)
    is_streamed = tf.reduce_any(tf.equal(compression, [PLAIN, GZIP]))
    by_python = tf.numpy_function(_decompressed, [file, compression], tf.string, stateful=False)

    def texts_of(numbers: tf.Tensor, lines: tf.Tensor) -> tf.Tensor:
        def parse() -> tf.Tensor:
            return tf.numpy_function(_texts_of_json, [file, numbers[0], lines, key], tf.string, stateful=False)

        return tf.ensure_shape(tf.cond(is_json, parse, lambda: lines), [None])

    # Python is called once per batch of lines: a call costs as much as tokenizing a document.
    lines = tf.data.TextLineDataset(
        tf.boolean_mask([file], [is_streamed]), compression_type=tf.where(is_streamed, compression, PLAIN)
    ).concatenate(tf.data.Dataset.from_tensor_slices(tf.ensure_shape(by_python, [None])))
    texts = lines.enumerate().batch(_LINES_PER_CALL).map(texts_of).unbatch()
    texts = texts.map(lambda text: tf.strings.regex_replace(text, _BYTE_ORDER_MARK, ""))
    texts = texts.filter(lambda text: tf.strings.length(tf.strings.strip(text)) > 0)
    return texts.map(lambda text: {"text": text})
