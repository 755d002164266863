"""Two machines at one job at the same time, and a job that changes while Cloud TPU is being asked: one TPU, or none."""

import dataclasses

import grpc
import pytest

from switch_tf.errors import SettingError
from tests.support.fake_cloud import State
from tests.tpu.jobs.test_lifecycle import QUOTA
from tpu.jobs import lifecycle
from tpu.jobs.cloud_api import Cloud
from tpu.jobs.record import read_record


def test_two_watchers_queue_one_attempt(zone, storage, job, files, monkeypatch):
    lifecycle.submit(zone.connect(), storage, job, files)
    zone.set_state("mine-1", State.ACTIVE)
    lifecycle.advance(zone.connect(), storage)
    zone.set_state("mine-1", State.SUSPENDED)
    write = lifecycle.write_record
    others = []

    def write_later(*arguments):
        """The other one comes to the same conclusion before this one has written it down."""
        if not others:
            others.append(None)
            others[0] = lifecycle.advance(zone.connect(), storage)
        write(*arguments)

    monkeypatch.setattr(lifecycle, "write_record", write_later)
    record = lifecycle.advance(zone.connect(), storage)
    assert record.restarts == others[0].restarts == 1
    assert zone.id_states() == {"mine-2": "WAITING_FOR_RESOURCES"}


def interrupt(monkeypatch, method: str, act, when: str = "before") -> None:
    """Lets something happen before or after the next call of a method of Cloud."""
    call = getattr(Cloud, method)

    def interrupted(self, *arguments):
        monkeypatch.setattr(Cloud, method, call)
        if when == "before":
            act()
        found = call(self, *arguments)
        if when == "after":
            act()
        return found

    monkeypatch.setattr(Cloud, method, interrupted)


@pytest.mark.parametrize("keep", [False, True])
def test_a_job_that_is_cancelled_while_it_is_being_queued_leaves_no_tpu(zone, storage, job, files, monkeypatch, keep):
    interrupt(monkeypatch, "create", lambda: lifecycle.cancel(zone.connect(), storage))
    record = lifecycle.submit(zone.connect(), storage, dataclasses.replace(job, keep=keep), files)
    assert record.state == read_record(storage)[0].state == "CANCELLED"
    assert zone.calls.count("CreateQueuedResource") == 1
    assert zone.id_states() == {}


def test_a_job_that_is_cancelled_while_its_old_tpu_is_deleted_is_not_queued_again(
    zone, storage, job, files, monkeypatch
):
    lifecycle.submit(zone.connect(), storage, job, files)
    zone.set_state("mine-1", State.SUSPENDED)
    interrupt(monkeypatch, "delete", lambda: lifecycle.cancel(zone.connect(), storage), when="after")
    assert lifecycle.advance(zone.connect(), storage).state == "CANCELLED"
    assert zone.calls.count("CreateQueuedResource") == 1
    assert zone.id_states() == {}


def test_a_job_that_is_submitted_anew_while_it_is_being_queued_has_one_tpu(zone, storage, job, files, monkeypatch):
    def anew():
        lifecycle.cancel(zone.connect(), storage)
        lifecycle.submit(zone.connect(), storage, dataclasses.replace(job, zone="us-east1-d"), files)

    interrupt(monkeypatch, "create", anew)
    record = lifecycle.submit(zone.connect(), storage, job, files)
    assert (record.state, record.attempt["number"]) == ("RUNNING", 2)
    assert list(zone.id_states()) == ["mine-2"]


def test_a_refusal_ends_nothing_that_another_machine_has_cancelled_or_queued(zone, storage, job, files, monkeypatch):
    zone.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, QUOTA)
    interrupt(monkeypatch, "create", lambda: lifecycle.cancel(zone.connect(), storage))
    with pytest.raises(SettingError, match="mine-1 was not queued"):
        lifecycle.submit(zone.connect(), storage, job, files)
    assert read_record(storage)[0].state == "CANCELLED"

    def queue():
        zone.refusal = None
        lifecycle.submit(zone.connect(), storage, job, files)
        zone.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, QUOTA)

    interrupt(monkeypatch, "create", queue)
    with pytest.raises(SettingError, match="mine-2 was not queued"):
        lifecycle.submit(zone.connect(), storage, job, files)
    assert read_record(storage)[0].state == "RUNNING"
    assert zone.id_states() == {"mine-2": "WAITING_FOR_RESOURCES"}


def test_a_refusal_of_one_machine_leaves_no_tpu_of_another(zone, storage, job, files, monkeypatch):
    """Nor one that would be kept: it has trained nothing."""
    job = dataclasses.replace(job, keep=True)

    def be_refused():
        zone.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, QUOTA)
        with pytest.raises(SettingError, match="mine-1 was not queued"):
            lifecycle.submit(zone.connect(), storage, job, files)

    interrupt(monkeypatch, "create", be_refused)
    assert lifecycle.submit(zone.connect(), storage, job, files).state == "FAILED"
    assert zone.id_states() == {}
