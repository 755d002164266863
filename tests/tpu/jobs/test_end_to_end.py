"""A job from its submission to its end, in a fake zone with a fake bucket; its hosts really train."""

import json
import os
import pathlib
import signal
import sys
import time

import pytest

from switch_tf.cli import main as command_line
from switch_tf.runs.recorder import read_csv
from tests.support.fake_bucket import MODEL_DIR
from tests.support.fake_cloud import State
from tests.support.fake_host import Host
from tests.support.launch import ROOT

STEPS, LAST_CHECKPOINT = 20, 10
PLACE = ["--project=the-project", "--zone=us-central1-a"]


@pytest.fixture
def run_command(zone, bucket, capsys):
    """Runs a command; returns what it printed."""

    def run(*words: str) -> str:
        command_line.main([*words, *PLACE, f"--endpoint={zone.endpoint}"])
        return capsys.readouterr().out

    return run


def training_host(folder: pathlib.Path, bucket: pathlib.Path, dies_after: int | None = None) -> Host:
    """A host that trains, with the bucket as a local folder; `dies_after`: it loses power at that checkpoint."""
    host = Host(folder, bucket.parent)
    model_dir = str(bucket / MODEL_DIR.removeprefix("gs://the-bucket/"))
    host.set_training(
        f"cd {ROOT}",
        f"export PYTHONPATH={ROOT}:$PYTHONPATH",
        "shift 2  # -m switch_tf.cli.main",
        f'{sys.executable} -m tests.programs.power_cut {dies_after or "never"} "$@" --gin.MODEL_DIR=\'"{model_dir}"\'',
        "status=$?",
        f"if [ $status = 137 ]; then touch {folder}/dark; sleep 600; fi",
        "exit $status",
    )
    return host


def test_a_job_is_preempted_requeued_and_finished(run_command, zone, bucket, tmp_path):
    run_command(
        *("tpu", "submit", "--name=mine", "--accelerator_type=v5litepod-1", f"--model_dir={MODEL_DIR}"),
        *("--provisioning=spot", "--gin_file=tests/support/tiny.gin", f"--gin.TRAIN_STEPS={STEPS}"),
        *("--gin.CHECKPOINT_PERIOD=5", "--gin.EVAL_PERIOD=1000", "--gin.NUM_EVAL_BATCHES=1"),
        *("--gin.NUM_EXPERTS=0", "--gin.ModelConfig.num_encoder_layers=1", "--gin.ModelConfig.num_decoder_layers=1"),
    )
    zone.set_state("mine-1", State.ACTIVE)
    first = training_host(tmp_path / "first", bucket, dies_after=LAST_CHECKPOINT)
    running = first.boot(zone.script_of("mine-1"))
    while not (first.folder / "dark").exists():
        assert running.poll() is None, first.lines("work/mine-1/log.txt")
        time.sleep(0.05)
    assert "attempt 1: ACTIVE" in run_command("tpu", "watch", "mine", "--once")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    zone.set_state("mine-1", State.SUSPENDED)

    assert "attempt 2: WAITING_FOR_RESOURCES; restarts 1/10" in run_command("tpu", "watch", "mine", "--once")
    assert zone.id_states() == {"mine-2": "WAITING_FOR_RESOURCES"}
    assert json.loads(run_command("tpu", "status", "mine", "--json"))["checkpoint_step"] == LAST_CHECKPOINT

    zone.set_state("mine-2", State.ACTIVE)
    second = training_host(tmp_path / "second", bucket)
    assert second.boot(zone.script_of("mine-2")).wait() == 0
    assert f"from step {LAST_CHECKPOINT}." in run_command("tpu", "logs", "mine")
    assert run_command("tpu", "list").splitlines()[1].split()[:4] == ["mine", "ACTIVE", "v5litepod-1", "spot"]
    status = json.loads(run_command("tpu", "status", "mine", "--json"))
    assert (status["state"], status["outcome"]["exit_status"]) == ("FINISHED", 0)
    assert status["checkpoint_step"] == status["metrics"]["step"] == STEPS

    assert "FINISHED" in run_command("tpu", "watch", "mine")
    assert zone.id_states() == {}
    assert "no job" in run_command("tpu", "list").lower()
    status = json.loads(run_command("tpu", "status", "mine", f"--model_dir={MODEL_DIR}", "--json"))
    states = [[seen["state"] for seen in attempt["states"]] for attempt in status["attempts"]]
    assert states == [
        ["SUBMITTING", "WAITING_FOR_RESOURCES", "ACTIVE", "LOST"],
        ["SUBMITTING", "WAITING_FOR_RESOURCES", "FINISHED"],
    ]
    rows = read_csv(str(bucket / "runs" / "mine" / "metrics.csv"))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
