"""Jobs in a fake zone with a fake bucket: submitted, rejected, preempted, interrupted, cancelled."""

import dataclasses
import json

import google.auth.exceptions
import grpc
import pytest

from switch_tf.errors import SettingError
from tests.support.fake_cloud import QUOTA, NodeState, State
from tests.support.wire import wire_to
from tpu.jobs import lifecycle
from tpu.jobs.bundle import Bundle
from tpu.jobs.cloud_api import Cloud
from tpu.jobs.record import read_record
from tpu.jobs.request import create_request

NO_CAPACITY = "There is no more capacity in the zone europe-west4-a."


def states(record) -> list[list[str]]:
    return [[seen["state"] for seen in attempt["states"]] for attempt in record.attempts]


def outcome(storage, attempt: int, status: int, worker: int = 0) -> None:
    name = f"job/attempt-{attempt}/outcomes/worker-{worker:03}.json"
    storage.write(name, json.dumps({"exit_status": status, "time": "now"}).encode())


def test_a_job_is_queued_with_its_files_and_its_record(zone, storage, job, bundle):
    record = lifecycle.submit(zone.connect(), storage, job, bundle)
    assert zone.id_states() == {"mine-1": "WAITING_FOR_RESOURCES"}
    assert states(record) == [["SUBMITTING", "WAITING_FOR_RESOURCES"]]
    assert set(storage.names("")) == {"job/record.json", *(f"{bundle.folder}/{name}" for name in bundle.contents)}
    assert storage.read(f"{bundle.folder}/experiment.gin").data == b"TRAIN_STEPS = 3\n"
    assert read_record(storage)[0].job == job
    (found,) = zone.connect().jobs(job.parent)
    assert (found.job, found.model_dir, found.accelerator_type) == ("mine", job.model_dir, "v3-32")


def test_the_same_submission_again_changes_nothing(zone, storage, job, bundle):
    first = lifecycle.submit(zone.connect(), storage, job, bundle)
    again = lifecycle.submit(zone.connect(), storage, job, Bundle("TRAIN_STEPS = 3\n"))
    assert again.to_json() == first.to_json()
    assert zone.calls.count("CreateQueuedResource") == 1
    with pytest.raises(SettingError, match="has job 'mine' with other settings or code, and it has not ended"):
        lifecycle.submit(zone.connect(), storage, job, Bundle("TRAIN_STEPS = 4\n"))


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (QUOTA, f"mine-1 was not queued: {QUOTA}: request quota for this TPU type in this zone"),
        (NO_CAPACITY, f"mine-1 was not queued: {NO_CAPACITY[:-1]}: try another zone"),
    ],
)
@pytest.mark.parametrize("by", ["the call", "the operation"])
def test_a_rejected_job_may_be_submitted_again(zone, storage, job, bundle, message, sentence, by):
    if by == "the call":
        zone.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, message)
    else:
        zone.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, message)
    with pytest.raises(SettingError) as caught:
        lifecycle.submit(zone.connect(), storage, job, bundle)
    assert str(caught.value).startswith(sentence)
    assert read_record(storage)[0].state == "FAILED"
    zone.refusal = None
    assert states(lifecycle.submit(zone.connect(), storage, job, bundle))[1] == ["SUBMITTING", "WAITING_FOR_RESOURCES"]
    assert list(zone.id_states()) == ["mine-2"]


def test_a_later_rejection_ends_the_job(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.set_state("mine-1", State.FAILED, NO_CAPACITY)
    record = lifecycle.advance(zone.connect(), storage)
    assert record.state == "FAILED"
    assert "no more capacity" in record.reason
    assert "try another zone" in record.reason
    assert zone.id_states() == {}


def test_a_failure_after_training_started_is_requeued_even_if_nobody_watched(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    storage.write("job/attempt-1/logs/worker-000.txt", b"training")
    zone.set_state("mine-1", State.FAILED, "the host has failed")
    assert lifecycle.advance(zone.connect(), storage).restarts == 1


def test_503_is_retried(zone, storage, job, bundle):
    zone.fail("CreateQueuedResource", grpc.StatusCode.UNAVAILABLE, "503: try later", times=3)
    zone.fail("GetOperation", grpc.StatusCode.UNAVAILABLE, "503: try later", times=1)
    lifecycle.submit(zone.connect(), storage, job, bundle)
    assert zone.calls.count("CreateQueuedResource") == 4
    assert zone.id_states() == {"mine-1": "WAITING_FOR_RESOURCES"}


def test_a_lasting_503_is_an_error_and_the_same_command_continues(zone, storage, job, bundle):
    zone.fail("CreateQueuedResource", grpc.StatusCode.UNAVAILABLE, "503: try later", times=1000)
    with pytest.raises(SettingError, match=r"did not respond for 0 seconds \(503: try later\): run the same command"):
        lifecycle.submit(zone.connect(timeout=0.2), storage, job, bundle)
    zone.faults.clear()
    record = lifecycle.submit(zone.connect(), storage, job, bundle)
    assert states(record) == [["SUBMITTING", "WAITING_FOR_RESOURCES"]]


def test_an_unreachable_token_server_is_not_a_lack_of_credentials(zone, storage, job, bundle, monkeypatch):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    cloud = zone.connect(timeout=0.2)
    get, failures = cloud._client.get_queued_resource, [google.auth.exceptions.TransportError("no route to host")]

    def get_with_a_token(name, retry):
        def call():
            if failures:
                raise failures.pop()
            return get(name=name)

        return retry(call)()

    monkeypatch.setattr(cloud._client, "get_queued_resource", get_with_a_token)
    assert lifecycle.advance(cloud, storage).state == "RUNNING"
    failures += [google.auth.exceptions.TransportError("no route to host")] * 1000
    with pytest.raises(SettingError, match=r"Cloud TPU did not respond .* \(no route to host\): run the same command"):
        lifecycle.advance(cloud, storage)


def test_a_lost_response_queues_nothing_twice(zone, storage, job, bundle):
    zone.fail("CreateQueuedResource", grpc.StatusCode.UNAVAILABLE, "Connection reset by peer", when="after")
    lifecycle.submit(zone.connect(), storage, job, bundle)
    assert zone.calls.count("CreateQueuedResource") == 2
    assert list(zone.id_states()) == ["mine-1"]


@pytest.mark.parametrize("when", ["before", "after"])
def test_lost_connections_are_reopened(zone, storage, job, bundle, when):
    with wire_to(zone.endpoint) as wire:
        for method in ("CreateQueuedResource", "GetQueuedResource"):
            zone.faults[method, when].append(lambda context: wire.cut())
        cloud = Cloud(f"http://127.0.0.1:{wire.port}", first_pause=0.01)
        record = lifecycle.submit(cloud, storage, job, bundle)
        assert wire.cuts == 2
    assert states(record) == [["SUBMITTING", "WAITING_FOR_RESOURCES"]]
    assert list(zone.id_states()) == ["mine-1"]


def test_an_interrupted_submission_continues(zone, storage, job, bundle, monkeypatch):
    """The connection is lost after the request was served; another machine runs the command again."""
    lost = grpc.StatusCode.UNAVAILABLE, "Connection reset by peer"
    zone.fail("CreateQueuedResource", *lost, when="after")
    zone.fail("CreateQueuedResource", *lost, times=1000)
    zone.faults["CreateQueuedResource", "before"].appendleft(lambda context: None)
    with pytest.raises(SettingError, match="run the same command again"):
        lifecycle.submit(zone.connect(timeout=0.2), storage, job, bundle)
    zone.faults.clear()
    # Cloud TPU forgets the ids of requests after a while.
    zone._requests.clear()
    record = lifecycle.submit(zone.connect(), storage, job, bundle)
    assert states(record) == [["SUBMITTING", "WAITING_FOR_RESOURCES"]]
    assert list(zone.id_states()) == ["mine-1"]


def test_a_name_that_is_taken(zone, storage, job, bundle):
    request = create_request(job, "their script", 1)
    request.queued_resource.tpu.node_spec[0].node.labels.clear()
    zone.connect().create(request)
    with pytest.raises(
        SettingError, match=r"A queued resource 'mine-1' exists in europe-west4-a, .* choose another name"
    ):
        lifecycle.submit(zone.connect(), storage, job, bundle)
    lifecycle.cancel(zone.connect(), storage)
    assert list(zone.id_states()) == ["mine-1"], "it is not ours"


def preempt(zone, name: str) -> None:
    zone.set_state(name, State.SUSPENDED)


def fail(zone, name: str) -> None:
    zone.set_state(name, State.FAILED, "the host has failed")


def lose_node(zone, name: str) -> None:
    node = next(node for key, node in zone.nodes.items() if key.endswith(name))
    node.state = NodeState.PREEMPTED


@pytest.mark.parametrize("loss", [preempt, fail, lose_node])
def test_a_job_that_lost_its_hosts_is_requeued(zone, storage, job, bundle, loss):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.set_state("mine-1", State.ACTIVE)
    assert lifecycle.advance(zone.connect(), storage).attempt_state == "ACTIVE"
    loss(zone, "mine-1")
    record = lifecycle.advance(zone.connect(), storage)
    assert zone.id_states() == {"mine-2": "WAITING_FOR_RESOURCES"}
    assert states(record)[0] == ["SUBMITTING", "WAITING_FOR_RESOURCES", "ACTIVE", "LOST"]
    assert record.restarts == 1
    assert "ATTEMPT=2\n" in zone.script_of("mine-2")


def test_restarts_are_limited(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    for attempt in (1, 2, 3):
        zone.set_state(f"mine-{attempt}", State.ACTIVE)
        zone.set_state(f"mine-{attempt}", State.SUSPENDED)
        record = lifecycle.advance(zone.connect(), storage)
    assert record.state == "FAILED"
    assert "max_restarts = 2 is reached: submit the job again to continue" in record.reason
    assert zone.id_states() == {}
    assert lifecycle.submit(zone.connect(), storage, job, bundle).restarts == 0
    assert list(zone.id_states()) == ["mine-4"]


@pytest.mark.parametrize(
    ("statuses", "state", "left"),
    [
        ({0: 0}, "FINISHED", []),
        ({0: 0, 1: 0}, "FINISHED", []),
        ({1: 0}, "RUNNING", ["mine-1"]),
        ({0: 75, 3: 2}, "FAILED", []),
        ({0: 75}, "RUNNING", ["mine-2"]),
        ({2: 137}, "RUNNING", ["mine-2"]),
        ({0: 2, 1: 74}, "RUNNING", ["mine-2"]),
    ],
)
def test_the_outcomes_of_hosts_decide(zone, storage, job, bundle, statuses, state, left):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.set_state("mine-1", State.ACTIVE)
    for worker, status in statuses.items():
        outcome(storage, 1, status, worker)
    record = lifecycle.advance(zone.connect(), storage)
    assert (record.state, list(zone.id_states())) == (state, left)
    if state == "FAILED":
        assert record.reason == "training on worker-003 ended with exit status 2: see its log"


def test_a_tpu_that_its_hosts_deleted_after_success_is_not_lost(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    outcome(storage, 1, 0)
    zone.connect().delete(job.parent, "mine-1")
    assert lifecycle.advance(zone.connect(), storage).state == "FINISHED"


def test_a_tpu_that_somebody_deleted_is_not_requeued(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.connect().delete(job.parent, "mine-1")
    record = lifecycle.advance(zone.connect(), storage)
    assert (record.state, record.reason) == ("FAILED", "mine-1 was deleted, but not by switch-tf")
    assert zone.id_states() == {}


def test_a_kept_tpu_stays_until_it_is_cancelled(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, dataclasses.replace(job, keep=True), bundle)
    zone.set_state("mine-1", State.ACTIVE)
    outcome(storage, 1, 0)
    assert lifecycle.advance(zone.connect(), storage).state == "FINISHED"
    assert list(zone.id_states()) == ["mine-1"]
    lifecycle.cancel(zone.connect(), storage)
    assert zone.id_states() == {}


@pytest.mark.parametrize("change", [{"name": "other"}, {"zone": "us-east1-d"}, {"project": "other-project"}])
def test_a_job_that_is_submitted_elsewhere_releases_its_kept_tpu(zone, storage, job, bundle, change):
    lifecycle.submit(zone.connect(), storage, dataclasses.replace(job, keep=True), bundle)
    zone.set_state("mine-1", State.ACTIVE)
    outcome(storage, 1, 0)
    assert lifecycle.advance(zone.connect(), storage).state == "FINISHED"
    elsewhere = dataclasses.replace(job, **change)
    lifecycle.submit(zone.connect(), storage, elsewhere, bundle)
    assert list(zone.resources) == [f"{elsewhere.parent}/queuedResources/{elsewhere.name}-2"]


def test_an_interrupted_watcher_is_continued(zone, storage, job, bundle):
    """Interrupted between the old queued resource and the new one."""
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.set_state("mine-1", State.SUSPENDED)
    zone.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, QUOTA)
    with pytest.raises(SettingError, match="mine-2 was not queued"):
        lifecycle.advance(zone.connect(), storage)
    assert zone.id_states() == {}
    assert read_record(storage)[0].attempt_state == "SUBMITTING"
    assert lifecycle.advance(zone.connect(), storage).attempt_state == "WAITING_FOR_RESOURCES"
    assert list(zone.id_states()) == ["mine-2"]


def test_cancelling_ends_a_job_for_watchers_too(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    zone.set_state("mine-1", State.ACTIVE)
    assert lifecycle.cancel(zone.connect(), storage).state == "CANCELLED"
    assert zone.id_states() == {}
    assert lifecycle.advance(zone.connect(), storage).state == "CANCELLED"
    assert zone.calls.count("CreateQueuedResource") == 1


def test_only_resources_with_the_jobs_label_and_record_are_deleted(zone, storage, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    name = next(iter(zone.resources))
    zone.resources[name].tpu.node_spec[0].node.labels["switch-tf-job"] = "theirs"
    lifecycle.cancel(zone.connect(), storage)
    zone.resources[name].tpu.node_spec[0].node.labels["switch-tf-job"] = "mine"
    zone.resources[name].tpu.node_spec[0].node.metadata["switch-tf-model-dir"] = "gs://the-bucket/theirs"
    lifecycle.cancel(zone.connect(), storage)
    assert "DeleteQueuedResource" not in zone.calls
    assert list(zone.id_states()) == ["mine-1"]


def test_a_damaged_record_is_an_error(zone, storage, job, bundle):
    storage.write("job/record.json", b"{")
    with pytest.raises(SettingError, match=r"job/record\.json is damaged: delete it to abandon the job"):
        lifecycle.submit(zone.connect(), storage, job, bundle)


def test_an_abandoned_job_leaves_the_next_one_no_outcome(zone, storage, bucket, job, bundle):
    lifecycle.submit(zone.connect(), storage, job, bundle)
    outcome(storage, 9, 0)
    outcome(storage, 10, 0)
    lifecycle.cancel(zone.connect(), storage)
    (bucket / "runs/mine/job/record.json").unlink()
    record = lifecycle.submit(zone.connect(), storage, job, bundle)
    assert (record.attempt["number"], record.restarts) == (11, 0)
    zone.set_state("mine-11", State.ACTIVE)
    assert lifecycle.advance(zone.connect(), storage).state == "RUNNING"
    zone.set_state("mine-11", State.SUSPENDED)
    record = lifecycle.advance(zone.connect(), storage)
    assert (record.attempt["number"], record.restarts) == (12, 1)
    outcome(storage, 12, 0)
    assert lifecycle.advance(zone.connect(), storage).state == "FINISHED"
    assert zone.id_states() == {}


def test_our_jobs_are_found_on_all_pages(zone, storage, job, bundle):
    for index in range(3):
        name = f"job-{index}"
        zone.connect().create(create_request(dataclasses.replace(job, name=name), "script", 1))
    request = create_request(dataclasses.replace(job, name="theirs"), "script", 1)
    request.queued_resource.tpu.node_spec[0].node.labels.clear()
    zone.connect().create(request)
    assert [found.job for found in zone.connect().jobs("projects/the-project/locations/-")] == [
        "job-0",
        "job-1",
        "job-2",
    ]
    with pytest.raises(SettingError, match=r"belongs to a job 'theirs' \(jobs there: job-0, job-1, job-2\)"):
        lifecycle.find(zone.connect(), "theirs", job.parent)
    zone.connect().create(create_request(dataclasses.replace(job, name="job-1", zone="us-east1-d"), "script", 1))
    assert lifecycle.find(zone.connect(), "job-1", job.parent).parent == job.parent
    with pytest.raises(SettingError, match="in europe-west4-a and in us-east1-d: choose one with --zone="):
        lifecycle.find(zone.connect(), "job-1", "projects/the-project/locations/-")
