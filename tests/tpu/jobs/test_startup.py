"""The startup script, run by bash on fake hosts."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from google.cloud import tpu_v2

import tpu.jobs
from tests.support.fake_host import Host
from tpu.jobs.bundle import Bundle
from tpu.jobs.job_progress import outcome_of
from tpu.jobs.object_store import Folder
from tpu.jobs.request import create_request, startup_script

NASTY = "gs://the-bucket/a'b $(touch hacked) `touch hacked`\";touch hacked;x"
# In the environment of these tests, or elsewhere.
SHELLCHECK = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
THREE = "unknown:1:10.0.0.1,unknown:2:10.0.0.2,unknown:3:10.0.0.3"


@pytest.fixture
def buckets(tmp_path, job, bundle):
    """Buckets that have the job's bundle."""
    folder = tmp_path / "buckets"
    bundle.upload(Folder(str(folder / job.model_dir.removeprefix("gs://"))))
    return folder


@pytest.fixture
def store(buckets, job):
    return Folder(str(buckets / job.model_dir.removeprefix("gs://")))


def mark_ready(store, *workers: int) -> None:
    """Marks other hosts as ready for training."""
    for worker in workers:
        store.write(f"job/attempt-1/ready/worker-{worker:03}", b"")


@pytest.fixture
def script(job, bundle):
    return startup_script(job, bundle.folder, 1)


def test_a_single_host_installs_trains_reports_and_deletes_the_tpu(tmp_path, buckets, store, script):
    host = Host(tmp_path / "host", buckets)
    host.set_training('echo "this is training"', 'cat "${4#--gin_file=}"')
    assert host.boot(script).wait() == 0
    assert outcome_of(store, 1) == (0, "worker-000", True)
    log = store.read("job/attempt-1/logs/worker-000.txt").data.decode()
    assert "this is training\nTRAIN_STEPS = 3\n" in log
    work = host.folder / "work" / "mine-1"
    assert host.lines("installed") == [
        "-m pip install --quiet -c files/constraints.txt files/code/switch_tf.tar.gz",
        "-m pip uninstall --quiet -y tensorflow tfds-nightly seqio-nightly",
        "-m pip install --quiet --force-reinstall --no-deps tensorflow-tpu==2.20.0 libtpu==0.0.14 "
        "tensorflow-datasets==4.9.10 seqio==0.0.20",
    ]
    # A single host has no list of processes.
    assert host.lines("trained") == [
        f"{work}/modules   -m switch_tf.cli.main train --gin_file={work}/files/experiment.gin"
    ]
    assert host.lines("requests") == [
        "--silent --fail -X DELETE -H @- https://tpu.googleapis.com/v2/projects/the-project/locations/europe-west4-a/"
        "queuedResources/mine-1?force=true Authorization: Bearer the-token"
    ]


@pytest.mark.parametrize(
    ("accelerator_type", "options"),
    [("v3-32", "--xla_tpu_enable_async_all_to_all=true"), ("v5litepod-32", "")],
)
def test_training_has_the_compiler_options_of_the_generation(tmp_path, buckets, bundle, job, accelerator_type, options):
    host = Host(tmp_path / "host", buckets)
    host.set_training('echo "options: <$LIBTPU_INIT_ARGS>"')
    other = dataclasses.replace(job, accelerator_type=accelerator_type, keep=True)
    assert host.boot(startup_script(other, bundle.folder, 1)).wait() == 0
    folder = Folder(str(buckets / job.model_dir.removeprefix("gs://")))
    assert f"options: <{options}>" in folder.read("job/attempt-1/logs/worker-000.txt").data.decode()


def test_each_of_several_hosts_gets_the_list_of_processes(tmp_path, buckets, store, script):
    host = Host(tmp_path / "host", buckets, worker=2, endpoints=THREE)
    mark_ready(store, 0, 1)
    assert host.boot(script).wait() == 0
    (line,) = host.lines("trained")
    assert line.split()[1:3] == ["2", "10.0.0.1:12470,10.0.0.2:12470,10.0.0.3:12470"]
    assert store.names("job/attempt-1/outcomes/") == ["job/attempt-1/outcomes/worker-002.json"]
    # The first host deletes the TPU.
    assert host.lines("requests") == []


def test_endpoints_may_be_plain_host_names(tmp_path, buckets, store, script):
    mark_ready(store, 0)
    host = Host(tmp_path / "host", buckets, worker=1, endpoints="host-a,host-b")
    host.boot(script).wait()
    assert host.lines("trained")[0].split()[1:3] == ["1", "host-a:12470,host-b:12470"]


@pytest.mark.parametrize("status", [75, 137])
def test_training_is_retried_after_a_lost_process_or_a_signal(tmp_path, buckets, store, script, status):
    host = Host(tmp_path / "host", buckets, endpoints=THREE)
    mark_ready(store, 1, 2)
    host.set_training(f"[ $(wc -l <{host.folder}/trained) -ge 3 ] || exit {status}")
    assert host.boot(script).wait() == 0
    assert len(host.lines("trained")) == 3
    assert outcome_of(store, 1) == (0, "worker-000", True)
    assert len(host.lines("installed")) == 3, "once"


def test_training_is_tried_five_times(tmp_path, buckets, store, script):
    host = Host(tmp_path / "host", buckets, worker=1, endpoints=THREE)
    mark_ready(store, 0, 2)
    host.set_training("exit 75")
    assert host.boot(script).wait() == 75
    assert len(host.lines("trained")) == 5
    assert outcome_of(store, 1) == (75, "worker-001", False)


def test_an_error_is_retried_by_no_host(tmp_path, buckets, store, script):
    wrong = Host(tmp_path / "wrong", buckets, worker=1, endpoints=THREE)
    wrong.set_training("exit 2")
    other = Host(tmp_path / "other", buckets, worker=0, endpoints=THREE)
    other.set_training("exit 75")
    mark_ready(store, 0, 2)
    assert wrong.boot(script).wait() == 2
    assert len(wrong.lines("requests")) == 1
    assert other.boot(script).wait() == 75
    assert (len(wrong.lines("trained")), len(other.lines("trained"))) == (1, 1)
    assert outcome_of(store, 1) == (2, "worker-001", True)


def test_a_failing_installation_is_retried_and_then_reported(tmp_path, buckets, store, script):
    host = Host(tmp_path / "host", buckets)
    shutil.rmtree(buckets / "the-bucket" / "runs" / "mine" / "job")
    assert host.boot(script).wait() == 74
    assert host.lines("trained") == []
    assert outcome_of(store, 1) == (74, "worker-000", False)
    assert store.read("job/attempt-1/logs/worker-000.txt").data.count(b"failed (") == 5


def test_hosts_wait_for_each_other(tmp_path, buckets, store, script):
    first = Host(tmp_path / "first", buckets, worker=0, endpoints="host-a,host-b")
    second = Host(tmp_path / "second", buckets, worker=1, endpoints="host-a,host-b")
    running = first.boot(script)
    while not store.names("job/attempt-1/ready/"):
        assert running.poll() is None
        time.sleep(0.05)
    assert first.lines("trained") == []
    assert second.boot(script).wait() == running.wait() == 0
    assert len(first.lines("trained")) == len(second.lines("trained")) == 1


def test_a_missing_host_ends_the_attempt_but_not_the_job(tmp_path, buckets, store, script):
    host = Host(tmp_path / "host", buckets, worker=0, endpoints="host-a,host-b")
    assert host.boot(script, pause=0.001).wait() == 74
    assert host.lines("trained") == []
    assert outcome_of(store, 1) == (74, "worker-000", False)


def test_a_shutdown_stops_training_and_the_next_boot_continues(tmp_path, buckets, store, script):
    host = Host(tmp_path / "host", buckets)
    host.set_training(
        f"if [ -e {host.folder}/saved ]; then exit 0; fi",
        f"trap 'touch {host.folder}/saved; exit 143' TERM",
        f"touch {host.folder}/training-runs",
        "while true; do sleep 0.1; done",
    )
    first = host.boot(script)
    while not (host.folder / "training-runs").exists():
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait() == 0
    assert (host.folder / "saved").exists()
    assert outcome_of(store, 1) is None
    assert host.lines("requests") == []
    assert b"received a signal to stop" in store.read("job/attempt-1/logs/worker-000.txt").data
    assert host.boot(script).wait() == 0
    assert outcome_of(store, 1) == (0, "worker-000", True)
    assert len(host.lines("installed")) == 3, "once"
    # A boot after the end does nothing.
    assert host.boot(script).wait() == 0
    assert len(host.lines("trained")) == 2


def test_a_tpu_that_is_kept_is_not_deleted(tmp_path, buckets, job, bundle):
    host = Host(tmp_path / "host", buckets)
    kept = dataclasses.replace(job, keep=True)
    assert host.boot(startup_script(kept, bundle.folder, 1)).wait() == 0
    assert host.lines("requests") == []


def test_modules_can_be_imported_by_gin_files(tmp_path, job):
    module = tmp_path / "my_tasks.py"
    module.write_text("NAME = 'mine'\n")
    packed = Bundle("TRAIN_STEPS = 3\n", modules=[str(module)])
    packed.upload(Folder(str(tmp_path / "buckets" / job.model_dir.removeprefix("gs://"))))
    host = Host(tmp_path / "host", tmp_path / "buckets")
    host.set_training("cat $PYTHONPATH/my_tasks.py")
    assert host.boot(startup_script(job, packed.folder, 1)).wait() == 0
    assert "NAME = 'mine'" in host.lines("work/mine-1/log.txt")


def test_a_hostile_folder_runs_nothing(tmp_path, job, bundle):
    nasty = dataclasses.replace(job, model_dir=NASTY)
    store = Folder(str(tmp_path / "buckets" / NASTY.removeprefix("gs://")))
    bundle.upload(store)
    host = Host(tmp_path / "host", tmp_path / "buckets")
    host.set_training('echo "this is training"')
    assert host.boot(startup_script(nasty, bundle.folder, 1)).wait() == 0
    assert outcome_of(store, 1) == (0, "worker-000", True)
    assert b"this is training" in store.read("job/attempt-1/logs/worker-000.txt").data
    assert not list(tmp_path.rglob("hacked"))


def test_the_token_is_in_no_file_and_no_argument(tmp_path, buckets, store, script):
    host = Host(tmp_path / "host", buckets)
    assert host.boot(script).wait() == 0
    # What curl was called with: the header came by standard input.
    (request,) = host.lines("requests")
    assert request.count("the-token") == 1 and request.endswith("Authorization: Bearer the-token")
    (host.folder / "requests").unlink()
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert written and not [path for path in written if b"the-token" in path.read_bytes()]


def test_settings_are_quoted(job):
    nasty = NASTY
    script = startup_script(dataclasses.replace(job, model_dir=nasty), "job/files-1", 1)
    variables = script.split("\n# Startup script")[0]
    done = subprocess.run(
        ["bash", "-c", variables + '\nprintf "%s\\n" "$STORE" "$FILES"'], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == [f"{nasty}/job/attempt-1", f"{nasty}/job/files-1"]


def test_bash_accepts_the_script(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert len(script.encode()) < 256 * 1024, "the limit of a metadata value"


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing(script):
    """With the variables that come before it; `make lint` checks the file alone."""
    done = subprocess.run([SHELLCHECK, "-"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_script_arrives_unchanged_in_the_metadata(job, script):
    """Through the request's JSON, as Cloud TPU's API transports it: no character is lost or escaped twice."""
    request = json.loads(tpu_v2.CreateQueuedResourceRequest.to_json(create_request(job, script, 1)))
    (spec,) = request["queuedResource"]["tpu"]["nodeSpec"]
    assert spec["node"]["metadata"]["startup-script"] == script
    assert script.endswith((pathlib.Path(tpu.jobs.__file__).parent / "startup.sh").read_text())
