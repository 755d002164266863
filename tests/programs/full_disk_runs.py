"""Trains and runs commands on a disk that is full or read-only: `... FOLDER training|commands|read_only`.

JSON: "training" fills the disk at each kind of file: the status and the errors, how many checkpoints are there, the
status and the errors once there is room, and whether the run is that of an undisturbed one. "commands" writes to a full
disk, "read_only" reads from a read-only one: the status and the errors of each command.
"""

import json
import pathlib
import shutil
import sys
from collections.abc import Callable
from unittest import mock

import tasks.vocabularies
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder
from switch_tf.runs import loop
from switch_tf.runs.recorder import RunRecorder
from tests.support import launch, small_disks

SETTINGS = ("TRAIN_STEPS=6", "CHECKPOINT_PERIOD=2", "EVAL_PERIOD=3", "LOG_PERIOD=1")
# Hugging Face's models have one number of slots for all lengths.
CAPACITY = "--gin.ModelConfig.expert_capacity=4"
# What writes each kind, and before which of its calls the disk fills up.
KINDS = {
    "vocabulary": (tasks.vocabularies, "_install", 1),
    "config.gin": (loop, "write_description", 1),
    "records": (RunRecorder, "__init__", 1),
    "metrics.csv": (RunRecorder, "write", 3),
    "eval.csv": (RunRecorder, "write_evaluation", 1),
    "tensors": (tensor_bundle, "write_shards", 2),
    "index": (tensor_bundle, "merge_shards", 2),
    "manifest": (CheckpointFolder, "complete", 2),
}


def filling(disk: pathlib.Path, function: Callable, number: int) -> Callable:
    """A function that fills the disk before it does its work for the n-th time."""
    calls = []

    def fill_and_call(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            small_disks.fill(disk)
        return function(*arguments, **options)

    return fill_and_call


def train(disk: pathlib.Path, undisturbed: pathlib.Path) -> dict[str, list]:
    """Trains until the disk is full, frees it, and trains to the end: once for each kind."""
    results = {}
    model_dir = disk / "run"
    for kind, (owner, name, number) in KINDS.items():
        if kind != "vocabulary":
            shutil.copytree(undisturbed / "vocabulary", model_dir / "vocabulary")
        with mock.patch.object(owner, name, filling(disk, getattr(owner, name), number)):
            failed = small_disks.call(*launch.arguments(model_dir, *SETTINGS))
        left = sorted(path.name for path in (model_dir / "checkpoints").glob("*/manifest.json"))
        small_disks.free(disk)
        finished = small_disks.call(*launch.arguments(model_dir, *SETTINGS))
        is_same = finished[0] == 0 and launch.losses(model_dir) == launch.losses(undisturbed)
        is_same = is_same and (model_dir / "eval.csv").read_text() == (undisturbed / "eval.csv").read_text()
        results[kind] = [failed, len(left), finished, is_same]
        shutil.rmtree(model_dir)
    return results


def writing_commands(disk: pathlib.Path, model_dir: pathlib.Path) -> dict[str, list[str]]:
    """Commands that write to a disk."""
    of_run = f"--model_dir={model_dir}"
    return {
        "predict": ["predict", of_run, f"--output={disk}/predicted.jsonl", "A <extra_id_0> of text."],
        "score": ["evaluate", of_run, "--by_task", f"--output={disk}/scores.jsonl"],
        "report": ["report", str(model_dir), f"--output={disk}/report"],
        "experts": ["experts", of_run, f"--output={disk}/experts", "--num_batches=1"],
        "export": ["export", of_run, f"--output={disk}/exported", "--format=huggingface", CAPACITY],
        "saved_model": ["export", of_run, f"--output={disk}/saved", "--lengths=32", "--batch_sizes=1"],
        "convert": ["convert", str(model_dir), f"{disk}/converted", "--to=t5x"],
        "vocabulary": ["vocabulary", *launch.TINY, f"--output={disk}/mine.model", "--num_pieces=400"],
        "cache": ["cache", *launch.TINY, f'--gin.CACHE_DIR="{disk}/cache"', f'--gin.MODEL_DIR="{disk}/cached"'],
    }


def run_on_full(disk: pathlib.Path, undisturbed: pathlib.Path) -> dict[str, tuple[int, str]]:
    """Runs every command that writes."""
    results = {}
    for name, command in writing_commands(disk, undisturbed).items():
        with small_disks.full(disk):
            results[name] = small_disks.call(*command)
    return results


def run_on_read_only(disk: pathlib.Path, undisturbed: pathlib.Path) -> dict[str, tuple[int, str]]:
    """Trains on, and runs commands that read a model directory and write elsewhere."""
    model_dir, elsewhere = disk.with_name("read_only"), disk.with_name("elsewhere")
    elsewhere.mkdir()
    small_disks.mount_read_only(undisturbed, model_dir)
    commands = {
        "train": launch.arguments(model_dir, *SETTINGS[1:], "TRAIN_STEPS=8"),
        "describe": ["describe", f"--model_dir={model_dir}"],
        "evaluate": ["evaluate", f"--model_dir={model_dir}", "--json"],
        "check": ["check", str(model_dir)],
        **writing_commands(elsewhere, model_dir),
    }
    return {name: small_disks.call(*command) for name, command in commands.items()}


def main(disk: pathlib.Path, action: str) -> None:
    """Runs one action."""
    small_disks.mount(disk, 64)
    undisturbed = disk / "undisturbed"
    status, errors = small_disks.call(*launch.arguments(undisturbed, *SETTINGS))
    assert status == 0, errors
    actions = {"training": train, "commands": run_on_full, "read_only": run_on_read_only}
    print("\n" + json.dumps(actions[action](disk, undisturbed)))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), sys.argv[2])
