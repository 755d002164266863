"""A job's record: `job/record.json` in its model directory, shared by all machines that submit, watch or cancel it."""

import datetime
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from switch_tf.errors import SettingError
from tpu.jobs.object_store import ABSENT, Changed, Storage
from tpu.jobs.spec import Job, make_job

FOLDER = "job"
RECORD = f"{FOLDER}/record.json"
_FORMAT = 1

# States of a job; all but the first are final.
RUNNING, FINISHED, FAILED, CANCELLED = "RUNNING", "FINISHED", "FAILED", "CANCELLED"
# State of an attempt whose queued resource may not have been requested yet; the other states are Cloud TPU's.
SUBMITTING = "SUBMITTING"


def now() -> str:
    """Returns the current UTC time in ISO 8601, as records store it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Record:
    """A job and its history.

    Attributes:
      job: the description.
      files: the folder of the job's bundle, relative to the model directory.
      state: RUNNING, FINISHED, FAILED or CANCELLED.
      reason: why it is in that state; may be empty.
      attempts: each {"number": 1, "queued_resource": its id, "states": [{"state": ..., "time": ..., "reason": ...}]}.
      first_attempt: number of the first attempt of this submission: a job that has ended may be submitted again.
    """

    def __init__(
        self, job: Job, files: str, attempts: list[dict[str, Any]], state: str, reason: str, first_attempt: int
    ):
        self.job = job
        self.files = files
        self.attempts = attempts
        self.state = state
        self.reason = reason
        self.first_attempt = first_attempt

    @classmethod
    def begin(cls, job: Job, files: str, storage: Storage, before: "Record | None" = None) -> "Record":
        """Makes the record of a job that is about to be submitted.

        Args:
          job: with its model directory.
          files: the folder of its bundle, relative to the model directory.
          storage: the model directory; it may hold files of attempts whose record was deleted.
          before: the record of an earlier job there, which has ended.

        Returns:
          The record, with one new attempt, whose number follows all earlier ones.
        """
        attempts = list(before.attempts) if before else []
        numbers = [attempt["number"] for attempt in attempts]
        folders = map(re.compile(rf"{FOLDER}/attempt-(\d+)/").match, storage.names(f"{FOLDER}/attempt-"))
        numbers += [int(folder[1]) for folder in folders if folder]
        record = cls(job, files, attempts, RUNNING, "", max(numbers, default=0) + 1)
        record._add_attempt(record.first_attempt, "submitted")
        return record

    def add_attempt(self, reason: str) -> None:
        """Adds an attempt that is to be queued next."""
        self._add_attempt(self.attempt["number"] + 1, reason)

    def _add_attempt(self, number: int, reason: str) -> None:
        self.attempts.append(
            {"number": number, "queued_resource": self.job.queued_resource_id(number), "states": []},
        )
        self.observe(SUBMITTING, reason)

    @property
    def attempt(self) -> dict[str, Any]:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def attempt_state(self) -> str:
        """The last known state of the newest attempt."""
        return self.attempt["states"][-1]["state"]

    @property
    def restarts(self) -> int:
        """How often this submission has been requeued."""
        return self.attempt["number"] - self.first_attempt

    def has_been(self, state: str) -> bool:
        """Whether the newest attempt was ever observed in a state."""
        return any(seen["state"] == state for seen in self.attempt["states"])

    def observe(self, state: str, reason: str = "") -> None:
        """Records the state of the newest attempt, unless it is in that state already."""
        states = self.attempt["states"]
        if not states or (states[-1]["state"], states[-1]["reason"]) != (state, reason):
            states.append({"state": state, "time": now(), "reason": reason})

    def end(self, state: str, reason: str) -> None:
        """Moves the job to a final state."""
        self.state, self.reason = state, reason

    def to_json(self) -> bytes:
        """The content of the record's file."""
        content = {
            "format": _FORMAT,
            "job": self.job.to_dict(),
            "files": self.files,
            "state": self.state,
            "reason": self.reason,
            "first_attempt": self.first_attempt,
            "attempts": self.attempts,
        }
        return json.dumps(content, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Record":
        """Inverse of `to_json`, from the parsed file."""
        return cls(
            make_job(content["job"]),
            *(content["files"], content["attempts"], content["state"], content["reason"], content["first_attempt"]),
        )


def read_record(storage: Storage) -> tuple[Record | None, int]:
    """Reads a model directory's record.

    Args:
      storage: the model directory.

    Returns:
      The record (None if there is none), and its version for `write_record`.

    Raises:
      SettingError: if it is damaged, or was written by another version of switch_tf.
    """
    file = storage.read(RECORD)
    if file is None:
        return None, ABSENT
    try:
        content = json.loads(file.data)
        if content["format"] != _FORMAT:
            raise SettingError(f"{storage.url}/{RECORD} was written by another version of switch_tf: use that one.")
        return Record.from_json(content), file.version
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{storage.url}/{RECORD} is damaged: delete it to abandon the job.") from error


def require_record(storage: Storage) -> tuple[Record, int]:
    """Reads a model directory's record like `read_record`.

    Raises:
      SettingError: if there is none.
    """
    record, version = read_record(storage)
    if record is None:
        raise SettingError(f"{storage.url} has no record of a job: it was not submitted by `switch-tf tpu submit`.")
    return record, version


def write_record(storage: Storage, record: Record, version: int) -> None:
    """Replaces the version of a record that was read.

    Args:
      storage: the model directory.
      record: the new record.
      version: of the record that it replaces, from `read_record`.

    Raises:
      Changed: if another machine has written it since.
    """
    data = record.to_json()
    try:
        storage.write(RECORD, data, version)
    except Changed:
        # A write whose response was lost is retried, and then fails against its own first try.
        current = storage.read(RECORD)
        if current is None or current.data != data:
            raise


def update_record(storage: Storage, change: Callable[[Record], None]) -> Record:
    """Changes a record atomically.

    Args:
      storage: the model directory.
      change: changes the record; called again on a new copy if another machine wrote the record first.

    Returns:
      The record as it was written.

    Raises:
      SettingError: if there is no record.
    """
    while True:
        record, version = require_record(storage)
        change(record)
        try:
            write_record(storage, record, version)
            return record
        except Changed:
            continue
