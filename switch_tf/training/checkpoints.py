"""Checkpoints that are there whole or not at all: `checkpoints/step_00000100/`, complete once its manifest is."""

import json
import os
import re
from collections.abc import Callable, Mapping

import tensorflow as tf

from switch_tf.errors import SettingError

_FOLDER = re.compile(r"step_(\d{8,})/?$")
_MANIFEST = "manifest.json"


class CheckpointFolder:
    """The checkpoints of one run, by step. The newest `keep` stay."""

    def __init__(self, folder: str, keep: int = 3):
        """Opens a folder, which need not be there yet.

        Args:
          folder: local path or one in a bucket.
          keep: how many complete checkpoints to keep.

        Raises:
          SettingError: if `keep` is less than 1.
        """
        if keep < 1:
            raise SettingError(f"KEEP_CHECKPOINTS = {keep} must be at least 1, or a run could not be resumed.")
        self.folder = folder
        self.keep = keep

    def path(self, step: int) -> str:
        """Returns the folder of a step's checkpoint."""
        return os.path.join(self.folder, f"step_{step:08d}")

    def prefix(self, step: int) -> str:
        """Returns the prefix of a step's tensor files."""
        return os.path.join(self.path(step), "state")

    def _folders(self) -> list[int]:
        if not tf.io.gfile.isdir(self.folder):
            return []
        matches = (_FOLDER.match(name) for name in tf.io.gfile.listdir(self.folder))
        return sorted(int(match.group(1)) for match in matches if match)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first."""
        return [step for step in self._folders() if tf.io.gfile.exists(os.path.join(self.path(step), _MANIFEST))]

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None where there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def manifest(self, step: int) -> dict:
        """Returns what `save` was told about a checkpoint.

        Raises:
          SettingError: if the manifest cannot be read.
        """
        try:
            with tf.io.gfile.GFile(os.path.join(self.path(step), _MANIFEST)) as file:
                return json.load(file)
        except (ValueError, tf.errors.OpError) as error:
            raise self.damaged(step) from error

    def damaged(self, step: int) -> SettingError:
        """Returns the error for a checkpoint that cannot be read, with what to do."""
        older = [other for other in self.steps() if other < step]
        then = f"resume from step {older[-1]}" if older else "start from the beginning"
        return SettingError(f"The checkpoint {self.path(step)} is damaged: delete that folder to {then}.")

    def save(self, step: int, write: Callable[[str], None], manifest: Mapping[str, object]) -> None:
        """Writes a checkpoint and then removes the oldest ones beyond `keep`.

        The manifest comes last and by a rename, so that a folder without one is a write that was cut off.

        Args:
          step: updates that have been made.
          write: writes the tensors to files that begin with the prefix that it is given.
          manifest: what a reader must know before it reads tensors; JSON.

        Raises:
          SettingError: if the disk is full or cannot be written. What was saved before is left alone.
        """
        folder = self.path(step)
        try:
            if tf.io.gfile.exists(folder):
                tf.io.gfile.rmtree(folder)
            tf.io.gfile.makedirs(folder)
            write(self.prefix(step))
            unfinished = os.path.join(folder, _MANIFEST + ".writing")
            with tf.io.gfile.GFile(unfinished, "w") as file:
                json.dump(dict(manifest), file)
            tf.io.gfile.rename(unfinished, os.path.join(folder, _MANIFEST), overwrite=True)
        except (OSError, tf.errors.OpError) as error:
            self.remove(step)
            raise write_error(folder, error, self) from error
        self.clean()

    def remove(self, step: int) -> None:
        """Removes a checkpoint, manifest first, so that a removal that is cut off leaves no complete-looking rest."""
        manifest = os.path.join(self.path(step), _MANIFEST)
        if tf.io.gfile.exists(manifest):
            tf.io.gfile.remove(manifest)
        if tf.io.gfile.isdir(self.path(step)):
            tf.io.gfile.rmtree(self.path(step))

    def clean(self) -> None:
        """Removes writes that were cut off and complete checkpoints beyond the newest `keep`."""
        kept = set(self.steps()[-self.keep :])
        for step in self._folders():
            if step not in kept:
                self.remove(step)


def checkpoints_of(model_dir: str, keep: int = 3) -> CheckpointFolder:
    """Returns the checkpoints of a model directory."""
    return CheckpointFolder(os.path.join(model_dir, "checkpoints"), keep)


def write_error(path: str, error: Exception, checkpoints: CheckpointFolder) -> SettingError:
    """Returns the error for a model directory that cannot be written, with what is safe in it.

    Args:
      path: what could not be written.
      error: what the system said.
      checkpoints: the run's.
    """
    latest = checkpoints.latest()
    saved = f"the checkpoint of step {latest} is safe" if latest is not None else "no checkpoint had been made yet"
    # TensorFlow names the operation and the file first and the reason last.
    reason = " ".join(str(error).split("; ")[-1].split())[:200]
    return SettingError(
        f"MODEL_DIR cannot be written ({path}: {reason}); {saved}. Free some space and run the same command again."
    )
