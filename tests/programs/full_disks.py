"""Writes each kind of a run's files to a disk that is full, and again when it has room: `... FOLDER`.

Prints a JSON object: for each kind, the error, whether what was there before is still there, and whether it works then.
"""

import json
import pathlib
import sys
import types
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.checkpoints.writer import CheckpointWriter
from switch_tf.errors import SettingError
from switch_tf.runs.model_directory import write_description
from switch_tf.runs.recorder import CsvRecord, read_csv
from switch_tf.runs.tensorboard_files import Board
from tests.support import small_disks

ALONE = types.SimpleNamespace(process_index=0, num_processes=1, barrier=lambda: None)
# More than what is left of the last page of a file.
ROWS = [{"step": step, "loss": f"{step / 7:.17f}" * 50} for step in range(2, 12)]


def attempt(disk: pathlib.Path, write: Callable[[], None], is_whole: Callable[[], bool]) -> tuple[str, bool, bool]:
    """Writes to the full disk, then to one with room."""
    with small_disks.full(disk):
        try:
            write()
            message = "no error"
        except SettingError as error:
            message = str(error)
        except tf.errors.OpError as error:  # Of files whose writers the caller converts.
            message = storage.refusal_of_disk(error) or repr(error)
        was_whole = is_whole()
    try:
        write()
        works = True
    except SettingError:
        works = False
    return message, was_whole, works


def description(disk: pathlib.Path) -> tuple[str, bool, bool]:
    """`config.gin` and `versions.txt`."""
    model_dir = disk / "description"
    write_description(str(model_dir))
    before = (model_dir / "versions.txt").read_text()
    return attempt(
        disk, lambda: write_description(str(model_dir)), lambda: (model_dir / "versions.txt").read_text() == before
    )


def records(disk: pathlib.Path) -> tuple[str, bool, bool]:
    """Rows of a CSV file."""
    record = CsvRecord(str(disk / "metrics.csv"), ["loss"], 0)
    record.append([{"step": 1, "loss": 0.5}])
    return attempt(disk, lambda: record.append(ROWS), lambda: read_csv(record.path)[0] == {"step": "1", "loss": "0.5"})


def opened_records(disk: pathlib.Path) -> tuple[str, bool, bool]:
    """A CSV file that is opened by a run that resumes."""
    path = str(disk / "eval.csv")
    CsvRecord(path, ["loss"], 0).append(ROWS)
    return attempt(disk, lambda: CsvRecord(path, ["loss"], 11) and None, lambda: len(read_csv(path)) == len(ROWS))


def shards(disk: pathlib.Path) -> tuple[str, bool, bool]:
    """The tensors of a checkpoint."""
    return _checkpoint(disk, "shards", lambda: None)


def manifest(disk: pathlib.Path) -> tuple[str, bool, bool]:
    """The manifest of a checkpoint, whose tensors still had room."""
    return _checkpoint(disk, "manifest", lambda: small_disks.fill(disk))


def _checkpoint(disk: pathlib.Path, name: str, after_tensors: Callable[[], None]) -> tuple[str, bool, bool]:
    folder = CheckpointFolder(str(disk / name))
    values = np.arange(50_000, dtype=np.float32)

    def save(step: int) -> None:
        writer = CheckpointWriter(folder, ALONE)  # type: ignore[arg-type]  # What it uses of an engine.
        writer.start(step, [tensor_bundle.Shard("weight", "", values + step)], Manifest(step))
        writer.finish()

    def is_whole() -> bool:
        return folder.steps() == [10] and (tensor_bundle.read(folder.prefix(10), "weight", "float32") == values + 10)[0]

    save(10)
    if name == "shards":
        message, was_whole, works = attempt(disk, lambda: save(20), lambda: bool(is_whole()))
    else:
        merge_shards = tensor_bundle.merge_shards

        def merge_and_fill(prefix: str, num_processes: int) -> None:
            merge_shards(prefix, num_processes)
            after_tensors()

        tensor_bundle.merge_shards = merge_and_fill
        try:
            save(20)
            message = "no error"
        except SettingError as error:
            message = str(error)
        was_whole = bool(is_whole())
        tensor_bundle.merge_shards = merge_shards
        small_disks.free(disk)
        save(20)
        works = True
    return message, was_whole, works and folder.steps() == [10, 20]


def board(disk: pathlib.Path) -> tuple[str, bool, bool]:
    """TensorBoard's files."""
    opened = Board(str(disk), "trial")
    rows = [{"step": step, "loss": 0.5} for step in range(2000)]
    return attempt(disk, lambda: opened.write_scalars(rows, "train"), lambda: True)


def anything(disk: pathlib.Path) -> tuple[str, bool, bool]:
    """A file that appears whole: vocabularies, reports, manifests of other kinds."""
    path = disk / "file"
    storage.write_atomically(path, "before" * 2000)
    return attempt(
        disk, lambda: storage.write_atomically(path, "after" * 2000), lambda: path.read_text() == "before" * 2000
    )


KINDS = (description, records, opened_records, shards, manifest, board, anything)

if __name__ == "__main__":
    mounted = pathlib.Path(sys.argv[1])
    small_disks.mount(mounted, 8)
    print(json.dumps({kind.__name__: kind(mounted) for kind in KINDS}))
