"""The start-up script, run by bash."""

import dataclasses
import json
import shutil
import signal
import subprocess
import time

import pytest

from tests.support.fake_machine import Machine
from tpu.jobs.bundle import Files
from tpu.jobs.job_progress import outcome_of
from tpu.jobs.object_store import Folder
from tpu.jobs.request import startup_script

THREE = "unknown:1:10.0.0.1,unknown:2:10.0.0.2,unknown:3:10.0.0.3"


@pytest.fixture
def buckets(tmp_path, job):
    """Buckets that have the job's files."""
    folder = tmp_path / "buckets"
    files(job).upload(Folder(str(folder / job.model_dir.removeprefix("gs://"))))
    return folder


def files(job, modules=()) -> Files:
    return Files("TRAIN_STEPS = 3\n", modules=modules)


@pytest.fixture
def store(buckets, job):
    return Folder(str(buckets / job.model_dir.removeprefix("gs://")))


def others_are_ready(store, *workers: int) -> None:
    for worker in workers:
        store.write(f"job/attempt-1/ready/worker-{worker:03}", b"")


@pytest.fixture
def script(job):
    return startup_script(job, files(job).folder, 1)


def test_one_machine_installs_trains_reports_and_gives_the_tpu_back(tmp_path, buckets, store, script):
    machine = Machine(tmp_path / "machine", buckets)
    machine.train_by('echo "this is training"', 'cat "${4#--gin_file=}"')
    assert machine.boot(script).wait() == 0
    assert outcome_of(store, 1) == (0, "worker-000", True)
    log = store.read("job/attempt-1/logs/worker-000.txt").data.decode()
    assert "this is training\nTRAIN_STEPS = 3\n" in log
    work = machine.folder / "work" / "mine-1"
    assert machine.lines("installed") == [
        "-m pip install --quiet -c files/constraints.txt files/code/switch_tf.tar.gz",
        "-m pip uninstall --quiet -y tensorflow tfds-nightly seqio-nightly",
        "-m pip install --quiet --force-reinstall --no-deps tensorflow-tpu==2.20.0 libtpu==0.0.14 "
        "tensorflow-datasets==4.9.10 seqio==0.0.20",
    ]
    # One machine: no word of processes.
    assert machine.lines("trained") == [
        f"{work}/modules   -m switch_tf.cli.main train --gin_file={work}/files/experiment.gin"
    ]
    assert machine.lines("requests") == [
        "--silent --fail -X DELETE -H Authorization: Bearer the-token https://tpu.googleapis.com/v2/projects/the-project/"
        "locations/europe-west4-a/queuedResources/mine-1?force=true"
    ]


def test_each_of_many_machines_is_told_who_is_there(tmp_path, buckets, store, script):
    machine = Machine(tmp_path / "machine", buckets, worker=2, endpoints=THREE)
    others_are_ready(store, 0, 1)
    assert machine.boot(script).wait() == 0
    (line,) = machine.lines("trained")
    assert line.split()[1:3] == ["2", "10.0.0.1:12470,10.0.0.2:12470,10.0.0.3:12470"]
    assert store.names("job/attempt-1/outcomes/") == ["job/attempt-1/outcomes/worker-002.json"]
    # The first machine gives the TPU back.
    assert machine.lines("requests") == []


def test_plain_host_names_are_understood(tmp_path, buckets, store, script):
    others_are_ready(store, 0)
    machine = Machine(tmp_path / "machine", buckets, worker=1, endpoints="host-a,host-b")
    machine.boot(script).wait()
    assert machine.lines("trained")[0].split()[1:3] == ["1", "host-a:12470,host-b:12470"]


@pytest.mark.parametrize("status", [75, 137])
def test_training_goes_on_after_another_process_or_a_signal_ended_it(tmp_path, buckets, store, script, status):
    machine = Machine(tmp_path / "machine", buckets, endpoints=THREE)
    others_are_ready(store, 1, 2)
    machine.train_by(f"[ $(wc -l <{machine.folder}/trained) -ge 3 ] || exit {status}")
    assert machine.boot(script).wait() == 0
    assert len(machine.lines("trained")) == 3
    assert outcome_of(store, 1) == (0, "worker-000", True)
    assert len(machine.lines("installed")) == 3, "once"


def test_five_tries_are_enough(tmp_path, buckets, store, script):
    machine = Machine(tmp_path / "machine", buckets, worker=1, endpoints=THREE)
    others_are_ready(store, 0, 2)
    machine.train_by("exit 75")
    assert machine.boot(script).wait() == 75
    assert len(machine.lines("trained")) == 5
    assert outcome_of(store, 1) == (75, "worker-001", False)


def test_a_mistake_is_not_tried_again_by_any_machine(tmp_path, buckets, store, script):
    wrong = Machine(tmp_path / "wrong", buckets, worker=1, endpoints=THREE)
    wrong.train_by("exit 2")
    other = Machine(tmp_path / "other", buckets, worker=0, endpoints=THREE)
    other.train_by("exit 75")
    others_are_ready(store, 0, 2)
    assert wrong.boot(script).wait() == 2
    assert len(wrong.lines("requests")) == 1
    assert other.boot(script).wait() == 75
    assert (len(wrong.lines("trained")), len(other.lines("trained"))) == (1, 1)
    assert outcome_of(store, 1) == (2, "worker-001", True)


def test_an_installation_that_fails_is_tried_again_and_then_told(tmp_path, buckets, store, script):
    machine = Machine(tmp_path / "machine", buckets)
    shutil.rmtree(buckets / "the-bucket" / "runs" / "mine" / "job")
    assert machine.boot(script).wait() == 74
    assert machine.lines("trained") == []
    assert outcome_of(store, 1) == (74, "worker-000", False)
    assert store.read("job/attempt-1/logs/worker-000.txt").data.count(b"failed (") == 5


def test_machines_wait_for_each_other(tmp_path, buckets, store, script):
    first = Machine(tmp_path / "first", buckets, worker=0, endpoints="host-a,host-b")
    second = Machine(tmp_path / "second", buckets, worker=1, endpoints="host-a,host-b")
    running = first.boot(script)
    while not store.names("job/attempt-1/ready/"):
        assert running.poll() is None
        time.sleep(0.05)
    assert first.lines("trained") == []
    assert second.boot(script).wait() == running.wait() == 0
    assert len(first.lines("trained")) == len(second.lines("trained")) == 1


def test_a_machine_that_does_not_come_ends_the_attempt_not_the_job(tmp_path, buckets, store, script):
    machine = Machine(tmp_path / "machine", buckets, worker=0, endpoints="host-a,host-b")
    assert machine.boot(script, pause=0.001).wait() == 74
    assert machine.lines("trained") == []
    assert outcome_of(store, 1) == (74, "worker-000", False)


def test_a_shutdown_stops_training_and_the_next_boot_goes_on(tmp_path, buckets, store, script):
    machine = Machine(tmp_path / "machine", buckets)
    machine.train_by(
        f"if [ -e {machine.folder}/saved ]; then exit 0; fi",
        f"trap 'touch {machine.folder}/saved; exit 143' TERM",
        f"touch {machine.folder}/training-runs",
        "while true; do sleep 0.1; done",
    )
    first = machine.boot(script)
    while not (machine.folder / "training-runs").exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0
    assert (machine.folder / "saved").exists()
    assert outcome_of(store, 1) is None
    assert machine.lines("requests") == []
    assert b"told to stop" in store.read("job/attempt-1/logs/worker-000.txt").data
    assert machine.boot(script).wait() == 0
    assert outcome_of(store, 1) == (0, "worker-000", True)
    assert len(machine.lines("installed")) == 3, "once"
    # And the boot after the end does nothing.
    assert machine.boot(script).wait() == 0
    assert len(machine.lines("trained")) == 2


def test_a_tpu_that_is_to_stay_does(tmp_path, buckets, job):
    machine = Machine(tmp_path / "machine", buckets)
    kept = dataclasses.replace(job, keep=True)
    assert machine.boot(startup_script(kept, files(kept).folder, 1)).wait() == 0
    assert machine.lines("requests") == []


def test_modules_are_there_for_gin_files(tmp_path, job):
    module = tmp_path / "my_tasks.py"
    module.write_text("NAME = 'mine'\n")
    packed = files(job, [str(module)])
    packed.upload(Folder(str(tmp_path / "buckets" / job.model_dir.removeprefix("gs://"))))
    machine = Machine(tmp_path / "machine", tmp_path / "buckets")
    machine.train_by("cat $PYTHONPATH/my_tasks.py")
    assert machine.boot(startup_script(job, packed.folder, 1)).wait() == 0
    assert "NAME = 'mine'" in machine.lines("work/mine-1/log.txt")


def test_whatever_settings_say_is_no_command(job):
    nasty = "gs://the-bucket/a'b $(touch hacked) `touch hacked`\";x"
    script = startup_script(dataclasses.replace(job, model_dir=nasty), "job/files-1", 1)
    head = script.split("\n# What each machine")[0]
    said = subprocess.run(["bash", "-c", head + '\nprintf "%s\\n" "$STORE" "$FILES"'], capture_output=True, text=True)
    assert said.stdout.splitlines() == [f"{nasty}/job/attempt-1", f"{nasty}/job/files-1"]


def test_bash_finds_no_fault(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert len(script.encode()) < 256 * 1024, "what a metadata value may have"
    assert json.loads(json.dumps(script)) == script
