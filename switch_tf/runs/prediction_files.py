"""Inputs of `predict` and `score`, line by line, and their results: one bad line does not end the rest."""

import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from typing import IO, Any

import tensorflow as tf

from switch_tf import storage
from switch_tf.errors import SettingError


def lines_of(file: str) -> Iterator[bytes]:
    """Yields the lines of a file that are not blank, as soon as they are there.

    Args:
      file: a name, local or in a bucket; "-" is standard input.

    Raises:
      SettingError: if it cannot be read.
    """
    try:
        with sys.stdin.buffer if file == "-" else tf.io.gfile.GFile(file, "rb") as opened:
            for line in opened:
                if line.strip():
                    yield line.strip()
    except (OSError, tf.errors.OpError) as error:
        raise SettingError(f"--file={file} cannot be read: {storage.refusal(error) or error}.") from error


def json_fields(line: bytes, names: Sequence[str] = ()) -> dict[str, Any] | SettingError:
    """Reads a JSON object.

    Args:
      line: of a JSONL file.
      names: fields that must be texts.

    Returns:
      The object, or what is wrong with it.
    """
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return SettingError(f"It is not JSON ({error}).")
    if not isinstance(fields, dict):
        return SettingError("It is not a JSON object.")
    for name in names:
        if not isinstance(fields.get(name), str):
            return SettingError(f"Its field '{name}' is no text (it has {', '.join(sorted(fields)) or 'no field'}).")
        if any("\ud800" <= character <= "\udfff" for character in fields[name]):
            return SettingError(f"Its field '{name}' is no Unicode text: it has half of a surrogate pair.")
    return fields


class Results:
    """Writes results in the order of the inputs, as text or as JSON lines, and counts the errors."""

    def __init__(self, output: str | None, is_first_process: bool = True):
        """Opens the output.

        Args:
          output: a .jsonl file, "-" for JSON lines on standard output, None for plain text there.
          is_first_process: the others write nothing.

        Raises:
          SettingError: if it cannot be written.
        """
        self.num_written = 0
        self.num_errors = 0
        self._is_json = output is not None
        self._is_first = is_first_process
        self._name = output
        self._file: IO[str] | None = None
        if output not in (None, "-") and is_first_process:
            with self._writing():
                self._file = tf.io.gfile.GFile(output, "w")
                self._file.write("")

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            reason = storage.refusal(error) or storage.reason_of(error)
            raise SettingError(f"--output={self._name} cannot be written: {reason}.") from error

    def write(self, text: str, record: dict[str, Any]) -> None:
        """Writes one result: its text, or its JSON object."""
        self.num_written += 1
        self._write_line(json.dumps(record, ensure_ascii=False, default=str) if self._is_json else text)

    def _write_line(self, line: str) -> None:
        if not self._is_first:
            return
        if self._file is None:
            print(line, flush=True)
            return
        with self._writing():
            self._file.write(line + "\n")

    def write_error(self, number: int, error: SettingError, record: dict[str, Any]) -> None:
        """Reports an input that has no result, and keeps its place in a JSONL output."""
        self.num_errors += 1
        if self._is_first:
            print(f"line {number}: {error}", file=sys.stderr, flush=True)
        if self._is_json:
            self._write_line(json.dumps(record | {"error": str(error)}, ensure_ascii=False))

    def close(self) -> None:
        """Closes the output and tells how many inputs had no result.

        Raises:
          SettingError: if it cannot be written.
        """
        if self._file is not None:
            with self._writing():
                self._file.close()
        if self.num_errors and self._is_first:
            total = self.num_errors + self.num_written
            print(f"{self.num_errors} of {total} lines have no result.", file=sys.stderr)
