"""`switch-tf convert`: Hugging Face to a fine-tuned model and back, upcycling, and a sentence for every mistake."""

import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import gin
import numpy as np
import pytest
import tensorflow as tf

import tests.support.tiny_task
from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.cli import flags
from switch_tf.cli import main as command_line
from switch_tf.interop.formats import open_source
from switch_tf.interop.huggingface_directory import read_tensors
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.runs.recorder import read_csv
from tasks.vocabularies import train_sentencepiece
from tests.support import launch
from tests.support.commands import call, fails
from tests.support.features import random_features
from tests.support.foreign_files import switch_tensors, write_torch

ROOT = pathlib.Path(__file__).parents[2]
SMALL = (
    "--gin.TRAIN_STEPS=2",
    "--gin.BATCH_SIZE=8",
    "--gin.EVAL_PERIOD=2",
    "--gin.NUM_EVAL_BATCHES=1",
    "--gin.EVAL_TASK=None",
    "--gin.BEST_METRIC=None",
    "--gin.MIXTURE_OR_TASK='tiny_span_corruption'",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 32, 'targets': 10}",
)


@pytest.fixture(scope="module")
def vocabulary() -> bytes:
    return train_sentencepiece([line for text in tests.support.tiny_task.TOPICS for line in text.splitlines()], 400)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    drawn = switch_tensors(head=None, sparse=range(1, 2), vocab_size=512, dtype=np.dtype(np.float32))
    return {name: array if "norm" in name else array * 0.25 for name, array in drawn.items()}


@pytest.fixture(scope="module")
def directory(tmp_path_factory, tensors, vocabulary) -> pathlib.Path:
    """A Hugging Face directory with everything in it."""
    folder = tmp_path_factory.mktemp("hub") / "switch"
    folder.mkdir()
    write_torch(folder / "pytorch_model.bin", tensors)
    settings = {"model_type": "switch_transformers", "dropout_rate": 0.1, "expert_capacity": 8, "num_layers": 2}
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "spiece.model").write_bytes(vocabulary)
    return folder


@pytest.fixture(scope="module")
def converted(directory, tmp_path_factory) -> pathlib.Path:
    """The model directory of it."""
    model_dir = tmp_path_factory.mktemp("converted") / "start"
    command_line.main(["convert", str(directory), str(model_dir)])
    gin.clear_config()
    return model_dir


def test_a_model_directory_is_made(converted, vocabulary, capsys):
    assert (converted / "vocabulary" / "sentencepiece.model").read_bytes() == vocabulary
    assert {path.name for path in converted.iterdir()} == {"checkpoints", "config.gin", "versions.txt", "vocabulary"}
    assert not list(converted.parent.glob("*.unfinished"))
    described = json.loads(call(capsys, "describe", f"--model_dir={converted}", "--json"))
    assert described["parameters"] == sum(
        np.prod(shape) for name, shape in checkpoints_of(str(converted)).manifest(0).shapes.items() if name != "step"
    )
    assert "The [" in call(capsys, "predict", f"--model_dir={converted}", "The <extra_id_0> statement.")


def test_from_hugging_face_to_hugging_face_in_four_commands(directory, converted, tensors, tmp_path, capsys):
    """docs/weights.md; the first of the commands made `converted`."""
    tuned, back = tmp_path / "tuned", tmp_path / "back"
    command = ["train", f"--gin_file={converted}/config.gin", "--gin_file=gin/runs/finetune.gin", *SMALL]
    call(capsys, *command, f"--gin.MODEL_DIR='{tuned}'", f"--gin.INITIAL_CHECKPOINT='{converted}'")
    assert "neg_log_perplexity" in call(capsys, "evaluate", f"--model_dir={tuned}", "--num_batches=1")
    call(capsys, "convert", "--to=huggingface", str(tuned), str(back))
    after = {name: tensor.read() for name, tensor in read_tensors(str(back)).items()}
    assert {name: array.shape for name, array in after.items()} == {
        name: array.shape for name, array in tensors.items()
    }
    changed = [name for name, array in tensors.items() if not np.array_equal(array, after[name])]
    assert "shared.weight" in changed and len(changed) > len(tensors) - 4
    assert np.max(np.abs(after["shared.weight"] - tensors["shared.weight"])) < 0.1
    assert json.loads((back / "config.json").read_text())["expert_capacity"] == 8
    assert (back / "spiece.model").read_bytes() == (directory / "spiece.model").read_bytes()


@pytest.mark.slow
def test_training_goes_on_in_a_converted_model_directory(converted, tensors, tmp_path, capsys):
    checkpoint, model_dir = tmp_path / "t5x", tmp_path / "again"
    call(capsys, "convert", "--to=t5x", str(converted), str(checkpoint))
    (checkpoint / "checkpoint_0").rename(checkpoint / "checkpoint_50000")
    index = checkpoint / "checkpoint_50000" / "checkpoint"
    # A checkpoint of another step: int32 0 in the index is the step.
    step = b"\xa4step\xc7\x0e\x01\x93\x90\xa5int32\xc4\x04"
    content = index.read_bytes()
    assert content.count(step) == 1
    index.write_bytes(content.replace(step + bytes(4), step + (50000).to_bytes(4, "little")))
    named = f"--vocabulary={converted}/vocabulary/sentencepiece.model"
    call(capsys, "convert", str(checkpoint), str(model_dir), named, "--gin.DROPOUT_RATE=0.1")
    command = ["train", f"--gin_file={model_dir}/config.gin", *SMALL]
    out = call(capsys, *command, "--gin.TRAIN_STEPS=50001", "--gin.EVAL_PERIOD=50001")
    assert "at step 50000" in out
    (row,) = read_csv(str(model_dir / "metrics.csv"))
    assert int(float(row["step"])) == 50001
    assert float(row["learning_rate"]) == pytest.approx(50000**-0.5)
    assert checkpoints_of(str(model_dir)).manifest(50001).slots_since == 50000
    # And resumes as any run.
    out = call(capsys, *command, "--gin.TRAIN_STEPS=50002", "--gin.EVAL_PERIOD=50002")
    assert "Resuming" in out and "from step 50001" in out
    assert checkpoints_of(str(model_dir)).manifest(50002).slots_since == 50000


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> pathlib.Path:
    """The model directory of a tiny dense run."""
    model_dir = tmp_path_factory.mktemp("dense") / "run"
    bindings = ("NUM_EXPERTS=0", "TRAIN_STEPS=3", "DROPOUT_RATE=0.0", "EXPERT_DROPOUT_RATE=0.0", "ModelConfig.d_ff=64")
    command_line.main(launch.arguments(model_dir, *bindings))
    gin.clear_config()
    return model_dir


def logits(model_dir: pathlib.Path) -> np.ndarray:
    source = open_source(str(model_dir))
    model = EncoderDecoder(source.config)
    model.build()
    for weight in model.weights:
        weight.assign(source.weights[weight_name(weight)].read())
    return model(random_features()).numpy()


def experts(model_dir: pathlib.Path, step: int) -> np.ndarray:
    reader = tf.train.load_checkpoint(checkpoints_of(str(model_dir)).prefix(step))
    return reader.get_tensor("encoder/layer_1/feed_forward/experts/wi")


@pytest.fixture(scope="module")
def sparse(dense, tmp_path_factory) -> pathlib.Path:
    """The dense run with eight experts in every second layer."""
    model_dir = tmp_path_factory.mktemp("upcycled") / "sparse"
    command_line.main(["convert", "--upcycle", "--gin.NUM_EXPERTS=8", str(dense), str(model_dir)])
    gin.clear_config()
    return model_dir


def test_experts_are_copies_of_the_dense_layer(dense, sparse, tmp_path, capsys):
    table = experts(sparse, 3)
    assert table.shape == (8, 32, 64) and np.array_equal(table, np.broadcast_to(table[:1], table.shape))
    # One expert has a gate of 1: the dense model.
    single = tmp_path / "single"
    call(capsys, "convert", "--upcycle", "--gin.NUM_EXPERTS=1", str(dense), str(single))
    is_text = random_features()["decoder_target_tokens"] != 0  # Padding has no expert.
    np.testing.assert_array_equal(logits(single)[is_text], logits(dense)[is_text])
    noisy = tmp_path / "noisy"
    call(capsys, "convert", "--upcycle", "--noise=0.01", "--gin.NUM_EXPERTS=8", str(dense), str(noisy))
    difference = experts(noisy, 3) - table
    np.testing.assert_allclose(difference.std((1, 2)), 0.01 * table[0].std(), rtol=0.1)


@pytest.mark.parametrize("choice", ["mean", "5"])
def test_and_back_to_the_dense_model(dense, sparse, tmp_path, capsys, choice):
    call(capsys, "convert", f"--to_dense={choice}", str(sparse), str(tmp_path / "back"))
    before, after = (open_source(str(model_dir)).weights for model_dir in (dense, tmp_path / "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name].read(), tensor.read(), err_msg=name)
    message = fails(capsys, "convert", "--to_dense=8", str(sparse), str(tmp_path / "other"))
    assert "has 8 experts, counted from 0" in message


@pytest.mark.parametrize("way", [pytest.param("convert", marks=pytest.mark.slow), "train"])
def test_an_upcycled_model_goes_on_from_the_step(dense, sparse, tmp_path, capsys, way):
    model_dir = tmp_path / "sparse"
    if way == "convert":
        shutil.copytree(sparse, model_dir)
        command = ["train", f"--gin_file={model_dir}/config.gin", f"--gin.MODEL_DIR='{model_dir}'"]
        command += ["--gin.TRAIN_STEPS=4", "--gin.EVAL_PERIOD=4"]
    else:
        command = launch.arguments(model_dir, "NUM_EXPERTS=8", "UPCYCLE=True", "TRAIN_STEPS=4", "EVAL_PERIOD=4")
        command += [f"--gin.INITIAL_CHECKPOINT='{dense}'", "--gin.VOCABULARY=@InitialVocabulary()"]
        command += [f"--gin.InitialVocabulary.checkpoint='{dense}'", "--gin.WARMUP_STEPS=1"]
    call(capsys, *command)
    (row,) = read_csv(str(model_dir / "metrics.csv"))
    assert int(float(row["step"])) == 4
    assert way == "convert" or float(row["learning_rate"]) == pytest.approx(3**-0.5)
    assert checkpoints_of(str(model_dir)).manifest(4).slots_since == 3
    table = experts(model_dir, 4)
    assert all(not np.array_equal(table[0], other) for other in table[1:])


def test_what_cannot_be_upcycled(dense, tmp_path, capsys):
    target = str(tmp_path / "target")
    for arguments, message in (
        (["--upcycle"], "--upcycle makes a sparse model: set the number of experts"),
        (
            ["--upcycle", "--gin.NUM_EXPERTS=2", "--gin.ModelConfig.d_ff=32"],
            r"feed_forward/wi is \(32, 64\) there and (32",
        ),
        (
            ["--upcycle", "--gin.NUM_EXPERTS=2", "--gin.ModelConfig.tied_logits=False"],
            "logits/kernel is no such weight",
        ),
        (["--to_dense=mean"], "has no experts: leave --to_dense out"),
        (["--to_dense=last"], "--to_dense=last must be 'mean' or the number of an expert"),
        (["--gin.ModelConfig.d_model=16"], "set nothing that shapes weights"),
        (["--dtype=bfloat16"], "--dtype=bfloat16 is for"),
        (["--to=huggingface", "--slots"], "--slots keeps what only"),
        (["--from=t5x"], "holds no checkpoint of T5X"),
    ):
        assert message.replace("\\", "") in fails(capsys, "convert", *arguments, str(dense), target)
        assert list(tmp_path.iterdir()) == []


def test_the_commands_of_the_documentation_can_be_given():
    text = (ROOT / "docs" / "weights.md").read_text()
    lines = "".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ").splitlines()
    commands = [line.partition("#")[0] for line in lines if line.startswith("switch-tf ")]
    assert len(commands) > 9
    for command in commands:
        _, others = flags.split_bindings(shlex.split(command)[1:])
        command_line.make_parser().parse_args(others)


def test_a_folder_that_is_there_is_left_alone(directory, tmp_path, capsys):
    (tmp_path / "mine").write_text("mine")
    assert "is there already" in fails(capsys, "convert", str(directory), str(tmp_path))
    assert "is there already" in fails(capsys, "convert", str(directory), str(tmp_path / "mine"))
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_nothing_half_written_is_left(directory, tmp_path, capsys):
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in ("config.json", "spiece.model"):
        (source / name).write_bytes((directory / name).read_bytes())
    content = bytearray((directory / "pytorch_model.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (source / "pytorch_model.bin").write_bytes(content)
    for arguments in ([], ["--to=huggingface", "--shard_gb=0.00001"], ["--to=t5x"]):
        assert "is damaged: the checksum of archive/data/" in fails(
            capsys, "convert", *arguments, str(source), str(target)
        )
        assert [path.name for path in tmp_path.iterdir()] == ["source"]
    (tmp_path / "file").write_text("")
    assert "cannot be written" in fails(capsys, "convert", str(directory), str(tmp_path / "file" / "target"))


def test_a_vocabulary_must_fit(directory, tmp_path, capsys, vocabulary):
    (tmp_path / "large.model").write_bytes(train_sentencepiece(list(tests.support.tiny_task.TOPICS), 600))
    named = f"--vocabulary={tmp_path}/large.model"
    message = fails(capsys, "convert", named, str(directory), str(tmp_path / "target"))
    assert "has 700 ids, sentinels included, and the token table 512 rows" in message
    named = f"--vocabulary={directory}/config.json"
    assert "is no vocabulary of SentencePiece" in fails(capsys, "convert", named, str(directory), str(tmp_path / "to"))


@pytest.mark.slow
def test_a_conversion_that_is_stopped_leaves_nothing(directory, tmp_path):
    program = """
import time
from switch_tf.cli.main import main
from switch_tf.interop import own_checkpoints
own_checkpoints.write_own = lambda *arguments: time.sleep(300)
main()
"""
    command = [sys.executable, "-c", program, "convert", str(directory), str(tmp_path / "target")]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 240
    while not (tmp_path / "target.unfinished" / "config.gin").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    assert list(tmp_path.iterdir()) == []
