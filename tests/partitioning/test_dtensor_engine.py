"""The dtensor engine against one device: equal losses, weights and results; its collectives and memory."""

import json
import os
import pathlib
import subprocess
import sys

import gin
import numpy as np
import pytest

from switch_tf.partitioning.layout import Layout
from switch_tf.planning.costs import layout_description
from tests.programs import mesh_program
from tests.programs.mesh_program import CONFIG, rules_for
from tests.support.addresses import free_addresses

ROOT = pathlib.Path(__file__).parents[2]
SINGLE = {"engine": "single"}


def dtensor(mesh: str, **settings) -> dict:
    devices = Layout.parse(mesh, "").num_devices
    return {"engine": "dtensor", "mesh": mesh, "logical_devices": devices, **settings}


def start(output: pathlib.Path, settings: dict, **environment: str) -> subprocess.Popen:
    """Starts `mesh_program`."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.programs.mesh_program", str(output), json.dumps(settings)],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(output: pathlib.Path, settings: dict, **environment: str) -> dict[str, np.ndarray]:
    """Waits for `mesh_program` and reads its results."""
    process = start(output, settings, **environment)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 0, out[-3000:]
    return dict(np.load(output))


def dumping(folder: pathlib.Path) -> dict[str, str]:
    """The environment in which DTensor dumps the program after each of its passes."""
    return {
        "TF_DUMP_GRAPH_PREFIX": str(folder),
        "TF_CPP_VMODULE": "dtensor_mlir_passes=1",
        "TF_CPP_MIN_LOG_LEVEL": "0",
    }


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "by_matrix"), [("dtensor", False), ("dtensor", True), ("tpu", False)])
def test_an_update_that_is_not_finite_is_not_made(tmp_path, engine, by_matrix):
    """Weights and slots stay as they were, bit for bit; the step counts on."""
    mesh = {"dtensor": "data:2,model:2", "tpu": "data:4"}[engine]
    rules = "batch:data" if engine == "tpu" else rules_for(mesh)
    settings = {"engine": engine, "rules": rules, "steps": 1, "everything": False, "overflow": True}
    settings["skip_by_matrix"] = by_matrix
    result = run(tmp_path / "result.npz", dtensor(mesh) | settings)
    assert result["skipped"] == 1 and not np.isfinite(result["overflowing_loss"])
    assert np.isfinite(result["losses"]).all() and result["step"] == 2
    before = variables(result)
    assert any("/slots/" in name and value.any() for name, value in before.items())
    for name, value in before.items():
        assert value.tobytes() == result[name.replace("variable:", "after:")].tobytes(), name


MESHES = [
    "data:2,model:2",
    *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("data:4,model:2", "data:8", "data:2,model:4")),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Runs each setting once: results(settings)."""
    folder, known = tmp_path_factory.mktemp("meshes"), {}

    def result(settings: dict, **environment: str) -> dict[str, np.ndarray]:
        key = json.dumps([settings, environment], sort_keys=True)
        output = folder / f"{len(known)}.npz"
        if key not in known and settings["engine"] == "single":
            mesh_program.main(str(output), settings)  # One device needs no process of its own.
            known[key] = dict(np.load(output))
        elif key not in known:
            dumps = folder / f"dumps_{len(known)}"
            dumps.mkdir()
            known[key] = run(output, settings, **dumping(dumps), **environment) | {"dumps": dumps}
        return known[key]

    return result


def variables(result: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value for name, value in result.items() if name.startswith("variable:")}


def assert_same(result: dict[str, np.ndarray], expected: dict[str, np.ndarray], rtol: float = 1e-5) -> None:
    """Losses, gradient norms, statistics of layers, weights, slots, and (if computed) evaluation and decoded tokens."""
    for name in ("losses", "gradient_norms", "expert_load", "layers"):
        np.testing.assert_allclose(result[name], expected[name], rtol=rtol)
    if "evaluation" in expected:
        np.testing.assert_allclose(result["evaluation"], expected["evaluation"], rtol=rtol)
        np.testing.assert_array_equal(result["decoded"], expected["decoded"])
    for name, value in variables(expected).items():
        scale = np.abs(value).max()
        np.testing.assert_allclose(result[name] / scale, value / scale, atol=10 * rtol, err_msg=name)


@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_trains_evaluates_and_decodes_as_one_device(results, mesh):
    assert_same(results(dtensor(mesh)), results(SINGLE))


VARIANTS = {
    "top_n": {"router": "top_n", "capacity_factor": 2.0},
    "no_token_left_behind": {"router": "no_token_left_behind"},
    "expert_choice": {"router": "expert_choice", "decoder_router": "switch"},
    "priority_by_gate": {"router_settings": {"priority": "gate"}, "decoder_router": "switch"},
    "balance_bias": {"balance_bias_rate": 0.01},
    "sampling": {"router_policy": "sample"},
    "einsum": {"dispatcher": "einsum"},
    "dropless": {"eval_capacity_factor": None},
    "untied_geglu": {"tied_logits": False, "activation": "gated_gelu"},
    "switch_attention": {"switch_attention": "linear"},
    "dense": {"num_experts": 0},
    "embed": {},
    "kv": {},
    "router_experts": {},
    "sublayers_recomputed": {"rematerialization": "sublayers"},
    "blocks_recomputed": {"rematerialization": "blocks"},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_on_a_mesh(results, variant):
    rules = {
        "dense": "heads:model,mlp:model,vocab:model",
        "embed": "experts:data,embed:model",
        "kv": "kv:model",
        "router_experts": "experts:data,router_experts:data",
    }
    rules = {"rules": f"batch:data,{rules[variant]}"} if variant in rules else {}
    settings = {"steps": 2, "config": VARIANTS[variant]}
    assert_same(results(dtensor("data:4,model:2", **settings, **rules)), results({**SINGLE, **settings}))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["none", "blocks"])
def test_microbatches_on_a_mesh(results, kind):
    """Against microbatches on one device that keep all activations."""
    settings = {"microbatches": 2, "steps": 2, "everything": False}
    found = results(dtensor("data:2", **settings, config={"rematerialization": kind}))
    assert_same(found, results({**SINGLE, **settings}))
    # A block that is recomputed runs its all-to-alls once more.
    counts = json.loads(str(found["collectives"]))
    assert counts["CollectiveAllToAllV2"] == {"none": 4, "blocks": 6}[kind] * 2


@pytest.mark.parametrize("mesh", MESHES)
def test_each_sparse_layer_has_four_all_to_alls(results, mesh):
    counts = json.loads(str(results(dtensor(mesh))["collectives"]))
    assert counts["CollectiveAllToAllV2"] == 4 * 2  # One sparse layer in each of the two stacks.


@pytest.mark.parametrize("mesh", MESHES)
def test_a_device_holds_its_share_of_experts_and_slots_and_what_describe_says(results, mesh):
    result, layout = results(dtensor(mesh)), Layout.parse(mesh, rules_for(mesh))
    held = {name.removeprefix("bytes:"): int(size) for name, size in result.items() if name.startswith("bytes:")}
    whole = {name.removeprefix("variable:"): value.nbytes for name, value in variables(result).items()}
    gin.bind_parameter("Adafactor.min_size_to_factor", 8)  # As in `mesh_program`.
    said = layout_description(CONFIG, layout)["bytes_per_device"]
    assert sum(size for name, size in held.items() if "/slots/" not in name) == said["weights"]
    experts = [name for name in whole if "/experts/" in name]
    assert len(experts) == 2 * 2 * (1 + 2)  # In two layers wi and wo, each with v_row and v_column.
    weights = [name for name in experts if "/slots/" not in name]
    assert sum(held[name] for name in weights) == said["expert_weights"]
    assert sum(size for name, size in held.items() if "/slots/" in name) == said["slots"]
    assert sum(held[name] for name in set(experts) - set(weights)) == said["expert_slots"]
    for name in weights:
        assert held[name] == whole[name] / layout.num_devices
    for name in set(experts) - set(weights):
        # Only one of two factored slots has the hidden units, which are sharded over `model`.
        has_hidden_units = name.endswith("wi/slots/v_column") or name.endswith("wo/slots/v_column")
        assert held[name] == whole[name] / layout.mesh["data"] / (
            layout.mesh.get("model", 1) if has_hidden_units else 1
        )


@pytest.mark.parametrize("mesh", MESHES)
def test_nothing_is_gathered_in_a_training_step(results, mesh):
    """On CPUs all-gathers run as all-reduces, so DTensor's dump is read; the step is its largest function."""
    dumps = list(results(dtensor(mesh))["dumps"].glob("*after_DTensorSPMDExpansion*.mlir"))
    step = max(dumps, key=lambda path: path.stat().st_size).read_text()
    assert step.count('"tf.DTensorAllToAll"') == 8
    assert step.count('"tf.DTensorAllGather"') == 0


@pytest.mark.slow
def test_all_to_alls_move_what_gathers_would(results):
    """DTensor's all-to-all is wrong for some layouts: a step has equal results without it."""
    settings = dtensor("data:4,model:2")
    without = results(settings, DTENSOR_USE_ALL_TO_ALL_RELAYOUT="0")
    assert "CollectiveAllToAllV2" not in json.loads(str(without["collectives"]))
    assert_same(results(settings), without, rtol=1e-6)


@pytest.mark.slow
def test_two_processes_train_as_one(results, tmp_path):
    settings = dtensor("data:4,model:2") | {"logical_devices": 4}
    addresses = free_addresses(2)
    members = [
        start(tmp_path / f"{index}.npz", settings, SWITCH_TF_PROCESSES=addresses, SWITCH_TF_PROCESS=str(index))
        for index in range(2)
    ]
    for member in members:
        out, _ = member.communicate(timeout=600)
        assert member.returncode == 0, out[-3000:]
    first, second = (dict(np.load(tmp_path / f"{index}.npz")) for index in range(2))
    # Each process has the shards that it would write; together they hold every element once.
    for name, value in variables(first).items():
        mine, other = np.isnan(value), np.isnan(second[name])
        assert (mine != other).all(), name
        first[name] = np.where(mine, second[name], value)
    assert_same(first, results(SINGLE))
    np.testing.assert_array_equal(first["losses"], second["losses"])


@pytest.mark.parametrize(
    ("ranks", "pairs"),
    # Pairs of different dimensions: 2 + 6 + 12, and 20.
    [(("2", "3", "4"), 20), pytest.param(("5",), 20, marks=pytest.mark.slow)],
)
def test_every_move_of_a_mesh_dimension_is_right_also_in_the_gradient(ranks, pairs):
    command = [sys.executable, "-m", "tests.programs.mesh_relayouts", *ranks]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout == f"{pairs}\n"


def test_a_mesh_that_is_not_there_is_refused_in_a_sentence(tmp_path):
    process = start(tmp_path / "out.npz", dtensor("data:8") | {"logical_devices": 4})
    out, _ = process.communicate(timeout=100)
    assert process.returncode != 0
    assert "has 8 devices and there are 4 CPUs in 1 process" in out and "NUM_LOGICAL_DEVICES = 8" in out
