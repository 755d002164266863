"""Several machines manage one job at the same time: it never has more than one TPU, and none after its end."""

import dataclasses

import grpc
import pytest

from switch_tf.errors import SettingError
from tests.support.fake_cloud import QUOTA, State
from tpu.jobs import lifecycle
from tpu.jobs.cloud_api import Cloud
from tpu.jobs.record import read_record


def test_two_watchers_queue_one_attempt(zone, storage, job, bundle, monkeypatch):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.set_state("mine-1", State.ACTIVE)
    lifecycle.advance(zone.connect(), storage)
    zone.set_state("mine-1", State.SUSPENDED)
    write = lifecycle.write_record
    others = []

    def write_later(*arguments):
        """The other watcher advances the job before this one writes the record."""
        if not others:
            others.append(None)
            others[0] = lifecycle.advance(zone.connect(), storage)
        write(*arguments)

    monkeypatch.setattr(lifecycle, "write_record", write_later)
    record = lifecycle.advance(zone.connect(), storage)
    assert record.restarts == others[0].restarts == 1
    assert zone.id_states() == {"mine-2": "WAITING_FOR_RESOURCES"}


def interrupt(monkeypatch, method: str, act, when: str = "before") -> None:
    """Calls `act` before or after the next call of a method of Cloud."""
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
def test_a_job_that_is_cancelled_while_it_is_being_queued_leaves_no_tpu(zone, storage, job, bundle, monkeypatch, keep):
    interrupt(monkeypatch, "create", lambda: lifecycle.cancel(zone.connect(), storage))
    record = lifecycle.submit(zone.connect(), storage, dataclasses.replace(job, keep=keep), bundle)
    assert record.state == read_record(storage)[0].state == "CANCELLED"
    assert zone.calls.count("CreateQueuedResource") == 1
    assert zone.id_states() == {}


def test_a_job_that_is_cancelled_while_its_old_tpu_is_deleted_is_not_requeued(zone, storage, job, bundle, monkeypatch):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.set_state("mine-1", State.SUSPENDED)
    interrupt(monkeypatch, "delete", lambda: lifecycle.cancel(zone.connect(), storage), when="after")
    assert lifecycle.advance(zone.connect(), storage).state == "CANCELLED"
    assert zone.calls.count("CreateQueuedResource") == 1
    assert zone.id_states() == {}


def test_a_job_that_is_resubmitted_while_it_is_being_queued_has_one_tpu(zone, storage, job, bundle, monkeypatch):
    def resubmit():
        lifecycle.cancel(zone.connect(), storage)
        lifecycle.submit(zone.connect(), storage, dataclasses.replace(job, zone="us-east1-d"), bundle)

    interrupt(monkeypatch, "create", resubmit)
    record = lifecycle.submit(zone.connect(), storage, job, bundle)
    assert (record.state, record.attempt["number"]) == ("RUNNING", 2)
    assert list(zone.id_states()) == ["mine-2"]


def test_a_rejection_ends_nothing_that_another_machine_cancelled_or_queued(zone, storage, job, bundle, monkeypatch):
    zone.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, QUOTA)
    interrupt(monkeypatch, "create", lambda: lifecycle.cancel(zone.connect(), storage))
    with pytest.raises(SettingError, match="mine-1 was not queued"):
        lifecycle.submit(zone.connect(), storage, job, bundle)
    assert read_record(storage)[0].state == "CANCELLED"

    def queue():
        zone.refusal = None
        lifecycle.submit(zone.connect(), storage, job, bundle)
        zone.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, QUOTA)

    interrupt(monkeypatch, "create", queue)
    with pytest.raises(SettingError, match="mine-2 was not queued"):
        lifecycle.submit(zone.connect(), storage, job, bundle)
    assert read_record(storage)[0].state == "RUNNING"
    assert zone.id_states() == {"mine-2": "WAITING_FOR_RESOURCES"}


def test_a_rejection_on_one_machine_leaves_no_tpu_of_another(zone, storage, job, bundle, monkeypatch):
    """Not even one that is to be kept, as it has trained nothing."""
    job = dataclasses.replace(job, keep=True)

    def fail_to_submit():
        zone.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, QUOTA)
        with pytest.raises(SettingError, match="mine-1 was not queued"):
            lifecycle.submit(zone.connect(), storage, job, bundle)

    interrupt(monkeypatch, "create", fail_to_submit)
    assert lifecycle.submit(zone.connect(), storage, job, bundle).state == "FAILED"
    assert zone.id_states() == {}
