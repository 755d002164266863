"""One experiment on any engine, mesh and number of processes, by the command line, changing layout settings alone."""

import json
import pathlib
import random
import shutil
import signal
import time

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.partitioning.processes import EXIT_LOST
from tests.support import commands, launch
from tests.support.addresses import free_addresses

STEPS = 12
# Sequences are the routing groups, so that groups do not depend on the mesh; rates are low, so that no choice of an
# expert is turned over by a rounding.
EXPERIMENT = (
    "NUM_EXPERTS=8",
    "GROUP_SIZE=None",
    "WARMUP_STEPS=1000000",
    f"TRAIN_STEPS={STEPS}",
    "CHECKPOINT_PERIOD=4",
    "EVAL_PERIOD=6",
    "LOG_PERIOD=1",
    "NUM_DATA_SHARDS=2",
)
RULES = 'LAYOUT_RULES="batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"'
SINGLE = ('ENGINE="single"',)
DATA_4 = ('ENGINE="dtensor"', 'MESH_SHAPE="data:4,model:1"', RULES, "NUM_LOGICAL_DEVICES=4")
DATA_2_MODEL_2 = ('ENGINE="dtensor"', 'MESH_SHAPE="data:2,model:2"', RULES, "NUM_LOGICAL_DEVICES=4")
TWO_PROCESSES = ('ENGINE="dtensor"', 'MESH_SHAPE="data:2,model:2"', RULES, "NUM_LOGICAL_DEVICES=2")
FOUR_PROCESSES = ('ENGINE="dtensor"', 'MESH_SHAPE="data:2,model:2"', RULES, "NUM_LOGICAL_DEVICES=1")
MIRRORED_2 = ('ENGINE="tpu"', 'MESH_SHAPE="data:2"', 'LAYOUT_RULES="batch:data"', "NUM_LOGICAL_DEVICES=2")
# For the slow tests.
DATA_8 = ('ENGINE="dtensor"', 'MESH_SHAPE="data:8,model:1"', RULES, "NUM_LOGICAL_DEVICES=8")
DATA_4_MODEL_2 = ('ENGINE="dtensor"', 'MESH_SHAPE="data:4,model:2"', RULES, "NUM_LOGICAL_DEVICES=8")
TWO_PROCESSES_OF_4 = ('ENGINE="dtensor"', 'MESH_SHAPE="data:4,model:2"', RULES, "NUM_LOGICAL_DEVICES=4")
MIRRORED_8 = ('ENGINE="tpu"', 'MESH_SHAPE="data:8"', 'LAYOUT_RULES="batch:data"', "NUM_LOGICAL_DEVICES=8")


def arguments(model_dir: pathlib.Path, *settings: str) -> list[str]:
    return launch.arguments(model_dir, *EXPERIMENT, *settings)


def train(model_dir: pathlib.Path, *settings: str) -> str:
    """Trains to the end in one process; returns what it printed."""
    finished = launch.run(*arguments(model_dir, *settings))
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def start_all(count: int, model_dir: pathlib.Path, *settings: str) -> list:
    """Starts the processes of a run."""
    addresses = free_addresses(count)
    return [
        launch.start(
            *arguments(model_dir, *settings),
            environment={"SWITCH_TF_PROCESSES": addresses, "SWITCH_TF_PROCESS": str(index)},
        )
        for index in range(count)
    ]


def start_two(model_dir: pathlib.Path, *settings: str) -> list:
    """Starts both processes of a run, by default on four devices."""
    return start_all(2, model_dir, *(settings or TWO_PROCESSES))


def train_two(model_dir: pathlib.Path, *settings: str) -> str:
    """Trains to the end in two processes; returns what the first one printed."""
    outputs = []
    for process in start_two(model_dir, *settings):
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
        outputs.append(out)
    assert outputs[1] == ""  # The first process speaks for all.
    return outputs[0]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> pathlib.Path:
    """The model directory of the experiment on one device."""
    model_dir = tmp_path_factory.mktemp("single")
    commands.run(*arguments(model_dir, *SINGLE))
    return model_dir


@pytest.fixture
def model_dir(single, tmp_path) -> pathlib.Path:
    """A fresh model directory with the same vocabulary."""
    shutil.copytree(single / "vocabulary", tmp_path / "run" / "vocabulary")
    return tmp_path / "run"


def assert_same_curve(model_dir: pathlib.Path, single: pathlib.Path, relative: float = 1e-4) -> None:
    """Every step's loss, and what its routers did; every evaluation."""
    ours, theirs = launch.losses(model_dir), launch.losses(single)
    assert ours.keys() == theirs.keys() == {str(step) for step in range(1, STEPS + 1)}
    for step, row in theirs.items():
        assert ours[step].keys() == row.keys()
        for column in ("loss", "neg_log_perplexity", "gradient_norm", "balance_loss", "encoder/layer_1/router_entropy"):
            assert float(ours[step][column]) == pytest.approx(float(row[column]), rel=relative), (step, column)
    held_out = [
        [list(map(float, line.split(","))) for line in (folder / "eval.csv").read_text().splitlines()[1:]]
        for folder in (model_dir, single)
    ]
    assert len(held_out[0]) == len(held_out[1]) == 2
    for ours_row, theirs_row in zip(*held_out):
        assert ours_row == pytest.approx(theirs_row, rel=1e-3, abs=1e-3)


@pytest.mark.slow
def test_the_stand_in_of_tpus_trains_as_one_device(single, model_dir):
    train(model_dir, *MIRRORED_2)
    assert_same_curve(model_dir, single)


@pytest.fixture(scope="module")
def killed(single, tmp_path_factory) -> pathlib.Path:
    """The model directory of the experiment, killed on a mesh of 2 x 2 devices; its last checkpoint is of step 4."""
    model_dir = tmp_path_factory.mktemp("killed") / "run"
    shutil.copytree(single / "vocabulary", model_dir / "vocabulary")
    process = launch.start(*arguments(model_dir, *DATA_2_MODEL_2))
    await_step(6, model_dir, process)
    process.kill()
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    return model_dir


@pytest.mark.slow
def test_killed_on_one_mesh_a_run_goes_on_on_another(single, killed, tmp_path, capsys):
    model_dir = shutil.copytree(killed, tmp_path / "run")
    assert "from step 4" in train(model_dir, *DATA_4)
    assert_same_curve(model_dir, single)
    # What four devices have learned, one device says too.
    for command, option in (("evaluate", "--json"), ("predict", "--held_out=2")):
        words = (command, f"--model_dir={model_dir}", option)
        finished = launch.run(*words)
        assert finished.returncode == 0, finished.stderr
        on_mesh, alone = finished.stdout, commands.call(capsys, *words, "--gin_file=gin/layouts/single.gin")
        if command == "predict":
            assert on_mesh == alone and on_mesh.count("truth:") == 2
        else:
            assert json.loads(on_mesh) == pytest.approx(json.loads(alone), rel=1e-4)


@pytest.mark.slow
def test_killed_on_a_mesh_a_run_goes_on_on_one_device(single, killed, tmp_path, capsys):
    model_dir = shutil.copytree(killed, tmp_path / "run")
    assert "from step 4" in commands.call(capsys, *arguments(model_dir, *SINGLE))
    assert_same_curve(model_dir, single)


@pytest.mark.slow
def test_killed_in_one_process_a_run_goes_on_in_two(single, killed, tmp_path):
    model_dir = shutil.copytree(killed, tmp_path / "run")
    assert "from step 4" in train_two(model_dir)
    assert_same_curve(model_dir, single)


def await_step(step: int, model_dir: pathlib.Path, *processes) -> None:
    """Waits until a step is in the log, or a process has ended."""
    log = model_dir / "metrics.csv"
    while all(process.poll() is None for process in processes) and not (
        log.exists() and f"\n{step}," in log.read_text()
    ):
        time.sleep(0.02)


@pytest.mark.slow
def test_one_of_two_processes_is_told_to_stop(single, model_dir, capsys):
    """The run ends in both processes, and one device resumes it."""
    processes = start_two(model_dir)
    await_step(1, model_dir, *processes)
    processes[1].terminate()
    for index, process in enumerate(processes):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM, err
        assert "Stopped by SIGTERM at step" in err
        assert index == 0 or out == ""  # The first process speaks for all.
    assert "from step " in commands.call(capsys, *arguments(model_dir, *SINGLE))
    assert_same_curve(model_dir, single)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(single, model_dir, victim, capsys):
    """The run ends in the other one too, and one device resumes it."""
    processes = start_two(model_dir)
    await_step(6, model_dir, *processes)
    processes[victim].kill()
    killed_at = time.monotonic()
    _, err = processes[1 - victim].communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert processes[1 - victim].returncode == EXIT_LOST
    lines = [line for line in err.splitlines() if line.startswith("switch-tf: error")]
    assert len(lines) == 1 and f"process {victim} of 2" in lines[0] and "Restart all processes" in lines[0]
    assert "from step 4" in commands.call(capsys, *arguments(model_dir, *SINGLE))
    assert_same_curve(model_dir, single)


@pytest.mark.slow
def test_one_of_four_processes_is_stopped_for_a_minute(single, model_dir):
    """As a machine that swaps, or a network that is cut off: the others wait for it."""
    victim, step = random.randrange(4), random.randrange(2, 9)
    processes = start_all(4, model_dir, *FOUR_PROCESSES)
    await_step(step, model_dir, *processes)
    processes[victim].send_signal(signal.SIGSTOP)
    time.sleep(60)
    processes[victim].send_signal(signal.SIGCONT)
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, f"process {victim} was stopped after step {step}: {err}"
    assert_same_curve(model_dir, single)


@pytest.mark.slow
def test_one_of_four_processes_is_killed_and_all_are_started_again(single, model_dir):
    victim, step = random.randrange(4), random.randrange(2, 9)
    processes = start_all(4, model_dir, *FOUR_PROCESSES)
    await_step(step, model_dir, *processes)
    processes[victim].kill()
    statuses = [process.communicate(timeout=60) and process.returncode for process in processes]
    expected = [-signal.SIGKILL if index == victim else EXIT_LOST for index in range(4)]
    assert statuses == expected, f"process {victim} was killed after step {step}"
    for process in start_all(4, model_dir, *FOUR_PROCESSES):
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    assert_same_curve(model_dir, single)


LARGE = (
    "ModelConfig.num_encoder_layers=4",
    "ModelConfig.num_decoder_layers=4",
    "TRAIN_STEPS=20",
    "CHECKPOINT_PERIOD=20",
    "EVAL_PERIOD=20",
)


def weights(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Weights and slots of the last checkpoint."""
    (state,) = (model_dir / "checkpoints").glob("step_*/state.index")
    reader = tf.train.load_checkpoint(str(state.with_suffix("")))
    names = [name for name in reader.get_variable_to_shape_map() if not name.startswith("data/")]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_a_larger_model_is_the_same_on_every_engine(single, tmp_path, capsys):
    """4 + 4 layers, 8 experts, dropout and jitter on, 20 steps: losses to 1e-4, weights to 1e-3."""
    settings = {
        "single": SINGLE,
        "single again": SINGLE,
        "data:8": DATA_8,
        "data:8 again": DATA_8,
        "data:4,model:2": DATA_4_MODEL_2,
        "data:2,model:4": (DATA_4_MODEL_2[0], 'MESH_SHAPE="data:2,model:4"', *DATA_4_MODEL_2[2:]),
        "mirrored 8": MIRRORED_8,
    }
    folders = {}
    for number, name in enumerate([*settings, "2 processes x 4"]):
        folders[name] = tmp_path / str(number)
        shutil.copytree(single / "vocabulary", folders[name] / "vocabulary")
        if name in settings:
            train(folders[name], *settings[name], *LARGE)
        else:
            train_two(folders[name], *TWO_PROCESSES_OF_4, *LARGE)
    losses = {name: launch.losses(folder) for name, folder in folders.items()}
    tensors = {name: weights(folder) for name, folder in folders.items()}
    for name in folders:
        reference = "data:8" if name == "data:8 again" else "single"
        drift = max(
            abs(float(row["loss"]) / float(losses[reference][step]["loss"]) - 1) for step, row in losses[name].items()
        )
        distance = max(
            np.abs(value - tensors[reference][key]).max() / max(np.abs(tensors[reference][key]).max(), 1e-30)
            for key, value in tensors[name].items()
        )
        with capsys.disabled():
            print(f"\n{name} against {reference}: losses {drift:.1e}, weights and slots {distance:.1e}", end="")
        assert len(losses[name]) == 20
        # On one mesh a run repeats itself bit by bit.
        assert (drift == distance == 0) if name.endswith("again") else (drift < 1e-4 and distance < 1e-3), name
