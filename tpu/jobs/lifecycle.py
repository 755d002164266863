"""Submitting, advancing, finding and cancelling jobs.

A job runs without being watched, but a preempted one is requeued only by a watcher. Any number of machines may watch:
the record, whose versions are compared on each write, decides between them.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from switch_tf.errors import SettingError
from tpu.jobs.bundle import Bundle
from tpu.jobs.cloud_api import AlreadyExists, Cloud, Refused, Resource
from tpu.jobs.job_progress import outcome_of
from tpu.jobs.object_store import Changed, Storage
from tpu.jobs.record import (
    CANCELLED,
    FAILED,
    FINISHED,
    RUNNING,
    SUBMITTING,
    Record,
    read_record,
    require_record,
    update_record,
    write_record,
)
from tpu.jobs.request import attempt_folder, create_request, startup_script
from tpu.jobs.spec import Job

# Node states after which its hosts are lost.
_LOST_NODE_STATES = ("PREEMPTED", "TERMINATED", "STOPPED")


def submit(cloud: Cloud, storage: Storage, job: Job, bundle: Bundle) -> Record:
    """Uploads a job's bundle and queues its first attempt; continues an interrupted submission of the same job.

    Args:
      cloud: where to queue it.
      storage: its model directory.
      job: with its model directory.
      bundle: the files that its hosts download.

    Returns:
      The record, as it is in the model directory now.

    Raises:
      SettingError: if another job runs in that model directory, or Cloud TPU rejects the request or does not respond.
    """
    record, version = read_record(storage)
    if record is None or record.state != RUNNING:
        # The new job may have another name, project or zone, under which a TPU of the ended one would not be found.
        if record is not None:
            _delete_all(cloud, record, record.attempts)
        record = Record.begin(job, bundle.folder, storage, record)
        bundle.upload(storage)
        try:
            write_record(storage, record, version)
        except Changed as error:
            raise SettingError(f"{storage.url}: another machine is submitting a job here: try again.") from error
    elif json.dumps(record.job.to_dict()) != json.dumps(job.to_dict()) or record.files != bundle.folder:
        raise SettingError(
            f"{storage.url} has job '{record.job.name}' with other settings or code, and it has not ended: cancel it "
            f"with `switch-tf tpu cancel {record.job.name}`, or choose another model_dir."
        )
    if record.attempt_state != SUBMITTING:
        return record
    number = record.attempt["number"]
    try:
        return _queue(cloud, storage, record)
    except Refused as error:
        sentence = str(error)

        def change(record: Record) -> None:
            if _is_due(record, number):
                record.end(FAILED, sentence)

        update_record(storage, change)
        raise


def _is_due(record: Record, number: int) -> bool:
    """Whether an attempt is still to be queued: another machine may have queued it, or ended the job, since."""
    return record.state == RUNNING and record.attempt["number"] == number and record.attempt_state == SUBMITTING


def _queue(cloud: Cloud, storage: Storage, record: Record) -> Record:
    """Requests the queued resource of the newest attempt, after deleting those of earlier attempts. Idempotent."""
    job, number = record.job, record.attempt["number"]
    _delete_all(cloud, record, record.attempts[:-1])
    # Deletion takes minutes, in which the job may have been cancelled.
    current, _ = require_record(storage)
    if not _is_due(current, number):
        return current
    name = job.queued_resource_id(number)
    try:
        cloud.create(create_request(job, startup_script(job, record.files, number), number))
    except AlreadyExists:
        if not _is_of(cloud.get(job.parent, name), record):
            raise Refused(
                f"A queued resource '{name}' exists in {job.zone}, and it is not this job's: choose another name."
            ) from None
    resource = cloud.get(job.parent, name)
    state = resource.state if resource is not None else "CREATING"

    def change(record: Record) -> None:
        if _is_due(record, number):
            record.observe(state)

    current = update_record(storage, change)
    # A machine that advanced or ended the job during the request could not have deleted this resource yet.
    if current.attempt["number"] != number:
        _delete(cloud, record, name)
    elif current.state != RUNNING:
        _release(cloud, current)
    return current


def _is_of(resource: Resource | None, record: Record) -> bool:
    """Whether a queued resource belongs to a job, by its label and by the job's record."""
    return (
        resource is not None
        and resource.job == record.job.name
        and resource.model_dir == record.job.model_dir
        and resource.id in [attempt["queued_resource"] for attempt in record.attempts]
    )


def _delete(cloud: Cloud, record: Record, name: str) -> None:
    if _is_of(cloud.get(record.job.parent, name), record):
        cloud.delete(record.job.parent, name)


def _delete_all(cloud: Cloud, record: Record, attempts: Sequence[Mapping[str, Any]]) -> None:
    for attempt in attempts:
        _delete(cloud, record, attempt["queued_resource"])


def advance(cloud: Cloud, storage: Storage) -> Record:
    """Checks a job once, records what has changed, and acts on it: requeues the job, or releases its TPU.

    Args:
      cloud: where it is queued.
      storage: its model directory.

    Returns:
      The record, as it is in the model directory now.

    Raises:
      SettingError: if Cloud TPU rejects a request or does not respond; the next call continues from there.
    """
    record, version = require_record(storage)
    if record.state != RUNNING:
        _release(cloud, record)
        return record
    resource = cloud.get(record.job.parent, record.attempt["queued_resource"])
    if resource is None and record.attempt_state == SUBMITTING:
        return _queue(cloud, storage, record)
    before = record.to_json()
    _update(cloud, storage, record, resource)
    if record.to_json() == before:
        return record
    try:
        write_record(storage, record, version)
    except Changed:
        # Another watcher was faster.
        return require_record(storage)[0]
    if record.state != RUNNING:
        _release(cloud, record)
    elif record.attempt_state == SUBMITTING:
        return _queue(cloud, storage, record)
    return record


def _release(cloud: Cloud, record: Record) -> None:
    """Deletes the TPU of a job that has ended, unless it is to be kept."""
    # A job that ended before it was queued has trained nothing, so there is nothing to keep.
    if not record.job.keep or record.state == CANCELLED or record.attempt_state == SUBMITTING:
        attempts = [attempt for attempt in record.attempts if attempt["number"] >= record.first_attempt]
        _delete_all(cloud, record, attempts)


def _update(cloud: Cloud, storage: Storage, record: Record, resource: Resource | None) -> None:
    """Records what has become of the newest attempt."""
    outcome = outcome_of(storage, record.attempt["number"])
    if outcome is not None:
        reason = f"training on {outcome.worker} ended with exit status {outcome.exit_status}"
        if not outcome.is_final:
            _restart(record, reason)
        elif outcome.exit_status == 0:
            _end(record, FINISHED)
        else:
            _end(record, FAILED, f"{reason}: see its log")
    elif resource is None:
        _end(record, FAILED, f"{record.attempt['queued_resource']} was deleted, but not by switch-tf")
    elif not _is_of(resource, record):
        _end(record, FAILED, f"{resource.id} belongs to another job")
    elif resource.state == "SUSPENDED":
        _restart(record, "Cloud TPU reclaimed the TPU (preemption or maintenance)")
    elif resource.state == "FAILED":
        reason = resource.reason or "the queued resource failed"
        if record.has_been("ACTIVE") or storage.names(attempt_folder(record.attempt["number"]) + "/"):
            _restart(record, reason)
        else:
            # Rejected before it ever ran: it would be rejected again.
            _end(record, FAILED, reason)
    elif resource.state == "ACTIVE":
        node = cloud.node(record.job.parent, resource.id)
        if node is None or node.state in _LOST_NODE_STATES:
            _restart(record, f"the node is {'gone' if node is None else node.state}")
        else:
            record.observe(resource.state, "" if node.state == "READY" else f"the node is {node.state}")
    else:
        record.observe(resource.state)


def _end(record: Record, state: str, reason: str = "") -> None:
    record.observe(state, reason)
    record.end(state, reason)


def _restart(record: Record, reason: str) -> None:
    limit = record.job.max_restarts
    if record.restarts < limit:
        record.observe("LOST", reason)
        record.add_attempt("requeued")
    else:
        _end(record, FAILED, f"{reason}, and max_restarts = {limit} is reached: submit the job again to continue")


def cancel(cloud: Cloud, storage: Storage) -> Record:
    """Ends a job and deletes its TPU; its model directory stays.

    Args:
      cloud: where it is queued.
      storage: its model directory.

    Returns:
      The record, as it is in the model directory now.
    """

    def change(record: Record) -> None:
        if record.state == RUNNING:
            _end(record, CANCELLED)

    record = update_record(storage, change)
    _delete_all(cloud, record, record.attempts)
    return record


def find(cloud: Cloud, name: str, parent: str) -> Resource:
    """Finds the newest queued resource of a job.

    Args:
      cloud: where it is queued.
      name: of the job.
      parent: "projects/P/locations/Z"; Z may be "-" for all zones.

    Returns:
      The queued resource.

    Raises:
      SettingError: if there is none, or there are some in several zones.
    """
    resources = cloud.jobs(parent)
    found = [resource for resource in resources if resource.job == name]
    if not found:
        others = sorted({resource.job for resource in resources})
        raise SettingError(
            f"No TPU in {parent} belongs to a job '{name}' (jobs there: {', '.join(others) or 'none'}): for a job that "
            "has ended, give --model_dir=gs://..."
        )
    zones = sorted({resource.parent.rpartition("/")[2] for resource in found})
    if len(zones) > 1:
        raise SettingError(f"There is a job '{name}' in {' and in '.join(zones)}: choose one with --zone=...")
    return found[-1]


def record_of(storage: Storage, name: str) -> Record:
    """Reads the record of a job.

    Args:
      storage: the model directory.
      name: of the job.

    Returns:
      The record.

    Raises:
      SettingError: if there is none, or it is another job's.
    """
    record, _ = require_record(storage)
    if record.job.name != name:
        raise SettingError(f"{storage.url} has the record of job '{record.job.name}', not of '{name}'.")
    return record
