"""A student beside its teacher on any engine, mesh and number of processes, and killed at any step: the same losses."""

import pathlib
import random
import shutil
import signal
import time

import pytest

from tests.support import launch
from tests.support.addresses import free_addresses

STEPS = 8
# As in test_meshes.py: sequences are the routing groups, and rates are low.
EXPERIMENT = (
    "NUM_EXPERTS=8",
    "GROUP_SIZE=None",
    "WARMUP_STEPS=1000000",
    f"TRAIN_STEPS={STEPS}",
    "CHECKPOINT_PERIOD=4",
    "EVAL_PERIOD=4",
    "LOG_PERIOD=1",
    "NUM_DATA_SHARDS=2",
)
RULES = 'LAYOUT_RULES="batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"'
DATA_4_MODEL_2 = ('ENGINE="dtensor"', 'MESH_SHAPE="data:4,model:2"', RULES, "NUM_LOGICAL_DEVICES=8")
TWO_PROCESSES = ('ENGINE="dtensor"', 'MESH_SHAPE="data:4,model:2"', RULES, "NUM_LOGICAL_DEVICES=4")
MIRRORED_8 = ('ENGINE="tpu"', 'MESH_SHAPE="data:8"', 'LAYOUT_RULES="batch:data"', "NUM_LOGICAL_DEVICES=8")
COLUMNS = ("loss", "neg_log_perplexity", "gradient_norm", "soft_cross_entropy", "teacher_neg_log_perplexity")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> pathlib.Path:
    """A sparse teacher."""
    model_dir = tmp_path_factory.mktemp("teacher")
    finished = launch.run(*launch.arguments(model_dir, *EXPERIMENT, "WARMUP_STEPS=1000"))
    assert finished.returncode == 0, finished.stderr
    return model_dir


def arguments(model_dir: pathlib.Path, teacher: pathlib.Path, *settings: str) -> list[str]:
    settings = (f'TEACHER="{teacher}"', "TEACHER_TEMPERATURE=2.0", *EXPERIMENT, "NUM_EXPERTS=0", *settings)
    return [*launch.arguments(model_dir), "--gin_file=gin/runs/distill.gin", *(f"--gin.{s}" for s in settings)]


def train(model_dir: pathlib.Path, teacher: pathlib.Path, *settings: str) -> pathlib.Path:
    finished = launch.run(*arguments(model_dir, teacher, *settings))
    assert finished.returncode == 0, finished.stderr
    return model_dir


@pytest.fixture(scope="module")
def single(teacher, tmp_path_factory) -> pathlib.Path:
    """The student on one device."""
    return train(tmp_path_factory.mktemp("single"), teacher)


def assert_same_curve(model_dir: pathlib.Path, single: pathlib.Path, relative: float = 1e-4) -> None:
    ours, theirs = launch.losses(model_dir), launch.losses(single)
    assert ours.keys() == theirs.keys() == {str(step) for step in range(1, STEPS + 1)}
    for step, row in theirs.items():
        for column in COLUMNS:
            assert float(ours[step][column]) == pytest.approx(float(row[column]), rel=relative), (step, column)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [DATA_4_MODEL_2, MIRRORED_8, ("NUM_MICROBATCHES=2",)], ids=["dtensor", "mirrored", "microbatches"]
)
def test_engines_give_the_losses_of_one_device(single, teacher, tmp_path, settings):
    train(tmp_path, teacher, *settings)
    if "NUM_MICROBATCHES=2" in settings:  # Noise of dropout is drawn for each microbatch.
        first, theirs = launch.losses(tmp_path)["1"], launch.losses(single)["1"]
        for column in ("teacher_neg_log_perplexity", "teacher_entropy"):
            assert float(first[column]) == pytest.approx(float(theirs[column]), rel=1e-5)
        return
    assert_same_curve(tmp_path, single)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(single, teacher, tmp_path):
    addresses = free_addresses(2)
    processes = [
        launch.start(
            *arguments(tmp_path, teacher, *TWO_PROCESSES),
            environment={"SWITCH_TF_PROCESSES": addresses, "SWITCH_TF_PROCESS": str(index)},
        )
        for index in range(2)
    ]
    for process in processes:
        _, err = process.communicate(timeout=600)
        assert process.returncode == 0, err
    assert_same_curve(tmp_path, single)


@pytest.mark.slow
def test_a_teacher_in_bfloat16_on_a_mesh(single, teacher, tmp_path):
    """Weights of three digits: the soft targets move in theirs, on a mesh as on one device."""
    on_mesh = train(tmp_path / "mesh", teacher, *DATA_4_MODEL_2, 'TEACHER_DTYPE="bfloat16"')
    on_one = train(tmp_path / "one", teacher, 'TEACHER_DTYPE="bfloat16"')
    assert_same_curve(on_mesh, on_one)
    assert_same_curve(on_one, single, relative=1e-2)
    assert launch.losses(on_one)["1"]["loss"] != launch.losses(single)["1"]["loss"]


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed_the_losses_are_the_same_bit_for_bit(single, teacher, tmp_path):
    step = random.randrange(1, STEPS)
    process = launch.start(*arguments(tmp_path, teacher))
    log = tmp_path / "metrics.csv"
    while process.poll() is None and not (log.exists() and f"\n{step}," in log.read_text()):
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, f"was to be killed at step {step}"
    train(tmp_path, teacher)
    assert launch.losses(tmp_path) == launch.losses(single)
    assert (tmp_path / "eval.csv").read_text() == (single / "eval.csv").read_text()


@pytest.mark.slow
def test_a_cache_is_written_and_read_on_a_mesh_as_on_one_device(teacher, tmp_path):
    caches = {}
    for name, settings in (("one", ()), ("mesh", DATA_4_MODEL_2)):
        caches[name] = tmp_path / f"cache_{name}"
        flags = [f"--model_dir={teacher}", "--probabilities=4", f"--output={caches[name]}"]
        finished = launch.run("predict", *flags, *(f"--gin.{setting}" for setting in settings))
        assert finished.returncode == 0, finished.stderr
    cached = ("TEACHER=None", "INITIALIZE_FROM_TEACHER=False", "TEACHER_TEMPERATURE=1.0")
    on_one = train(tmp_path / "one", teacher, *cached, f'TEACHER_CACHE="{caches["one"]}"')
    on_mesh = train(tmp_path / "mesh", teacher, *cached, f'TEACHER_CACHE="{caches["mesh"]}"', *DATA_4_MODEL_2)
    assert_same_curve(on_mesh, on_one)
    shutil.rmtree(caches["one"])
