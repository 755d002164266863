"""A run's checkpoints: `checkpoints/step_00000100/` is complete once its manifest is there."""

import contextlib
import errno
import os
import re
from collections.abc import Sequence

import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints.manifest import Manifest, Score, WrongFormat
from switch_tf.errors import SettingError

_FOLDER = re.compile(r"step_(\d{8,})/?$")
_MANIFEST = "manifest.json"
# What the system says of itself, not of a file: a checkpoint that cannot be read now may be whole.
_REFUSALS = (
    tf.errors.PermissionDeniedError,
    tf.errors.ResourceExhaustedError,
    tf.errors.UnavailableError,
    tf.errors.DeadlineExceededError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
)


class UnusableCheckpoint(SettingError):
    """A checkpoint that is damaged, or that another version of switch_tf wrote; the others may be fine."""


class DamagedCheckpoint(UnusableCheckpoint):
    """A checkpoint that cannot be read to its end."""


class CheckpointFolder:
    """The checkpoints of one run, by step. The newest `keep` stay, and the best one where they have scores."""

    def __init__(self, folder: str, keep: int = 3):
        """Opens a folder, which need not be there yet.

        Args:
          folder: local path or one in a bucket.
          keep: how many complete checkpoints to keep.

        Raises:
          SettingError: if `keep` is less than 1.
        """
        self.folder = folder
        self.keep_newest(keep)

    def keep_newest(self, count: int) -> None:
        """Sets how many complete checkpoints to keep.

        Raises:
          SettingError: if that is less than 1.
        """
        if count < 1:
            raise SettingError(f"KEEP_CHECKPOINTS = {count} must be at least 1, or a run could not be resumed.")
        self.keep = count

    def path(self, step: int) -> str:
        """Returns the folder of a step's checkpoint."""
        return os.path.join(self.folder, f"step_{step:08d}")

    def prefix(self, step: int) -> str:
        """Returns the prefix of a step's tensor files."""
        return os.path.join(self.path(step), "state")

    def _folders(self) -> list[int]:
        matches = (_FOLDER.match(name) for name in storage.list_folder(self.folder))
        return sorted(int(match.group(1)) for match in matches if match)

    def steps(self) -> list[int]:
        """Returns the steps of all complete checkpoints, oldest first.

        Raises:
          tf.errors.OpError: if they cannot be looked up in a bucket; `storage.refusal` says why.
        """
        return [step for step in self._folders() if storage.exists(os.path.join(self.path(step), _MANIFEST))]

    def latest(self) -> int | None:
        """Returns the step of the newest complete checkpoint, None where there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def choose(self, steps: Sequence[int | str]) -> list[int]:
        """Finds the checkpoints that a user asks for.

        Args:
          steps: each a step, "best" or "all"; empty for the newest.

        Returns:
          Their steps, oldest first.

        Raises:
          SettingError: if there is no checkpoint, or not the one that is asked for.
        """
        there = self.steps()
        if not there:
            raise SettingError(f"MODEL_DIR = '{os.path.dirname(self.folder)}' holds no checkpoint: train first.")
        chosen = set() if steps else {there[-1]}
        for step in steps:
            if step == "all":
                chosen |= set(there)
                continue
            found = self.best() if step == "best" else step
            if not isinstance(found, int) or found not in there:
                missing = "none has a score" if step == "best" else f"there are {', '.join(map(str, there))}"
                raise SettingError(f"--step={step}: there is no such checkpoint; {missing}.")
            chosen.add(found)
        return sorted(chosen)

    def best(self) -> int | None:
        """Returns the step of the checkpoint with the highest score, None where none has one.

        What counts is the metric of the newest scored checkpoint; of equal scores, the oldest.
        """
        scores = self._scores()
        if not scores:
            return None
        metric = scores[max(scores)].metric
        values = {step: score.value for step, score in scores.items() if score.metric == metric}
        return max(values, key=lambda step: (values[step], -step))

    def _scores(self) -> dict[int, Score]:
        """Returns the scores by step. A checkpoint whose manifest is unusable has none, and harms no other."""
        scores = {}
        for step in self.steps():
            with contextlib.suppress(UnusableCheckpoint):
                score = self.manifest(step).score
                if score is not None:
                    scores[step] = score
        return scores

    def best_value(self, metric: str) -> float | None:
        """Returns the score of the best checkpoint, None where there is none by this metric."""
        step = self.best()
        score = self.manifest(step).score if step is not None else None
        return score.value if score is not None and score.metric == metric else None

    def manifest(self, step: int) -> Manifest:
        """Reads the manifest of a checkpoint.

        Raises:
          UnusableCheckpoint: if it is damaged, or another version wrote it.
          SettingError: if a bucket does not give it.
        """
        try:
            with tf.io.gfile.GFile(os.path.join(self.path(step), _MANIFEST)) as file:
                return Manifest.from_json(file.read())
        except WrongFormat as error:
            raise UnusableCheckpoint(
                f"The checkpoint {self.path(step)} was made by another version of switch_tf: finish the run with that "
                "version, or start over in another MODEL_DIR."
            ) from error
        except (ValueError, tf.errors.OpError) as error:
            raise self.unreadable(step, error) from error

    def unreadable(self, step: int, error: Exception) -> SettingError:
        """Returns the error for a checkpoint that cannot be read, because of what the system said, with what to do."""
        refusal = storage.refusal(error)
        if refusal is not None or isinstance(error, _REFUSALS):
            reason = refusal or storage.reason_of(error)
            return SettingError(f"The checkpoint {self.path(step)} cannot be read: {reason}.")
        return self.damaged(step, storage.reason_of(error))

    def damaged(self, step: int, reason: str) -> DamagedCheckpoint:
        """Returns the error for a checkpoint that is damaged, with what to do."""
        older = [other for other in self.steps() if other < step]
        remedy = (
            f"take the one before, of step {older[-1]}" if older else "there is no older one; use another MODEL_DIR"
        )
        return DamagedCheckpoint(f"The checkpoint {self.path(step)} is damaged ({reason}): {remedy}.")

    def set_aside(self, step: int) -> str:
        """Renames a checkpoint, so that it is one no longer and the step can be saved again; returns the new folder.

        Raises:
          SettingError: if the disk cannot be written.
        """
        aside = f"{self.path(step)}.damaged"
        number = 1
        while storage.exists(aside):
            number += 1
            aside = f"{self.path(step)}.damaged-{number}"
        try:
            tf.io.gfile.rename(self.path(step), aside)
        except (OSError, tf.errors.OpError) as error:
            raise write_error(self.path(step), error, self) from error
        return aside

    def prepare(self, step: int) -> None:
        """Makes a step's folder, without what an interrupted write may have left in it.

        Raises:
          SettingError: if the disk cannot be written.
        """
        try:
            self.remove(step)
            storage.make_folder(self.path(step))
        except (OSError, tf.errors.OpError) as error:
            raise write_error(self.path(step), error, self) from error

    def complete(self, step: int, manifest: Manifest) -> None:
        """Completes a checkpoint whose tensors are written, and removes older ones; see `clean`.

        The manifest comes last and by a rename, so that a folder without one is an interrupted write.

        Args:
          step: updates that have been made.
          manifest: of the checkpoint.

        Raises:
          OSError, tf.errors.OpError: if the disk is full or cannot be written.
        """
        storage.write_atomically(os.path.join(self.path(step), _MANIFEST), manifest.to_json())
        self.clean(step)

    def remove(self, step: int) -> None:
        """Removes a checkpoint, manifest first, so that an interrupted removal leaves nothing that looks complete."""
        path = self.path(step)
        if not os.path.islink(path):
            with contextlib.suppress(tf.errors.NotFoundError):
                tf.io.gfile.remove(os.path.join(path, _MANIFEST))
        if storage.is_folder(path):
            storage.remove_folder(path)

    def clean(self, step: int) -> None:
        """Removes what is older than `step`, except the newest `keep` checkpoints and the best one."""
        kept = {*self.steps()[-self.keep :], self.best()}
        for other in self._folders():
            # Another process may have begun with a later one.
            if other < step and other not in kept:
                self.remove(other)


def checkpoints_of(model_dir: str, keep: int = 3) -> CheckpointFolder:
    """Returns the checkpoints of a model directory."""
    return CheckpointFolder(os.path.join(model_dir, "checkpoints"), keep)


def find_checkpoint(initial: str, setting: str = "INITIAL_CHECKPOINT") -> tuple[CheckpointFolder, int]:
    """Finds the checkpoint that another run is to start from.

    Args:
      initial: a model directory, for its newest checkpoint, or the folder of a checkpoint.
      setting: the setting that holds it, for the error.

    Returns:
      (the folder that it is in, its step).

    Raises:
      SettingError: if there is none.
    """
    folder, name = os.path.split(initial.rstrip("/"))
    match = _FOLDER.match(name)
    checkpoints = CheckpointFolder(folder) if match else checkpoints_of(initial)
    step = int(match.group(1)) if match else checkpoints.latest()
    if step not in checkpoints.steps():
        raise SettingError(
            f"{setting} = '{initial}' holds no checkpoint: name a model directory, or one of its checkpoints/step_... ."
        )
    return checkpoints, step


def write_error(path: str, error: Exception, checkpoints: CheckpointFolder) -> SettingError:
    """Returns the error for a model directory that cannot be written, with what is safe in it.

    Args:
      path: what could not be written.
      error: what the system said.
      checkpoints: the run's.
    """
    try:
        latest = checkpoints.latest()
        saved = f"the checkpoint of step {latest} is safe" if latest is not None else "no checkpoint had been made yet"
    except tf.errors.OpError:
        saved = "the checkpoints that were complete are safe"
    refusal = storage.refusal(error)
    if refusal is not None:
        return SettingError(f"MODEL_DIR cannot be written ({path}): {refusal}; {saved}.")
    reason = storage.reason_of(error)
    remedy = "Free some space and run" if _is_full(error) else "Make it a folder that can be written, and run"
    return SettingError(f"MODEL_DIR cannot be written ({path}: {reason}); {saved}. {remedy} the same command again.")


def _is_full(error: Exception) -> bool:
    """Whether a disk is full, or a quota is used up."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    is_full = isinstance(error, tf.errors.ResourceExhaustedError) or getattr(error, "errno", None) in full
    return is_full or any(os.strerror(number) in str(error) for number in full)
