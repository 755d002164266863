"""A job from its submission to its end: a zone and a bucket on loopback, and machines that really train."""

import json
import os
import pathlib
import shlex
import signal
import sys
import time

import pytest

from switch_tf.cli import main as command_line
from switch_tf.runs.recorder import read_csv
from tests.support.fake_cloud import State
from tests.support.fake_machine import Machine
from tests.tpu.jobs.conftest import MODEL_DIR

ROOT = pathlib.Path(__file__).parents[3]
STEPS, LAST_CHECKPOINT = 20, 10
PLACE = ["--project=the-project", "--zone=us-central1-a"]


@pytest.fixture
def give(zone, bucket, capsys):
    """Gives a command; returns what it printed."""

    def run(*words: str) -> str:
        command_line.main([*words, *PLACE, f"--endpoint={zone.endpoint}"])
        return capsys.readouterr().out

    return run


# Trains, until the power goes: right after a checkpoint is complete.
POWER_CUT = """
import os, signal, sys
from switch_tf.cli import main
from switch_tf.checkpoints.folder import CheckpointFolder

complete = CheckpointFolder.complete

def complete_and_die(self, step, manifest):
    complete(self, step, manifest)
    if step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)

CheckpointFolder.complete = complete_and_die
main.main(sys.argv[1:])
"""


def training_machine(folder: pathlib.Path, bucket: pathlib.Path, dies_after: int | None = None) -> Machine:
    """A machine that trains for real, with the bucket as a folder; with `dies_after`, up to that checkpoint."""
    machine = Machine(folder, bucket.parent)
    model_dir = str(bucket / MODEL_DIR.removeprefix("gs://the-bucket/"))
    program = shlex.join(["-c", POWER_CUT.format(step=dies_after)])
    machine.train_by(
        f"cd {ROOT}",
        f"export PYTHONPATH={ROOT}:$PYTHONPATH",
        "shift 2  # -m switch_tf.cli.main",
        f'{sys.executable} {program} "$@" --gin.MODEL_DIR=\'"{model_dir}"\'',
        "status=$?",
        f"if [ $status = 137 ]; then touch {folder}/dark; sleep 600; fi",
        "exit $status",
    )
    return machine


def test_a_job_is_preempted_queued_again_and_finished(give, zone, bucket, tmp_path):
    give(
        *("tpu", "submit", "--name=mine", "--accelerator_type=v5litepod-1", f"--model_dir={MODEL_DIR}"),
        *("--provisioning=spot", "--gin_file=tests/support/tiny.gin", f"--gin.TRAIN_STEPS={STEPS}"),
        *("--gin.CHECKPOINT_PERIOD=5", "--gin.EVAL_PERIOD=1000", "--gin.NUM_EVAL_BATCHES=1"),
        *("--gin.NUM_EXPERTS=0", "--gin.ModelConfig.num_encoder_layers=1", "--gin.ModelConfig.num_decoder_layers=1"),
    )
    zone.set_state("mine-1", State.ACTIVE)
    first = training_machine(tmp_path / "first", bucket, dies_after=LAST_CHECKPOINT)
    running = first.boot(zone.script_of("mine-1"))
    while not (first.folder / "dark").exists():
        assert running.poll() is None, first.lines("work/mine-1/log.txt")
        time.sleep(0.05)
    assert "attempt 1: ACTIVE" in give("tpu", "watch", "mine", "--once")
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    zone.set_state("mine-1", State.SUSPENDED)

    assert "attempt 2: WAITING_FOR_RESOURCES; restarts 1/10" in give("tpu", "watch", "mine", "--once")
    assert zone.id_states() == {"mine-2": "WAITING_FOR_RESOURCES"}
    assert json.loads(give("tpu", "status", "mine", "--json"))["checkpoint_step"] == LAST_CHECKPOINT

    zone.set_state("mine-2", State.ACTIVE)
    second = training_machine(tmp_path / "second", bucket)
    assert second.boot(zone.script_of("mine-2")).wait() == 0
    assert f"from step {LAST_CHECKPOINT}." in give("tpu", "logs", "mine")
    assert give("tpu", "list").splitlines()[1].split()[:4] == ["mine", "ACTIVE", "v5litepod-1", "spot"]
    status = json.loads(give("tpu", "status", "mine", "--json"))
    assert (status["state"], status["outcome"]["exit_status"]) == ("FINISHED", 0)
    assert status["checkpoint_step"] == status["metrics"]["step"] == STEPS

    assert "FINISHED" in give("tpu", "watch", "mine")
    assert zone.id_states() == {}
    assert "no job" in give("tpu", "list").lower()
    status = json.loads(give("tpu", "status", "mine", f"--model_dir={MODEL_DIR}", "--json"))
    states = [[seen["state"] for seen in attempt["states"]] for attempt in status["attempts"]]
    assert states == [
        ["SUBMITTING", "WAITING_FOR_RESOURCES", "ACTIVE", "LOST"],
        ["SUBMITTING", "WAITING_FOR_RESOURCES", "FINISHED"],
    ]
    rows = read_csv(str(bucket / "runs" / "mine" / "metrics.csv"))
    assert [int(row["step"]) for row in rows] == list(range(1, STEPS + 1))
