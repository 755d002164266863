"""`switch-tf export` and `serve` as a person runs them: what they write, and what they refuse in a sentence."""

import json

import pytest
import tensorflow as tf
import tensorflow_text  # noqa: F401 (registers the tokenizer)

from tests.support import commands

TEXT = "The <extra_id_0> statement returns a value."


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--format=huggingface", "--lengths=8"], "--lengths is for --format=saved_model"),
        (["--format=stablehlo", "--batch_sizes=1"], "--batch_sizes is for --format=saved_model"),
        (["--format=stablehlo", "--dtype=bfloat16"], "--dtype=bfloat16 is not for --format=stablehlo"),
        (["--step=3"], "--step=3: there is no such checkpoint"),
        (["--lengths=0"], "--lengths"),
    ],
)
def test_mistakes(tiny_run, tmp_path, capsys, flags, sentence):
    arguments = [f"--model_dir={tiny_run}", f"--output={tmp_path / 'out'}", *flags]
    assert sentence in commands.fails(capsys, "export", *arguments)
    assert not (tmp_path / "out").exists()


def test_as_hugging_face_stores_it(tiny_run, tmp_path, capsys):
    output = tmp_path / "hub"
    export = ("export", f"--model_dir={tiny_run}", f"--output={output}", "--format=huggingface")
    assert "--gin.ModelConfig.expert_capacity=64" in commands.fails(capsys, *export)
    commands.run(*export, "--gin.ModelConfig.expert_capacity=64")
    assert json.loads((output / "config.json").read_text())["num_experts"] == 4
    assert list(output.glob("*.safetensors"))


@pytest.mark.slow
def test_a_saved_model_predicts_as_the_command_does(tiny_run, tmp_path, capsys):
    shapes = ["--lengths=32", "--batch_sizes=1"]
    sentence = commands.call(capsys, "export", f"--model_dir={tiny_run}", f"--output={tmp_path / 'served'}", *shapes)
    (folder,) = (tmp_path / "served").iterdir()
    assert folder.name == "12" and sentence.startswith(f"{folder}: weights ") and "(float32), graphs " in sentence
    found = tf.saved_model.load(str(folder)).signatures["serving_default"](inputs=tf.constant([TEXT]))
    predicted = commands.call(capsys, "predict", f"--model_dir={tiny_run}", "--output=-", TEXT)
    expected = json.loads(predicted.splitlines()[-1])
    assert found["outputs"].numpy()[0].decode() == expected["prediction"]
    assert float(found["scores"][0]) == pytest.approx(expected["score"], rel=1e-4)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "holds no SavedModel"),
        (["--max_batch_size=0"], "--max_batch_size=0 must be at least 1"),
        (["--max_request_bytes=-1"], "--max_request_bytes=-1 must be at least 1"),
    ],
)
def test_what_cannot_be_served(tmp_path, capsys, flags, sentence):
    pytest.importorskip("starlette", reason="the [serve] extra is not installed")
    assert sentence in commands.fails(capsys, "serve", str(tmp_path), *flags)
