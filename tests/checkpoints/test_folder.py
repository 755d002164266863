"""A checkpoint is there whole or not at all."""

import errno
import os
import pathlib

import pytest
import tensorflow as tf

from switch_tf.checkpoints.folder import CheckpointFolder, UnusableCheckpoint, find_checkpoint, write_error
from switch_tf.checkpoints.manifest import Manifest, Score
from switch_tf.errors import SettingError


def save(folder: CheckpointFolder, step: int) -> None:
    folder.prepare(step)
    write_tensors(folder, step)
    folder.complete(step, Manifest(step))


def write_tensors(folder: CheckpointFolder, step: int) -> None:
    pathlib.Path(folder.prefix(step) + ".index").write_text("tensors")


def test_newest_are_kept(tmp_path):
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), keep=2)
    assert folder.latest() is None
    for step in (10, 20, 30, 100_000_000):
        save(folder, step)
    assert folder.steps() == [30, 100_000_000]
    assert folder.manifest(30) == Manifest(30)


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


def test_what_a_link_leads_to_is_left_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), keep=1)
    save(folder, 10)
    elsewhere.mkdir()
    (elsewhere / "manifest.json").write_text("mine")
    os.symlink(elsewhere, folder.path(5))
    os.symlink(elsewhere, os.path.join(folder.path(10), "link"))
    save(folder, 20)
    assert folder.steps() == [20]
    os.symlink(elsewhere, folder.path(30))
    save(folder, 30)
    assert os.listdir(elsewhere) == ["manifest.json"] and (elsewhere / "manifest.json").read_text() == "mine"


def test_a_folder_that_cannot_be_made_leaves_the_older_checkpoints_and_says_so(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=1)
    save(folder, 10)
    (tmp_path / "step_00000020").write_text("a file")
    with pytest.raises(
        SettingError, match=r"MODEL_DIR cannot be written.*checkpoint of step 10 is safe\. Make it a fold"
    ):
        folder.prepare(20)
    for error in (OSError(errno.ENOSPC, "x"), tf.errors.InternalError(None, None, "a; No space left on device")):
        assert str(write_error("x", error, folder)).endswith("Free some space and run the same command again.")
    assert folder.steps() == [10]


def test_a_damaged_manifest_names_the_way_out(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=3)
    for step in (10, 20):
        save(folder, step)
    (tmp_path / "step_00000020" / "manifest.json").write_text("{")
    with pytest.raises(SettingError, match=r"step_00000020 is damaged \(.*\): take the one before, of step 10"):
        folder.manifest(20)


@pytest.mark.parametrize("damage", ["{", "[]", "{}", '{"format": 1}', '{"format": 2, "step": 20}'])
def test_a_damaged_manifest_harms_no_other_checkpoint(tmp_path, damage):
    folder = CheckpointFolder(str(tmp_path), keep=3)
    scored(folder, 10, 50.0)
    save(folder, 20)
    (tmp_path / "step_00000020" / "manifest.json").write_text(damage)
    with pytest.raises(UnusableCheckpoint):
        folder.manifest(20)
    assert folder.choose([10]) == [10] and folder.choose(["best"]) == [10]
    assert folder.best() == 10 and folder.best_value("glue/average") == 50.0
    # A training run goes on, and removes nothing that it should keep.
    scored(folder, 30, 60.0)
    assert folder.steps() == [10, 20, 30] and folder.best() == 30


def test_keeping_none_is_refused(tmp_path):
    with pytest.raises(SettingError, match="KEEP_CHECKPOINTS = 0"):
        CheckpointFolder(str(tmp_path), keep=0)


def scored(folder: CheckpointFolder, step: int, value: float, metric: str = "glue/average") -> None:
    folder.prepare(step)
    write_tensors(folder, step)
    folder.complete(step, Manifest(step, score=Score(metric, value)))


def test_the_best_stays_besides_the_newest(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=2)
    assert folder.best() is None and folder.best_value("glue/average") is None
    for step, value in ((10, 50.0), (20, 70.0), (30, 70.0), (40, 60.0)):
        scored(folder, step, value)
    save(folder, 50)
    assert folder.steps() == [20, 40, 50]
    assert folder.best() == 20  # The older of two equal ones.
    assert folder.best_value("glue/average") == 70.0
    scored(folder, 60, 80.0)
    save(folder, 70)
    assert folder.steps() == [60, 70]


def test_another_metric_starts_over(tmp_path):
    folder = CheckpointFolder(str(tmp_path), keep=3)
    scored(folder, 10, 90.0)
    scored(folder, 20, 1.0, "squad/em")
    assert folder.best() == 20 and folder.best_value("glue/average") is None


def test_choosing(tmp_path):
    folder = CheckpointFolder(str(tmp_path / "checkpoints"), keep=3)
    with pytest.raises(SettingError, match="holds no checkpoint: train first"):
        folder.choose([])
    save(folder, 10)
    with pytest.raises(SettingError, match="--step=best: there is no such checkpoint; none has a score"):
        folder.choose(["best"])
    for step in (20, 30):
        scored(folder, step, -step)
    assert folder.choose([]) == [30]
    assert folder.choose(["best"]) == [20]
    assert folder.choose([30, 10, 30]) == [10, 30]
    assert folder.choose(["all"]) == [10, 20, 30]
    with pytest.raises(SettingError, match="--step=15: there is no such checkpoint; there are 10, 20, 30"):
        folder.choose([10, 15])


def test_finding_an_initial_checkpoint(tmp_path):
    folder = CheckpointFolder(str(tmp_path / "checkpoints"))
    for wrong in (tmp_path, tmp_path / "checkpoints" / "step_00000010"):
        with pytest.raises(SettingError, match=r"INITIAL_CHECKPOINT = .* holds no checkpoint"):
            find_checkpoint(str(wrong))
    for step in (10, 20):
        save(folder, step)
    for initial, step in ((tmp_path, 20), (f"{tmp_path}/", 20), (f"{folder.path(10)}/", 10)):
        found, found_step = find_checkpoint(str(initial))
        assert (found.path(found_step), found_step) == (folder.path(step), step)
