"""What a file of documents is, by what is in it: compressed by what, text or JSON lines; the rest is refused."""

import bz2
import functools
import json
import lzma
import zlib
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
import zstandard

from switch_tf.errors import SettingError

PLAIN, GZIP = "", "GZIP"
_XZ, _BZIP2, _ZSTD = "xz", "bzip2", "zstd"
_COMPRESSED = {b"\x1f\x8b": GZIP, b"\xfd7zXZ\x00": _XZ, b"BZh": _BZIP2, b"\x28\xb5\x2f\xfd": _ZSTD}
_REFUSED = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x04\x22\x4d\x18": "compressed by lz4",
}
_BOM = b"\xef\xbb\xbf"
_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
_HEAD_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 20


class Format(NamedTuple):
    """The format of a file.

    Attributes:
      compression: what it is compressed by; "GZIP" and "" as TensorFlow's readers say it.
      is_json: whether its lines are JSON objects.
    """

    compression: str
    is_json: bool


def format_of(file: str, key: str) -> Format:
    """Finds the format of a file; a gzip file is read to its end, as TensorFlow takes the beginning of one for all.

    Args:
      file: local or in a bucket.
      key: of the text in a JSON object, by which JSON lines without a suffix are recognized.

    Raises:
      SettingError: if it is cut off, damaged, or neither text nor JSON lines.
    """
    status = tf.io.gfile.stat(file)
    return _format_of(file, key, status.length, status.mtime_nsec)


@functools.cache
def _format_of(file: str, key: str, length: int, mtime: int) -> Format:
    del length, mtime  # A file that has changed is looked at again.
    with tf.io.gfile.GFile(file, "rb") as opened:
        start = opened.read(_HEAD_BYTES)
    compression = next((name for signature, name in _COMPRESSED.items() if start.startswith(signature)), PLAIN)
    if compression == GZIP:
        _check_gzip(file)
    head = start if compression == PLAIN else _head(file, compression, start)
    _check_text(file, head)
    return Format(compression, _is_json(file, head, key))


def _head(file: str, compression: str, start: bytes) -> bytes:
    try:
        if compression == GZIP:
            return zlib.decompressobj(wbits=31).decompress(start, _HEAD_BYTES)
        if compression == _XZ:
            return lzma.LZMADecompressor().decompress(start, _HEAD_BYTES)
        if compression == _BZIP2:
            return bz2.BZ2Decompressor().decompress(start, _HEAD_BYTES)
        return zstandard.ZstdDecompressor().decompressobj().decompress(start)[:_HEAD_BYTES]
    except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise _damaged(file, compression, error) from error


def _check_text(file: str, head: bytes) -> None:
    kind = next((kind for signature, kind in _REFUSED.items() if head.startswith(signature)), None)
    if kind is None and b"\0" in head:
        kind = "no text"
    if kind is not None:
        raise SettingError(
            f"{file} seems to be {kind}: give plain text or JSON lines in UTF-8, which may be compressed by gzip, xz, "
            "bzip2 or zstd."
        )


def _is_json(file: str, head: bytes, key: str) -> bool:
    """Whether the name says so, or the first line is an object with the text."""
    name = file.lower()
    if name.endswith(_JSON_SUFFIXES) or name.rpartition(".")[0].endswith(_JSON_SUFFIXES):
        return True
    first, end, _ = head.removeprefix(_BOM).lstrip().partition(b"\n")
    if not first.startswith(b"{") or not (end or len(head) < _HEAD_BYTES):
        return False
    try:
        return isinstance(json.loads(first).get(key), str)
    except (ValueError, RecursionError):
        return False


def _check_gzip(file: str) -> None:
    """Decompresses a file, which may be several one after the other, and compares its checksums."""
    stream = zlib.decompressobj(wbits=31)
    with tf.io.gfile.GFile(file, "rb") as opened:
        while data := opened.read(_CHUNK_BYTES):
            while data:
                if stream.eof:
                    data = data.lstrip(b"\0")  # Padding.
                    stream = zlib.decompressobj(wbits=31) if data else stream
                try:
                    stream.decompress(data)
                except zlib.error as error:
                    raise _damaged(file, GZIP, error) from error
                data = stream.unused_data if stream.eof else b""
    if not stream.eof:
        raise _damaged(file, GZIP, "its end is missing")


def lines_of(file: str, compression: str) -> list[bytes]:
    """Decompresses a file as a whole, where TensorFlow cannot.

    Args:
      file: local or in a bucket.
      compression: as `Format` says it; of plain and gzip files no line is returned.

    Raises:
      SettingError: if it is cut off or damaged.
    """
    if compression in (PLAIN, GZIP):
        return []
    with tf.io.gfile.GFile(file, "rb") as opened:
        content = opened.read()
    decompress: dict[str, Callable[[bytes], bytes]] = {_XZ: lzma.decompress, _BZIP2: bz2.decompress}
    try:
        text = decompress[compression](content) if compression in decompress else _unzstd(content)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise _damaged(file, compression, error) from error
    return [line.removesuffix(b"\r") for line in text.split(b"\n")]


def _unzstd(content: bytes) -> bytes:
    frames = []
    while content:
        stream = zstandard.ZstdDecompressor().decompressobj()
        frames.append(stream.decompress(content))
        if not stream.eof:
            raise ValueError("its end is missing")
        content = stream.unused_data
    return b"".join(frames)


def _damaged(file: str, compression: str, reason: object) -> SettingError:
    return SettingError(f"{file} is cut off or damaged ({compression.lower()}: {reason}): copy or download it again.")
