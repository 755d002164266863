"""The commands `switch-tf tpu ...` for jobs, as a user types them."""

import builtins
import json
import subprocess
import sys

import google.auth.exceptions
import grpc
import pytest

from switch_tf.cli import main as command_line
from tests.support.fake_bucket import MODEL_DIR
from tests.support.fake_cloud import State
from tests.support.launch import ROOT
from tpu.jobs import cloud_api

PLACE = ["--project=the-project", "--zone=europe-west4-a"]
FILES = ["gin/models/switch_base_128.gin", "gin/runs/pretrain_c4.gin", "gin/layouts/v3_32.gin"]
SUBMIT = [
    *("tpu", "submit", "--name=mine", "--accelerator_type=v3-32", f"--model_dir={MODEL_DIR}", *PLACE),
    *(f"--gin_file={name}" for name in FILES),
]


@pytest.fixture
def run(zone, bucket, capsys):
    """Runs a command; returns its exit status, standard output and standard error."""

    def give(*words: str) -> tuple[int, str, str]:
        status = 0
        try:
            command_line.main([*words, f"--endpoint={zone.endpoint}", "--timeout=5"])
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return give


def test_submit_says_what_it_did_and_what_is_next(run, zone):
    status, out, _ = run(*SUBMIT, "--provisioning=spot", "--label=team=research")
    assert status == 0
    assert out.splitlines() == [
        "job mine, attempt 1: WAITING_FOR_RESOURCES; restarts 0/10",
        f"v3-32: 16 chips, 32 devices, 4 hosts; spot, in europe-west4-a of the-project; {MODEL_DIR}",
        "Follow it, and have it requeued after a preemption:",
        "  switch-tf tpu watch mine --project=the-project --zone=europe-west4-a",
    ]
    (resource,) = zone.resources.values()
    assert resource.tpu.node_spec[0].node.labels["team"] == "research"
    assert "spot" in resource


def test_submit_reads_a_file_and_flags_win(run, tmp_path, zone):
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: of-the-file\nproject: the-project\nzone: us-central1-a\naccelerator_type: v3-32\n"
        f"model_dir: {MODEL_DIR}\ngin_files: {json.dumps(FILES)}\ngin: {{TRAIN_STEPS: 7}}\n"
    )
    status, out, _ = run(*("tpu", "submit", f"--job={path}", "--zone=us-east1-d", "--json", "--gin.BATCH_SIZE=1024"))
    assert status == 0
    assert json.loads(out)["zone"] == "us-east1-d"
    assert list(zone.id_states()) == ["of-the-file-1"]


def test_a_dry_run_needs_no_connection(capsys, monkeypatch):
    """Neither a zone nor a bucket nor credentials."""
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setattr(cloud_api, "Cloud", None)
    command_line.main([*SUBMIT, "--dry_run", "--json"])
    values = json.loads(capsys.readouterr().out)
    node = values["request"]["queuedResource"]["tpu"]["nodeSpec"][0]["node"]
    assert node["metadata"]["startup-script"] == values["startup_script"]
    command_line.main([*SUBMIT, "--dry_run"])
    out = capsys.readouterr().out
    assert out.startswith('# CreateQueuedResource\n{\n  "parent": "projects/the-project/locations/europe-west4-a",')
    assert out.endswith(values["startup_script"] + "\n")


def test_a_dry_run_prints_what_submit_sends(run, zone):
    _, out, _ = run(*SUBMIT, "--dry_run", "--json")
    run(*SUBMIT)
    assert zone.script_of("mine-1") == json.loads(out)["startup_script"]


def test_list_shows_our_jobs(run, zone):
    assert run("tpu", "list", *PLACE)[1] == "No job has a TPU or waits for one.\n"
    run(*SUBMIT)
    rows = run("tpu", "list", "--project=the-project")[1].splitlines()
    assert rows[1].split()[:5] == ["mine", "WAITING_FOR_RESOURCES", "v3-32", "on-demand", "mine-1"]
    (found,) = json.loads(run("tpu", "list", *PLACE, "--json")[1])["jobs"]
    assert (found["job"], found["model_dir"]) == ("mine", MODEL_DIR)


def test_status_reads_the_model_directory(run, zone, storage):
    run(*SUBMIT)
    zone.set_state("mine-1", State.ACTIVE)
    run("tpu", "watch", "mine", "--once", *PLACE)
    _, out, _ = run("tpu", "status", "mine", *PLACE)
    assert "TPU              mine-1: ACTIVE; node READY, HEALTHY\n" in out
    assert "checkpoint       none yet\nmetrics          none yet\n" in out
    for step in (100, 200):
        storage.write(f"checkpoints/step_{step:08}/manifest.json", b"{}")
    storage.write("checkpoints/step_00000300/state.index", b"interrupted")
    storage.write("metrics.csv", b"step,loss,encoder/layer_1/x\n1,3.5,0\n212,2.25,1\n213,2.")
    _, out, _ = run("tpu", "status", "mine", *PLACE)
    assert "checkpoint       step 200\nmetrics          step 212: loss 2.25\n" in out
    values = json.loads(run("tpu", "status", "mine", *PLACE, "--json")[1])
    assert (values["state"], values["checkpoint_step"]) == ("RUNNING", 200)
    assert values["metrics"] == {"step": 212, "loss": 2.25, "encoder/layer_1/x": 1}
    assert values["node"] == {"state": "READY", "health": "HEALTHY", "description": ""}
    assert [seen["state"] for seen in values["attempts"][0]["states"]][-1] == "ACTIVE"


def test_metrics_of_long_runs_are_read_at_their_end(run, storage):
    run(*SUBMIT)
    columns = ",".join(f"layer_{index}/fraction" for index in range(9000))
    row = ",".join(["0.125"] * 9000)
    storage.write("metrics.csv", f"step,{columns}\n".encode() + b"".join(f"{n},{row}\n".encode() for n in range(1, 9)))
    values = json.loads(run("tpu", "status", "mine", *PLACE, "--json")[1])
    assert values["metrics"]["step"] == 8
    assert len(values["metrics"]) == 9001


def test_watch_prints_changes_requeues_and_ends(run, zone, storage):
    run(*SUBMIT)
    assert "WAITING_FOR_RESOURCES" in run("tpu", "watch", "mine", "--once", *PLACE)[1]
    zone.set_state("mine-1", State.ACTIVE)
    run("tpu", "watch", "mine", "--once", *PLACE)
    zone.set_state("mine-1", State.SUSPENDED)
    out = run("tpu", "watch", "mine", "--once", *PLACE)[1]
    assert "job mine, attempt 2: WAITING_FOR_RESOURCES; restarts 1/10" in out
    storage.write("job/attempt-2/outcomes/worker-000.json", b'{"exit_status": 0}')
    status, out, _ = run("tpu", "watch", "mine", *PLACE)
    assert (status, zone.id_states()) == (0, {})
    assert "job mine, attempt 2: FINISHED; restarts 1/10" in out
    # There is no TPU any more through which to find the job.
    status, _, err = run("tpu", "status", "mine", *PLACE)
    assert status == 2
    assert "for a job that has ended, give --model_dir=gs://..." in err
    assert "FINISHED" in run("tpu", "status", "mine", f"--model_dir={MODEL_DIR}")[1]


def test_watch_continues_after_a_rejection(run, zone, storage, monkeypatch):
    run(*SUBMIT)
    zone.set_state("mine-1", State.SUSPENDED)
    zone.fail("CreateQueuedResource", grpc.StatusCode.RESOURCE_EXHAUSTED, "There is no more capacity in the zone")
    rounds = []

    def passes(seconds):
        rounds.append(zone.id_states())
        if len(rounds) == 2:
            storage.write("job/attempt-2/outcomes/worker-000.json", b'{"exit_status": 0}')

    monkeypatch.setattr("time.sleep", passes)
    status, _, err = run("tpu", "watch", "mine", f"--model_dir={MODEL_DIR}")
    assert status == 0
    assert "mine-2 was not queued: There is no more capacity in the zone: try another zone, other provisioning" in err
    assert rounds == [{}, {"mine-2": "WAITING_FOR_RESOURCES"}]


def test_watch_fails_with_the_job(run, zone, storage):
    run(*SUBMIT)
    storage.write("job/attempt-1/outcomes/worker-002.json", b'{"exit_status": 2}')
    status, _, err = run("tpu", "watch", "mine", *PLACE)
    assert status == 2
    assert err == ("switch-tf: error: Job mine failed: training on worker-002 ended with exit status 2: see its log.\n")


def test_logs(run, storage, monkeypatch):
    run(*SUBMIT)
    status, _, err = run("tpu", "logs", "mine", *PLACE)
    assert (status, "attempt 1 is WAITING_FOR_RESOURCES; the log appears when the hosts have started" in err) == (
        2,
        True,
    )
    name = "job/attempt-1/logs/worker-000.txt"
    lines = [f"line {index} of the log\n" for index in range(9000)]
    storage.write(name, "".join(lines).encode())
    storage.write("job/attempt-1/logs/worker-003.txt", b"of worker 3\n")
    assert run("tpu", "logs", "mine", *PLACE, "--lines=2")[1] == "".join(lines[-2:])
    assert run("tpu", "logs", "mine", *PLACE, "--lines=8000")[1] == "".join(lines[-8000:])
    assert run("tpu", "logs", "mine", *PLACE, "--worker=3")[1] == "of worker 3\n"

    def passes(seconds):
        storage.write(name, "".join([*lines, "more\n"]).encode())
        storage.write("job/attempt-1/outcomes/worker-000.json", b'{"exit_status": 0}')

    monkeypatch.setattr("time.sleep", passes)
    assert run("tpu", "logs", "mine", *PLACE, "--lines=1", "--follow")[1] == lines[-1] + "more\n"


@pytest.mark.parametrize(("answer", "is_cancelled"), [("y", True), ("n", False), ("", False), (None, False)])
def test_cancel_asks(run, zone, monkeypatch, answer, is_cancelled):
    run(*SUBMIT)

    def asked(question):
        assert question == "Cancel job mine? [y/N] "
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr(builtins, "input", asked)
    status, out, err = run("tpu", "cancel", "mine", *PLACE)
    assert f"v3-32 in europe-west4-a; {MODEL_DIR} stays." in out
    assert zone.id_states() == ({} if is_cancelled else {"mine-1": "WAITING_FOR_RESOURCES"})
    assert status == (0 if is_cancelled else 2)
    assert ("was not cancelled: answer y, or give --yes" in err) != is_cancelled


def test_cancel_without_asking(run, zone, storage):
    run(*SUBMIT)
    assert "CANCELLED" in run("tpu", "cancel", "mine", *PLACE, "--yes")[1]
    assert zone.id_states() == {}
    assert storage.read("job/record.json") is not None


def test_cancel_touches_nothing_without_a_record(run, zone, storage, bucket):
    run(*SUBMIT)
    (bucket / "runs" / "mine" / "job" / "record.json").unlink()
    status, _, err = run("tpu", "cancel", "mine", *PLACE, "--yes")
    assert (status, list(zone.id_states())) == (2, ["mine-1"])
    assert f"{MODEL_DIR} has no record of a job: it was not submitted by `switch-tf tpu submit`." in err


def test_another_jobs_model_directory_is_refused(run):
    run(*SUBMIT)
    status, _, err = run("tpu", "cancel", "yours", f"--model_dir={MODEL_DIR}", "--yes")
    assert (status, f"{MODEL_DIR} has the record of job 'mine', not of 'yours'." in err) == (2, True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["list"], "No project: give --project=... or set GOOGLE_CLOUD_PROJECT."),
        (["submit", "--label=team"], "--label=team is not of the form KEY=VALUE."),
        (["submit", "--name=mine"], "The job has no project: set it in --job=FILE or with --project="),
        (["submit", "--job=nowhere.yaml"], "--job=nowhere.yaml cannot be read: No such file or directory."),
        ([*SUBMIT[1:], "--accelerator_type=v9-8"], "accelerator_type = 'v9-8' is not a TPU slice"),
    ],
)
def test_mistakes_are_one_line(run, monkeypatch, words, message):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    status, out, err = run("tpu", *words)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"switch-tf: error: {message}")


@pytest.mark.parametrize(
    ("code", "said", "message"),
    [
        (
            grpc.StatusCode.PERMISSION_DENIED,
            "Permission 'tpu.nodes.list' denied",
            "grant the account the role TPU Admin",
        ),
        (grpc.StatusCode.UNAUTHENTICATED, "Invalid token", "No Google Cloud credentials were found: run `gcloud"),
        (grpc.StatusCode.INVALID_ARGUMENT, "Zone 'x' is none.", "Jobs could not be listed: Zone 'x' is none."),
    ],
)
def test_rejections_are_one_line(run, zone, code, said, message):
    zone.fail("ListQueuedResources", code, said)
    status, _, err = run("tpu", "list", *PLACE)
    assert (status, len(err.splitlines())) == (2, 1)
    assert message in err


def test_without_credentials(monkeypatch, capsys):
    def none(*arguments, **settings):
        raise google.auth.exceptions.DefaultCredentialsError("none")

    monkeypatch.setattr("google.auth.default", none)
    with pytest.raises(SystemExit):
        command_line.main(["tpu", "list", *PLACE])
    assert "No Google Cloud credentials were found: run `gcloud auth application-default login`" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("package", ["google.api_core", "yaml"])
def test_without_the_extra(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    words = ["submit", "--job=job.yaml"] if package == "yaml" else ["list", *PLACE]
    with pytest.raises(SystemExit) as caught:
        command_line.main(["tpu", *words])
    assert caught.value.code == 2
    assert "pip install 'switch-tf[cloud]'" in capsys.readouterr().err


def test_jobs_are_listed_without_tensorflow(zone):
    """Importing it takes seconds, and memory that a small machine may not have."""
    command = [
        sys.executable,
        "-m",
        "tests.programs.without_tensorflow",
        "tpu",
        "list",
        *PLACE,
        f"--endpoint={zone.endpoint}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "No job has a TPU or waits for one.\n", "")
