"""Files of documents are found by names and patterns."""

import bz2
import gzip
import json
import lzma

import pytest
import tensorflow as tf
import zstandard

from switch_tf.data.text_files import matching_files, read_documents
from switch_tf.errors import SettingError


def test_the_name_of_a_file_is_no_pattern(tmp_path):
    for name in ("a[1].txt", "a1.txt", "b.txt"):
        (tmp_path / name).write_text(name)
    names = [str(tmp_path / name) for name in ("a1.txt", "a[1].txt", "b.txt")]
    assert matching_files(names[1], "TRAIN_FILES") == [names[1]]
    assert matching_files(str(tmp_path / "*.txt"), "TRAIN_FILES") == names
    assert matching_files(str(tmp_path / "[ab].txt"), "TRAIN_FILES") == [names[2]]
    with pytest.raises(SettingError, match=r"TRAIN_FILES = .*c\[1\]\.txt' matches no file"):
        matching_files(str(tmp_path / "c[1].txt"), "TRAIN_FILES")


TEXTS = ["a first line", "und eine zweite: größer", "文字"]
PLAIN = "\n".join(TEXTS).encode()
JSON = "".join(json.dumps({"text": text, "url": "x"}) + "\n" for text in TEXTS).encode()
FILES = {
    "a.txt": PLAIN,
    "windows.txt": b"\xef\xbb\xbf" + PLAIN.replace(b"\n", b"\r\n") + b"\r\n\r\n \t\r\n",
    "a.jsonl": JSON,
    "a.JSONL": JSON,
    "a.ndjson": JSON,
    "mark.json": b"\xef\xbb\xbf" + JSON,
    "without_suffix": JSON,
    "a.txt.gz": gzip.compress(PLAIN),
    "two_members.gz": gzip.compress(PLAIN[:20]) + gzip.compress(PLAIN[20:]),
    "gzip_without_suffix": gzip.compress(JSON),
    "a.jsonl.xz": lzma.compress(JSON),
    "a.txt.xz": lzma.compress(PLAIN),
    "a.ndjson.bz2": bz2.compress(JSON),
    "a.bz2": bz2.compress(PLAIN),
    "a.jsonl.zst": zstandard.compress(JSON),
    "two_frames.zst": zstandard.compress(PLAIN[:20]) + zstandard.compress(PLAIN[20:]),
}


def texts_of(path) -> list[str]:
    return [example["text"].decode() for example in read_documents(tf.constant(str(path))).as_numpy_iterator()]


@pytest.mark.parametrize("name", FILES)
def test_what_is_in_a_file_decides(tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    assert texts_of(tmp_path / name) == TEXTS


LONG = "\n".join(f"line {number} {number**3}" for number in range(5000)).encode()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", gzip.compress(LONG)[:-2000], "is cut off or damaged (gzip: its end is missing): copy"),
        ("b.txt.gz", gzip.compress(LONG)[:-4], "is cut off or damaged (gzip: its end is missing): copy"),
        ("c.gz", bytes([*gzip.compress(LONG)[:-8], *bytes(8)]), "is cut off or damaged (gzip: "),
        ("a.xz", lzma.compress(LONG)[:-2000], "is cut off or damaged (xz: "),
        ("a.bz2", bz2.compress(LONG)[:-2000], "is cut off or damaged (bzip2: "),
        ("a.zst", zstandard.compress(LONG)[:-2000], "is cut off or damaged (zstd: "),
        (
            "utf16.txt",
            LONG.decode().encode("utf-16"),
            "utf16.txt seems to be UTF-16 text: give plain text or JSON lines",
        ),
        ("utf16.gz", gzip.compress(LONG.decode().encode("utf-16")), "seems to be UTF-16 text"),
        ("a.parquet", b"PAR1" + bytes(100), "seems to be a Parquet file"),
        ("a.zip", b"PK\x03\x04" + bytes(100), "seems to be a zip archive"),
        ("weights", bytes(range(256)), "seems to be no text"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_it_seems_to_be(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises((SettingError, tf.errors.OpError)) as caught:
        texts_of(tmp_path / name)
    assert message in str(caught.value) and name in str(caught.value)
