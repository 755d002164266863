"""A job's record: `job/record.json` in its model directory, which outlives the machine that submitted it."""

import datetime
import json
import re
from collections.abc import Callable, Mapping

from switch_tf.errors import SettingError
from tpu.jobs.object_store import ABSENT, Changed, Storage
from tpu.jobs.spec import Job, make_job

FOLDER = "job"
RECORD = f"{FOLDER}/record.json"
_FORMAT = 1

# States of a job. The first is one that goes on.
RUNNING, FINISHED, FAILED, CANCELLED = "RUNNING", "FINISHED", "FAILED", "CANCELLED"
# State of an attempt whose queued resource may not have been asked for yet; the others are Cloud TPU's own.
SUBMITTING = "SUBMITTING"


def now() -> str:
    """Returns the time, as records have it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


class Record:
    """A job, and what has become of it.

    Attributes:
      job: the description.
      files: the folder, in the model directory, that code and gin file are in.
      state: RUNNING, FINISHED, FAILED or CANCELLED.
      reason: of the state; a sentence, or empty.
      attempts: each {"number": 1, "queued_resource": its id, "states": [{"state": ..., "time": ..., "reason": ...}]}.
      first_attempt: the number with which this submission began: a job that has ended may be submitted again.
    """

    def __init__(self, job: Job, files: str, attempts: list[dict], state: str, reason: str, first_attempt: int):
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
          files: the folder, in the model directory, that code and gin file are in.
          storage: the model directory, which may have outcomes of attempts that no record tells of any more.
          before: the record of a job there that has ended.

        Returns:
          The record, with one attempt after all those before.
        """
        attempts = list(before.attempts) if before else []
        numbers = [attempt["number"] for attempt in attempts]
        folders = map(re.compile(rf"{FOLDER}/attempt-(\d+)/").match, storage.names(f"{FOLDER}/attempt-"))
        numbers += [int(folder[1]) for folder in folders if folder]
        record = cls(job, files, attempts, RUNNING, "", max(numbers, default=0) + 1)
        record._add_attempt(record.first_attempt, "submitted")
        return record

    def add_attempt(self, reason: str) -> None:
        """Adds an attempt that is about to be queued."""
        self._add_attempt(self.attempt["number"] + 1, reason)

    def _add_attempt(self, number: int, reason: str) -> None:
        self.attempts.append(
            {"number": number, "queued_resource": self.job.queued_resource_id(number), "states": []},
        )
        self.observe(SUBMITTING, reason)

    @property
    def attempt(self) -> dict:
        """The newest attempt."""
        return self.attempts[-1]

    @property
    def attempt_state(self) -> str:
        """The state in which the newest attempt was seen last."""
        return self.attempt["states"][-1]["state"]

    @property
    def restarts(self) -> int:
        """How often the job has been queued again."""
        return self.attempt["number"] - self.first_attempt

    def has_been(self, state: str) -> bool:
        """Whether the newest attempt has been seen in a state."""
        return any(seen["state"] == state for seen in self.attempt["states"])

    def observe(self, state: str, reason: str = "") -> bool:
        """Notes a state of the newest attempt; returns whether it is news."""
        states = self.attempt["states"]
        if states and (states[-1]["state"], states[-1]["reason"]) == (state, reason):
            return False
        states.append({"state": state, "time": now(), "reason": reason})
        return True

    def end(self, state: str, reason: str) -> None:
        """Ends the job."""
        self.state, self.reason = state, reason

    def to_json(self) -> bytes:
        """The record as its file has it."""
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
    def from_json(cls, content: Mapping) -> "Record":
        """Reads what `to_json` wrote."""
        return cls(
            make_job(content["job"]),
            *(content["files"], content["attempts"], content["state"], content["reason"], content["first_attempt"]),
        )


def read_record(storage: Storage) -> tuple[Record | None, int]:
    """Reads a model directory's record.

    Args:
      storage: the model directory.

    Returns:
      The record (None where there is none), and the version for `write_record`.

    Raises:
      SettingError: if it is damaged, or of another version of switch_tf.
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
        raise SettingError(f"{storage.url}/{RECORD} is damaged: delete it to give the job up.") from error


def write_record(storage: Storage, record: Record, version: int) -> None:
    """Writes a record in the place of the version that was read.

    Raises:
      Changed: if another machine has written it in the meantime.
    """
    data = record.to_json()
    try:
        storage.write(RECORD, data, version)
    except Changed:
        # A write whose answer was lost is made twice.
        there = storage.read(RECORD)
        if there is None or there.data != data:
            raise


def update_record(storage: Storage, change: Callable[[Record], None]) -> Record:
    """Changes a record, whoever else does so at the same time.

    Args:
      storage: the model directory, which has one.
      change: makes the change; called again where another machine was faster.

    Returns:
      The record as it was written.
    """
    while True:
        record, version = read_record(storage)
        change(record)
        try:
            write_record(storage, record, version)
            return record
        except Changed:
            continue
