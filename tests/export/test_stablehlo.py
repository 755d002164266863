"""Exported programs, run by JAX without TensorFlow, against the same steps in TensorFlow."""

import json
import pathlib
import runpy
import shutil
import subprocess
import sys
from typing import NamedTuple

import gin
import numpy as np
import pytest
import tensorflow as tf

from switch_tf.cli import main as command_line
from switch_tf.decoding.decoder import decode
from switch_tf.decoding.settings import Decoding
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import Run, load_run
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.step import make_evaluation_step, make_train_step
from tests.support import launch
from tests.support.commands import fails
from tests.support.features import random_features

pytest.importorskip("jax", reason="the [aot] extra is not installed")
ROOT = pathlib.Path(__file__).parents[2]
LOADER = ROOT / "docs" / "load_stablehlo.py"
BATCH, INPUTS, TARGETS = 4, 32, 10
BATCHES = [random_features(BATCH, INPUTS, TARGETS, 400, seed=seed) for seed in range(3)]
BINDINGS = [f"BATCH_SIZE = {BATCH}", "DECODER = 'beam'", "NUM_BEAMS = 2"]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> str:
    """The tiny run, dropout and jitter on, after one step."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    gin.clear_config()
    command_line.main([*launch.arguments(folder), "--gin.TRAIN_STEPS=1"])
    return str(folder)


@pytest.fixture(scope="module")
def exported(model_dir, tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("exported") / "programs"
    gin.clear_config()
    flags = [f"--gin.{binding.replace(' = ', '=')}" for binding in BINDINGS]
    command_line.main(["export", f"--model_dir={model_dir}", "--format=stablehlo", f"--output={folder}", *flags])
    return folder


@pytest.fixture(scope="module")
def in_jax(exported, tmp_path_factory) -> dict[str, np.ndarray]:
    """What the programs return, in a process without TensorFlow."""
    folder = tmp_path_factory.mktemp("arrays")
    arrays = {f"{index}/{name}": array for index, batch in enumerate(BATCHES) for name, array in batch.items()}
    np.savez(folder / "inputs.npz", **arrays)
    program = ROOT / "tests" / "programs" / "run_stablehlo.py"
    command = [sys.executable, "-I", program, LOADER, exported, folder / "inputs.npz", folder / "outputs.npz"]
    subprocess.run(list(map(str, command)), check=True, env={"JAX_PLATFORMS": "cpu"})
    with np.load(folder / "outputs.npz") as found:
        return dict(found)


class Reference(NamedTuple):
    """The same checkpoint in TensorFlow, and how it is trained."""

    run: Run
    optimizer: Adafactor
    objective: Objective


@pytest.fixture(scope="module")
def reference(model_dir) -> Reference:
    gin.clear_config()
    gin_config.load(["tests/support/tiny.gin"], [f"MODEL_DIR = '{model_dir}'", *BINDINGS])
    optimizer = gin_config.parameter("train.optimizer")()
    return Reference(load_run(Experiment()), optimizer, gin_config.parameter("train.objective"))


def on_tensors(features: dict[str, np.ndarray]) -> dict[str, tf.Tensor]:
    return {name: tf.constant(value) for name, value in features.items()}


def test_evaluation_and_logits_are_those_of_tensorflow(reference, in_jax):
    run = reference.run
    features, weights = on_tensors(BATCHES[0]), [weight.value for weight in run.model.trainable_variables]
    sums = tf.function(make_evaluation_step(run.model), autograph=False)(weights, features)
    for name, value in sums.tokens._asdict().items():
        np.testing.assert_allclose(in_jax[f"evaluate/tokens/{name}"], value, rtol=1e-5)
    for layer, metrics in sums.routing.items():
        np.testing.assert_allclose(in_jax[f"evaluate/routing/{layer}/expert_load"], metrics.expert_load, atol=1e-6)
    np.testing.assert_allclose(in_jax["logits"], run.model(features, dropless=True), atol=1e-5)


def test_decoded_tokens_are_those_of_tensorflow(reference, in_jax):
    run = reference.run
    inputs = {"encoder_input_tokens": tf.constant(BATCHES[0]["encoder_input_tokens"])}
    settings = Decoding(decoder="beam", num_beams=2)
    expected = tf.function(lambda: decode(run.model, inputs, settings, TARGETS), autograph=False)()
    np.testing.assert_array_equal(in_jax["decode/tokens"], expected.tokens)
    np.testing.assert_allclose(in_jax["decode/scores"], expected.scores, rtol=1e-5)


def test_training_goes_on_as_in_tensorflow(reference, exported, in_jax):
    run, optimizer, objective = reference
    step = tf.function(make_train_step(run.model, optimizer, objective), autograph=False)
    names = list(run.weights())
    weights = [value.value() for value in run.weights().values()]
    with np.load(exported / "slots.npz") as stored:
        slots = [
            {
                slot: tf.constant(stored[f"{name}/{slot}"])
                for slot in optimizer.slot_shapes(tuple(weight.shape), weight.axes)
            }
            for name, weight in zip(names, run.model.trainable_variables)
        ]
    assert any(np.any(array) for of_weight in slots for array in of_weight.values())
    for index, batch in enumerate(BATCHES, start=1):
        weights, slots, metrics = step(weights, slots, tf.constant(index), on_tensors(batch), tf.constant(7))
        np.testing.assert_allclose(in_jax[f"train/{index}/metrics/loss"], metrics.loss, rtol=1e-5)
        np.testing.assert_allclose(in_jax[f"train/{index}/metrics/gradient_norm"], metrics.gradient_norm, rtol=1e-4)
        for name, weight in zip(names, weights):
            np.testing.assert_allclose(in_jax[f"train/{index}/weights/{name}"], weight, atol=1e-5, err_msg=name)


def test_the_artifacts_say_their_version_and_arguments(exported):
    manifest = json.loads((exported / "manifest.json").read_text())
    assert manifest["format_version"] == 1 and manifest["step"] == 1
    for name, program in manifest["programs"].items():
        # The header of MLIR bytecode: magic number, then the producer.
        artifact = (exported / f"{name}.stablehlo").read_bytes()
        assert (
            artifact.startswith(b"ML\xefR") and f"StableHLO_v{program['stablehlo_version']}".encode() in artifact[:64]
        )
    assert [entry["name"] for entry in manifest["programs"]["train"]["arguments"]][-1] == "seed"
    (logits,) = manifest["programs"]["logits"]["results"]
    assert logits["shape"] == [BATCH, TARGETS, 512] and logits["dtype"] == "float32"


@pytest.mark.parametrize(("convention", "remedy"), [(1, "export the model again"), (1000, "install a newer JAX")])
def test_programs_of_another_jax_are_refused(exported, tmp_path, convention, remedy):
    shutil.copytree(exported, tmp_path / "programs")
    manifest = json.loads((exported / "manifest.json").read_text())
    manifest["programs"]["evaluate"]["jax_calling_convention"] = convention
    (tmp_path / "programs" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"evaluate.jax has calling convention {convention}, .*{remedy}"):
        runpy.run_path(str(LOADER))["ExportedModel"](tmp_path / "programs")


def test_what_cannot_be_exported_is_said(model_dir, exported, capsys):
    def refusal(*flags: str) -> str:
        return fails(capsys, "export", f"--model_dir={model_dir}", "--format=stablehlo", *flags)

    assert "--dtype=bfloat16" in refusal("--output=x", "--dtype=bfloat16")
    assert "must be on a disk" in refusal("--output=gs://bucket/x")
    assert f"--output = '{exported}' is there already" in refusal(f"--output={exported}")
