"""A checkpoint is there whole or not at all."""

import os

import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.training.checkpoints import CheckpointFolder


def write_text(text: str):
    def write(prefix: str) -> None:
        with tf.io.gfile.GFile(prefix + ".index", "w") as file:
            file.write(text)

    return write


def test_newest_are_kept(tmp_path):
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), keep=2)
    assert folder.latest() is None
    for step in (10, 20, 30, 100_000_000):
        folder.save(step, write_text("x"), {"step": step})
    assert folder.steps() == [30, 100_000_000]
    assert folder.manifest(30) == {"step": 30}


def test_a_write_that_was_cut_off_is_no_checkpoint_and_is_removed(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=2)
    folder.save(10, write_text("x"), {"step": 10})
    os.makedirs(folder.path(20))
    write_text("half")(folder.prefix(20))
    assert folder.latest() == 10
    folder.save(30, write_text("x"), {"step": 30})
    assert sorted(os.listdir(tmp_path)) == ["step_00000010", "step_00000030"]


def test_a_failed_write_leaves_the_older_checkpoints_and_says_so(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=1)
    folder.save(10, write_text("x"), {"step": 10})

    def fail(prefix: str) -> None:
        write_text("half")(prefix)
        raise OSError(28, "No space left on device")

    with pytest.raises(SettingError, match=r"No space left on device.*checkpoint of step 10 is safe.*Free some space"):
        folder.save(20, fail, {"step": 20})
    assert folder.steps() == [10] and not os.path.exists(folder.path(20))


def test_a_damaged_manifest_names_the_way_out(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=3)
    for step in (10, 20):
        folder.save(step, write_text("x"), {"step": step})
    (tmp_path / "step_00000020" / "manifest.json").write_text("{")
    with pytest.raises(SettingError, match="step_00000020 is damaged: delete that folder to resume from step 10"):
        folder.manifest(20)


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(SettingError, match="KEEP_CHECKPOINTS = 0"):
        CheckpointFolder(str(tmp_path), keep=0)
