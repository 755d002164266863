"""A checkpoint is there whole or not at all."""

import os
import pathlib

import pytest

from switch_tf.errors import SettingError
from switch_tf.training.checkpoints import CheckpointFolder


def save(folder: CheckpointFolder, step: int) -> None:
    folder.prepare(step)
    write_tensors(folder, step)
    folder.complete(step, {"step": step})


def write_tensors(folder: CheckpointFolder, step: int) -> None:
    pathlib.Path(folder.prefix(step) + ".index").write_text("tensors")


def test_newest_are_kept(tmp_path):
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), keep=2)
    assert folder.latest() is None
    for step in (10, 20, 30, 100_000_000):
        save(folder, step)
    assert folder.steps() == [30, 100_000_000]
    assert folder.manifest(30) == {"step": 30}


def test_a_write_that_was_cut_off_is_no_checkpoint_and_is_removed(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=2)
    save(folder, 10)
    for step in (20, 40):
        folder.prepare(step)
        write_tensors(folder, step)
    assert folder.latest() == 10
    save(folder, 30)
    # Step 40 may be what another process is writing.
    assert sorted(os.listdir(tmp_path)) == ["step_00000010", "step_00000030", "step_00000040"]
    folder.prepare(40)
    assert os.listdir(folder.path(40)) == []


def test_a_folder_that_cannot_be_made_leaves_the_older_checkpoints_and_says_so(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=1)
    save(folder, 10)
    (tmp_path / "step_00000020").write_text("a file")
    with pytest.raises(SettingError, match=r"MODEL_DIR cannot be written.*checkpoint of step 10 is safe.*Free some"):
        folder.prepare(20)
    assert folder.steps() == [10]


def test_a_damaged_manifest_names_the_way_out(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=3)
    for step in (10, 20):
        save(folder, step)
    (tmp_path / "step_00000020" / "manifest.json").write_text("{")
    with pytest.raises(SettingError, match="step_00000020 is damaged: delete that folder to resume from step 10"):
        folder.manifest(20)


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(SettingError, match="KEEP_CHECKPOINTS = 0"):
        CheckpointFolder(str(tmp_path), keep=0)
