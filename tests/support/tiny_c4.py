"""Tiny real TFDS data sets under the names of C4 and mC4: true features, splits and file formats."""

import gzip
import json
import pathlib
import random

from tasks import c4, multilingual
from tools.offline_tfds import write_documents

WORDS = ("the", "of", "and", "a", "language", "model", "learns", "words", "from", "text", "that", "people", "wrote")
HELD_OUT = range(1000, 1008)


def document(code: str, index: int, words: int = 40) -> str:
    """A document each of whose words names its language."""
    chosen = random.Random(f"{code} {index}").choices(WORDS, k=words)
    return " ".join(f"{code}_{word}" for word in chosen)


def make_c4(folder: pathlib.Path) -> None:
    """Writes C4: 200 documents and 8 held out, in 4 files each."""
    splits = {"train": range(200), "validation": HELD_OUT}
    write_documents(
        c4.TFDS_NAME, folder, {name: [document("en", index) for index in ids] for name, ids in splits.items()}, 4
    )


def make_c4_files(folder: pathlib.Path) -> None:
    """Writes the same documents as the public hub distributes them: JSON lines, gzipped."""
    folder.mkdir(parents=True)
    for split, ids, number in (("train", range(100), 0), ("train", range(100, 200), 1), ("validation", HELD_OUT, 0)):
        lines = [json.dumps({"text": document("en", i), "timestamp": "", "url": ""}) for i in ids]
        with gzip.open(folder / f"c4-{split}.{number:05d}-of-00002.json.gz", "wt") as file:
            file.write("\n".join(lines) + "\n")


def make_mc4(folder: pathlib.Path, documents: int = 24, words: int = 40) -> None:
    """Writes mC4: some documents of every language and 8 held out, in 2 files each."""
    splits = {}
    for code in multilingual.CODES:
        splits[code] = [document(code, index, words) for index in range(documents)]
        splits[f"{code}-validation"] = [document(code, index, words) for index in HELD_OUT]
    write_documents(multilingual.TFDS_NAME, folder, splits, 2)
