"""One bit flipped anywhere in a checkpoint: it is found, or what is read is what was written."""

import pathlib
import random

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder, UnusableCheckpoint
from switch_tf.checkpoints.manifest import Manifest, Score
from switch_tf.checkpoints.tensor_bundle import Shard
from switch_tf.errors import SettingError

ARRAYS = {
    "encoder/kernel": np.arange(60, dtype=np.float32).reshape(6, 10),
    "encoder/kernel/slots/v_row": np.linspace(0, 1, 6, dtype=np.float32),
    "step": np.int64(7),
}
MANIFEST = Manifest(
    7,
    settings={"SEED": 3, "TASK_FEATURE_LENGTHS": {"inputs": 8}},
    model={"d_model": 16, "router_settings": {}},
    shapes={name: np.shape(array) for name, array in ARRAYS.items()},
    score=Score("glue/average", 83.25),
)


@pytest.fixture
def checkpoints(tmp_path) -> CheckpointFolder:
    """A checkpoint in two shards, one tensor in two slices."""
    folder = CheckpointFolder(str(tmp_path))
    folder.prepare(7)
    kernel = ARRAYS["encoder/kernel"]
    for process, rows in enumerate((slice(0, 2), slice(2, 6))):
        place = f"6 10 {rows.start},{rows.stop - rows.start}:0,10"
        shards = [Shard("encoder/kernel", place, kernel[rows].copy())]
        if process == 0:
            shards += [Shard(name, "", np.copy(array)) for name, array in ARRAYS.items() if name != "encoder/kernel"]
        tensor_bundle.write_shards(folder.prefix(7), process, shards)
    tensor_bundle.merge_shards(folder.prefix(7), 2)
    folder.complete(7, MANIFEST)
    return folder


def is_found_or_harmless(folder: CheckpointFolder) -> bool:
    """Reads everything; returns whether damage was found. What is read in spite of it must be what was written."""
    try:
        assert folder.manifest(7) == MANIFEST
    except UnusableCheckpoint:
        return True
    except SettingError as error:
        raise AssertionError("no damage, but a refusal") from error
    for name, array in ARRAYS.items():
        try:
            read = tensor_bundle.read(folder.prefix(7), name, tf.as_dtype(array.dtype)).numpy()
        except tf.errors.OpError as error:
            assert isinstance(folder.unreadable(7, error), UnusableCheckpoint), error
            return True
        np.testing.assert_array_equal(read, array)
    return False


@pytest.mark.parametrize("trials", [60, pytest.param(500, marks=pytest.mark.slow)])
def test_single_flips(checkpoints, trials):
    assert not is_found_or_harmless(checkpoints)
    paths = sorted(path for path in pathlib.Path(checkpoints.path(7)).iterdir())
    assert {path.name.partition(".")[0] for path in paths} == {"manifest", "state"} and len(paths) == 4
    generator = random.Random(0)
    found = 0
    for trial in range(trials):
        path = paths[trial % len(paths)]
        content = path.read_bytes()
        flipped = bytearray(content)
        # Each region of the file in turn.
        share = trial // len(paths) / -(-trials // len(paths))
        flipped[int(share * len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(flipped)
        found += is_found_or_harmless(checkpoints)
        path.write_bytes(content)
    assert found > 0.8 * trials
    assert not is_found_or_harmless(checkpoints)


def test_every_file_that_is_cut_off_or_missing_is_found(checkpoints):
    for path in pathlib.Path(checkpoints.path(7)).iterdir():
        content = path.read_bytes()
        for length in (0, 1, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:length])
            assert is_found_or_harmless(checkpoints), (path.name, length)
        path.unlink()
        if path.name != "manifest.json":  # Without it there is no checkpoint.
            assert is_found_or_harmless(checkpoints), path.name
        path.write_bytes(content)


def test_what_is_set_aside_is_kept_under_another_name(checkpoints):
    before = {path.name: path.read_bytes() for path in pathlib.Path(checkpoints.path(7)).iterdir()}
    aside = checkpoints.set_aside(7)
    assert aside == checkpoints.path(7) + ".damaged" and checkpoints.steps() == []
    assert {path.name: path.read_bytes() for path in pathlib.Path(aside).iterdir()} == before
    checkpoints.prepare(7)
    assert checkpoints.set_aside(7) == checkpoints.path(7) + ".damaged-2"


def test_a_refusal_of_the_system_is_no_damage(checkpoints):
    error = checkpoints.unreadable(7, tf.errors.PermissionDeniedError(None, None, "state.index; Permission denied"))
    assert not isinstance(error, UnusableCheckpoint) and str(error).endswith("cannot be read: Permission denied.")
