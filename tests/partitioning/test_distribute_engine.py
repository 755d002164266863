"""The `tpu` engine on replicas: losses, weights and predictions of one device; settings that are errors."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.partitioning import distribute_engine
from switch_tf.partitioning.axes import ShardIndex
from switch_tf.partitioning.distribute_engine import DistributeEngine
from switch_tf.partitioning.engines import make_engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import PROCESS, PROCESSES
from tests.support.addresses import free_addresses

ROOT = pathlib.Path(__file__).parents[2]


def run_replicas(files: list[str], *arguments: str) -> list[dict[str, np.ndarray]]:
    """Runs `tests.programs.replicas`, one process for each file."""
    addresses = free_addresses(len(files)) if len(files) > 1 else ""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.programs.replicas", file, *arguments],
            cwd=ROOT,
            env={**os.environ, PROCESSES: addresses, PROCESS: str(index)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, file in enumerate(files)
    ]
    errors = [process.communicate(timeout=600)[1] for process in processes]
    assert not any(process.returncode for process in processes), errors
    return [dict(np.load(file)) for file in files]


def assert_replicas_equal_one_device(found: dict[str, np.ndarray]) -> None:
    names = [name.removeprefix("single/") for name in found if name.startswith("single/")]
    assert {"0/loss", "2/loss", "0/encoder/layer_0/expert_load", "evaluation/accuracy", "weight/0"} < set(names)
    for name in names:
        np.testing.assert_allclose(found[f"mesh/{name}"], found[f"single/{name}"], rtol=1e-5, atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(found["mesh/decoded"], found["single/decoded"])
    assert len(np.unique(found["mesh/decoded"])) > 10


@pytest.mark.slow
def test_replicas_give_what_one_device_gives(tmp_path):
    """Noise of all kinds, several groups for each replica, padding: losses, metrics, weights, evaluation, decoding."""
    (found,) = run_replicas([str(tmp_path / "found.npz")], "data:2", "1")
    assert_replicas_equal_one_device(found)


@pytest.mark.slow
def test_replicas_accumulate_the_gradients_of_microbatches(tmp_path):
    (found,) = run_replicas([str(tmp_path / "found.npz")], "data:2", "2")
    assert_replicas_equal_one_device(found)


@pytest.mark.slow
@pytest.mark.parametrize("rematerialization", ["sublayers", "blocks"])
def test_replicas_recompute_activations(tmp_path, rematerialization):
    setting = f"rematerialization={rematerialization}"
    (found,) = run_replicas([str(tmp_path / "found.npz")], "data:2", "2", setting)
    assert_replicas_equal_one_device(found)


@pytest.mark.slow
def test_processes_give_what_one_device_gives(tmp_path):
    """Two workers with different rows of the batch get equal results."""
    first, second = run_replicas([str(tmp_path / f"found_{index}.npz") for index in range(2)], "data:2", "1")
    assert_replicas_equal_one_device(first)
    # The second process does not train on one device.
    assert_replicas_equal_one_device(second | {name: first[name] for name in first.keys() - second.keys()})


@pytest.mark.parametrize(
    ("mesh_shape", "layout_rules", "message"),
    [
        ("data:8", "batch:data,experts:data", "can shard only the batch, and LAYOUT_RULES shard experts.*'dtensor'"),
        ("data:4,model:2", "batch:data,heads:model,mlp:model", "LAYOUT_RULES shard heads, mlp"),
        ("data:4,model:2", "batch:data", "all 8 devices.*shard it over 4"),
        ("data:999", "batch:data", "MESH_SHAPE has 999 device.*NUM_LOGICAL_DEVICES"),
    ],
)
def test_what_cannot_be_sharded_is_refused(mesh_shape, layout_rules, message):
    with pytest.raises(SettingError, match=message):
        make_engine("tpu", Layout.parse(mesh_shape, layout_rules))


def test_a_processor_is_split_before_it_is_used():
    tf.constant(0)
    with pytest.raises(SettingError, match="NUM_LOGICAL_DEVICES = 99 comes too late"):
        make_engine("tpu", Layout.parse("data:99", "batch:data"), 99)


@pytest.fixture(scope="module")
def engine() -> DistributeEngine:
    return make_engine("tpu", Layout.parse("data:1", "batch:data"))


def test_a_state_is_read_and_written_whole(engine):
    with engine.scope():
        variable = tf.Variable(tf.zeros([2, 3]))
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    engine.load(variable, lambda block: values if block == ShardIndex((0, 0), (2, 3)) else None)
    ((block, array),) = engine.shards(variable)
    assert block == ShardIndex((0, 0), (2, 3))
    np.testing.assert_array_equal(array, values)


def test_each_replica_assigns_for_itself(engine):
    with engine.scope():
        variable = tf.Variable(0)
        increment = engine.compile(lambda features: variable.assign_add(tf.reduce_sum(features["x"])))
        increment(engine.feed({"x": np.array([1, 2], np.int32)}))
    assert variable.aggregation == tf.VariableAggregation.ONLY_FIRST_REPLICA
    assert int(variable.numpy()) == 3


@pytest.mark.parametrize("layout_rules", ["batch:data", "batch:data,experts:data"])
def test_a_tpu_is_one_partitioned_replica_where_experts_are_split(monkeypatch, layout_rules):
    """The strategy's arguments for eight cores, without a TPU."""
    cores = [[x, y, 0, core] for x in (0, 1) for y in (0, 1) for core in (0, 1)]
    topology = tf.tpu.experimental.Topology(mesh_shape=[2, 2, 1, 2], device_coordinates=np.array([cores]))
    made = {}
    monkeypatch.setattr(distribute_engine, "_find_tpu", lambda: ("resolver", topology))
    monkeypatch.setattr(tf.distribute, "TPUStrategy", lambda resolver, **settings: made.update(settings))
    engine = make_engine("tpu", Layout.parse("data:8", layout_rules))
    if "experts" not in layout_rules:
        assert made == {} and engine.partitioned is None
        return
    assignment = made["experimental_device_assignment"]
    assert (assignment.num_replicas, assignment.num_cores_per_replica) == (1, 8)
    assert made["experimental_spmd_xla_partitioning"]
    assert engine.partitioned.is_partitioned and engine.partitioned.num_shards("experts") == 8
