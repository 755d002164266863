"""Submitting, watching, finding and cancelling jobs.

Nobody has to watch for a job to run; but one that was preempted is queued again by whoever watches, on any machine, and
by as many as like to: the record says who was first.
"""

import json

from switch_tf.errors import SettingError
from tpu.jobs.bundle import Files
from tpu.jobs.cloud_api import AlreadyThere, Cloud, Refused, Resource
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
    update_record,
    write_record,
)
from tpu.jobs.request import attempt_folder, create_request, startup_script
from tpu.jobs.spec import Job

_GONE = ("PREEMPTED", "TERMINATED", "STOPPED")


def submit(cloud: Cloud, storage: Storage, job: Job, files: Files) -> Record:
    """Sends a job's files and queues its first attempt; goes on where a submission of the same job was cut off.

    Args:
      cloud: where to queue it.
      storage: its model directory.
      job: with its model directory.
      files: what its machines fetch.

    Returns:
      The record, as it is in the model directory now.

    Raises:
      SettingError: if another job goes on in that model directory, or Cloud TPU refuses or does not answer.
    """
    record, version = read_record(storage)
    if record is None or record.state != RUNNING:
        # The new job may have another name, project or zone, under which the ended one's TPU would not be found.
        for attempt in record.attempts if record else ():
            _delete(cloud, record, attempt["queued_resource"])
        record = Record.begin(job, files.folder, storage, record)
        files.upload(storage)
        try:
            write_record(storage, record, version)
        except Changed as error:
            raise SettingError(f"{storage.url}: another machine submits a job here at this moment.") from error
    elif json.dumps(record.job.to_dict()) != json.dumps(job.to_dict()) or record.files != files.folder:
        raise SettingError(
            f"{storage.url} has job '{record.job.name}' with other settings or code, and it has not ended: `switch-tf "
            f"tpu cancel {record.job.name}` first, or take another model_dir."
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
    """Whether an attempt is still to be queued: another machine may have gone on, or ended the job, in the meantime."""
    return record.state == RUNNING and record.attempt["number"] == number and record.attempt_state == SUBMITTING


def _queue(cloud: Cloud, storage: Storage, record: Record) -> Record:
    """Asks for the newest attempt's queued resource, in the place of the one before; again, if need be."""
    job, number = record.job, record.attempt["number"]
    for attempt in record.attempts[:-1]:
        _delete(cloud, record, attempt["queued_resource"])
    # Deleting takes minutes, in which the job may have been cancelled.
    now, _ = read_record(storage)
    if now is None:
        raise _no_record(storage)
    if not _is_due(now, number):
        return now
    name = job.queued_resource_id(number)
    try:
        cloud.create(create_request(job, startup_script(job, record.files, number), number))
    except AlreadyThere:
        if not _is_of(cloud.get(job.parent, name), record):
            raise Refused(
                f"There is a queued resource '{name}' in {job.zone} already, and it is not this job's: choose another "
                "name."
            ) from None
    resource = cloud.get(job.parent, name)
    state = resource.state if resource is not None else "CREATING"

    def change(record: Record) -> None:
        if _is_due(record, number):
            record.observe(state)

    now = update_record(storage, change)
    # Whoever went on, or ended the job, found nothing to delete while Cloud TPU was being asked.
    if now.attempt["number"] != number:
        _delete(cloud, record, name)
    elif now.state != RUNNING:
        _release(cloud, now)
    return now


def _is_of(resource: Resource | None, record: Record) -> bool:
    """Whether a queued resource is one of a job's: its label and the job's record both say so."""
    return (
        resource is not None
        and resource.job == record.job.name
        and resource.model_dir == record.job.model_dir
        and resource.id in [attempt["queued_resource"] for attempt in record.attempts]
    )


def _delete(cloud: Cloud, record: Record, name: str) -> None:
    if _is_of(cloud.get(record.job.parent, name), record):
        cloud.delete(record.job.parent, name)


def advance(cloud: Cloud, storage: Storage) -> Record:
    """Looks at a job once, notes what has changed, and does what it needs: queues it again, or gives its TPU back.

    Args:
      cloud: where it is queued.
      storage: its model directory.

    Returns:
      The record, as it is in the model directory now.

    Raises:
      SettingError: if Cloud TPU refuses or does not answer; looking again goes on from there.
    """
    record, version = read_record(storage)
    if record is None:
        raise _no_record(storage)
    if record.state != RUNNING:
        _release(cloud, record)
        return record
    resource = cloud.get(record.job.parent, record.attempt["queued_resource"])
    if resource is None and record.attempt_state == SUBMITTING:
        return _queue(cloud, storage, record)
    before = record.to_json()
    _note(cloud, storage, record, resource)
    if record.to_json() == before:
        return record
    try:
        write_record(storage, record, version)
    except Changed:
        # Another machine watches as well, and was faster.
        return read_record(storage)[0]
    if record.state != RUNNING:
        _release(cloud, record)
    elif record.attempt_state == SUBMITTING:
        return _queue(cloud, storage, record)
    return record


def _release(cloud: Cloud, record: Record) -> None:
    """Gives the TPU of a job that has ended back."""
    # One that ended while it was still to be queued has trained nothing, and there is nothing to keep.
    if not record.job.keep or record.state == CANCELLED or record.attempt_state == SUBMITTING:
        for attempt in record.attempts:
            if attempt["number"] >= record.first_attempt:
                _delete(cloud, record, attempt["queued_resource"])


def _note(cloud: Cloud, storage: Storage, record: Record, resource: Resource | None) -> None:
    """Notes in the record what has become of the newest attempt."""
    outcome = outcome_of(storage, record.attempt["number"])
    if outcome is not None:
        said = f"training on {outcome.worker} ended with exit status {outcome.exit_status}"
        if not outcome.is_final:
            _restart(record, said)
        elif outcome.exit_status == 0:
            _end(record, FINISHED)
        else:
            _end(record, FAILED, f"{said}: see its log")
    elif resource is None:
        _end(record, FAILED, f"{record.attempt['queued_resource']} was deleted, and not by this tool")
    elif not _is_of(resource, record):
        _end(record, FAILED, f"{resource.id} is not this job's")
    elif resource.state == "SUSPENDED":
        _restart(record, "Cloud TPU took the machines back (preempted, or maintenance)")
    elif resource.state == "FAILED":
        said = resource.reason or "the queued resource failed"
        if record.has_been("ACTIVE") or storage.names(attempt_folder(record.attempt["number"]) + "/"):
            _restart(record, said)
        else:
            # Refused before it ever ran: it would be refused again.
            _end(record, FAILED, said)
    elif resource.state == "ACTIVE":
        node = cloud.node(record.job.parent, resource.id)
        if node is None or node.state in _GONE:
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
        record.add_attempt("queued again")
    else:
        _end(record, FAILED, f"{reason}, and max_restarts = {limit} is used up: submit the job again to go on")


def cancel(cloud: Cloud, storage: Storage) -> Record:
    """Ends a job and gives its TPU back; what it has trained stays.

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
    for attempt in record.attempts:
        _delete(cloud, record, attempt["queued_resource"])
    return record


def _no_record(storage: Storage) -> SettingError:
    return SettingError(f"{storage.url} has no record of a job: it was not submitted by `switch-tf tpu submit`.")


def find(cloud: Cloud, name: str, parent: str) -> Resource:
    """Finds the newest queued resource of a job.

    Args:
      cloud: where it is queued.
      name: of the job.
      parent: "projects/P/locations/Z".

    Raises:
      SettingError: if there is none, or one in each of several zones.
    """
    there = cloud.jobs(parent)
    found = [resource for resource in there if resource.job == name]
    if not found:
        others = sorted({resource.job for resource in there})
        raise SettingError(
            f"No TPU of {parent} belongs to a job '{name}' (there is: {', '.join(others) or 'none'}): for one that has "
            "ended, give --model_dir=gs://..."
        )
    zones = sorted({resource.parent.rpartition("/")[2] for resource in found})
    if len(zones) > 1:
        raise SettingError(f"There is a job '{name}' in {' and in '.join(zones)}: say which with --zone=...")
    return found[-1]


def record_of(storage: Storage, name: str) -> Record:
    """Reads the record of a job.

    Raises:
      SettingError: if there is none, or it is another job's.
    """
    record, _ = read_record(storage)
    if record is None:
        raise _no_record(storage)
    if record.job.name != name:
        raise SettingError(f"{storage.url} has the record of job '{record.job.name}', not of '{name}'.")
    return record
