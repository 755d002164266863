"""The whole way: train, evaluate, predict, describe, report; and a sentence for every mistake."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf

import tests.support.tiny_task
from switch_tf.cli import main as command_line
from switch_tf.data.evaluation_batches import EvaluationBatches, evaluation_batches
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import load_run
from tasks.vocabularies import train_sentencepiece
from tests.support import launch
from tests.support.commands import call, fails, run


@pytest.fixture(scope="module")
def trained(tiny_run, tmp_path_factory) -> pathlib.Path:
    """A copy of the tiny run's model directory."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("trained") / "tiny")


def test_a_model_directory_holds_what_the_design_promises(trained):
    there = {path.name for path in trained.iterdir()}
    assert {"metrics.csv", "eval.csv", "experts.csv", "config.gin", "versions.txt"} <= there
    assert {"checkpoints", "vocabulary"} <= there
    assert any(name.startswith("events.out.tfevents") for name in there)
    assert (trained / "metrics.csv").read_text().startswith("step,loss,neg_log_perplexity,")
    assert "tensorflow==2.20" in (trained / "versions.txt").read_text()
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == [
        "step_00000004",
        "step_00000008",
        "step_00000012",
    ]


def test_loads_of_each_sparse_layer_add_up_to_one(trained):
    lines = [line.split(",") for line in (trained / "experts.csv").read_text().splitlines()]
    assert lines[0] == ["step", "layer", *(f"load_{expert}" for expert in range(4))]
    assert [line[:2] for line in lines[1:3]] == [["3", "encoder/layer_1"], ["3", "decoder/layer_1"]]
    for line in lines[1:]:
        assert sum(map(float, line[2:])) == pytest.approx(1.0, abs=1e-5)


def experiment_of(model_dir: pathlib.Path) -> Experiment:
    gin_config.load(["tests/support/tiny.gin"], [f"MODEL_DIR = '{model_dir}'"])
    return Experiment()


def batches_of(experiment: Experiment, num_batches: int | None, split: str) -> EvaluationBatches:
    return evaluation_batches(
        experiment.mixture_or_task, experiment.task_feature_lengths, experiment.batch_size, num_batches, split
    )


def test_evaluate_prints_the_likelihood_of_the_held_out_targets(trained, capsys):
    values = json.loads(call(capsys, "evaluate", f"--model_dir={trained}", "--json"))
    experiment = experiment_of(trained)
    model = load_run(experiment).model
    sum_of_logs, count = 0.0, 0
    for batch in batches_of(experiment, None, "validation"):
        logits = model({name: tf.constant(array) for name, array in batch.items()}).numpy().astype(np.float64)
        targets = batch["decoder_target_tokens"]
        log_probabilities = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        chosen = np.take_along_axis(log_probabilities, targets[..., np.newaxis], axis=-1)[..., 0]
        sum_of_logs += chosen[targets != 0].sum()
        count += (targets != 0).sum()
    assert values["step"] == 12
    assert values["target_tokens"] == count
    assert values["neg_log_perplexity"] == pytest.approx(sum_of_logs / count, rel=1e-5)
    assert "encoder/layer_1/fraction_dropped" in values


def test_evaluate_prints_a_table(trained, capsys, tmp_path):
    arguments = ["--step=8", "--split=train", "--num_batches=2", "--by_task", f"--output={tmp_path}"]
    title, *lines = call(capsys, "evaluate", f"--model_dir={trained}", *arguments).splitlines()
    assert title.endswith(", train")
    table = dict(line.split() for line in lines)
    # A task is the whole of what it is a part of.
    assert table["tiny_span_corruption/neg_log_perplexity"] == table["neg_log_perplexity"]
    targets = [batch["decoder_target_tokens"] for batch in batches_of(experiment_of(trained), 2, "train")]
    assert float(table["target_tokens"]) == np.count_nonzero(targets)
    assert list((tmp_path / "evaluate_train").iterdir())


def test_evaluate_agrees_with_the_last_evaluation_of_training(trained, capsys):
    values = json.loads(call(capsys, "evaluate", f"--model_dir={trained}", "--json"))
    header, *rows = [line.split(",") for line in (trained / "eval.csv").read_text().splitlines()]
    recorded = dict(zip(header, map(float, rows[-1]), strict=True))
    assert values.keys() == recorded.keys()
    assert values == pytest.approx(recorded, rel=1e-6)


def test_predict_fills_sentinels(trained, capsys, tmp_path):
    out = call(capsys, "predict", f"--model_dir={trained}", "The <extra_id_0> statement <extra_id_1>.")
    assert out.startswith("The [") and "] statement [" in out
    (tmp_path / "texts").write_text("One <extra_id_0>.\n\nTwo <extra_id_0> more.\n")
    lines = call(capsys, "predict", f"--model_dir={trained}", f"--file={tmp_path / 'texts'}").splitlines()
    assert len(lines) >= 2 and lines[0].startswith("One [")
    assert call(capsys, "predict", f"--model_dir={trained}", "--held_out=2").count("truth:") == 2


def test_describe_reads_a_model_directory(trained, capsys):
    values = json.loads(call(capsys, "describe", f"--model_dir={trained}", "--json"))
    assert values["expert_parameters"] == 2 * 4 * 2 * 32 * 64


def test_report_compares_runs(trained, capsys, tmp_path):
    dense = tmp_path / "dense"
    shutil.copytree(trained / "vocabulary", dense / "vocabulary")
    one_layer = ("ModelConfig.num_encoder_layers=1", "ModelConfig.num_decoder_layers=1")
    command_line.main(launch.arguments(dense, "ModelConfig.num_experts=0", *one_layer))
    out = call(capsys, "report", str(trained), str(dense), f"--output={tmp_path}")
    assert "unigram model" in out and "tiny" in out and "dense" in out
    for name in ("loss.png", "experts.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_training_a_finished_run_changes_nothing(trained, capsys):
    before = (trained / "metrics.csv").read_text()
    assert "nothing to do" in call(capsys, *launch.arguments(trained))
    assert (trained / "metrics.csv").read_text() == before


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (["TRIAN_STEPS=3"], "TRIAN_STEPS is set, but nothing in these gin files reads it"),
        (["train.stepps=3"], "stepps"),
        (['MIXTURE_OR_TASK="tiny_span_coruption"'], "did you mean 'tiny_span_corruption'"),
        (['MIXTURE_OR_TASK="empty_span_corruption"'], "yields no example"),
        (['TrainedVocabulary.task="empty_span_corruption"'], "The corpus is empty"),
        (["VOCAB_SIZE=384"], "VOCAB_SIZE = 384 is too small"),
        (["GROUP_SIZE=50", "BATCH_SIZE=1", 'TASK_FEATURE_LENGTHS={"inputs": 53, "targets": 20}'], "GROUP_SIZE = 50"),
        (["BATCH_SIZE=0"], "BATCH_SIZE = 0 must be at least 1"),
        (["NUM_MICROBATCHES=3"], "NUM_MICROBATCHES = 3 must divide BATCH_SIZE = 8"),
        (['MESH_SHAPE="data:8"', 'LAYOUT_RULES="experts:data"'], "NUM_EXPERTS = 4 is no multiple of 8"),
        (["NUM_DATA_SHARDS=3"], "NUM_DATA_SHARDS = 3 must divide BATCH_SIZE = 8"),
        (["NUM_DATA_SHARDS=0"], "NUM_DATA_SHARDS = 0 must divide BATCH_SIZE = 8"),
        (["CAPACITY_FACTOR=0.0"], "ModelConfig.capacity_factor = 0.0 must be positive"),
        (['ENGINE="cluster"'], "ENGINE = 'cluster' is unknown"),
        (['TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 4}'], "TASK_FEATURE_LENGTHS"),
        (["TRAIN_STEPS=%gin.REQUIRED"], "TRAIN_STEPS has no value: set it with --gin.TRAIN_STEPS"),
        (["KEEP_CHECKPOINTS=0"], "KEEP_CHECKPOINTS = 0"),
    ],
)
def test_a_wrong_setting_is_one_line_before_the_first_step(capsys, tmp_path, bindings, message):
    assert message in fails(capsys, *launch.arguments(tmp_path / "run", *bindings))
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_every_option_trains(tmp_path):
    bindings = (
        'ACTIVATION_DTYPE="bfloat16"',
        "NUM_MICROBATCHES=4",
        "NUM_DATA_SHARDS=4",
        'ModelConfig.dispatcher="einsum"',
        'ModelConfig.activation="gated_gelu"',
        "ModelConfig.tied_logits=False",
    )
    command_line.main(launch.arguments(tmp_path / "run", *bindings))
    rows = list(launch.losses(tmp_path / "run").values())
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_a_missing_gin_file_is_one_line(capsys):
    assert "gin/runs/quickstar.gin is not there" in fails(capsys, "train", "--gin_file=gin/runs/quickstar.gin")
    assert "needs --gin_file" in fails(capsys, "describe")


def test_another_model_in_the_directory_is_refused_and_left_alone(trained, capsys):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    for binding in ("NUM_EXPERTS=8", "ModelConfig.num_experts=0", "ModelConfig.d_ff=128"):
        message = fails(capsys, *launch.arguments(trained, binding, "TRAIN_STEPS=20"))
        assert "holds another model" in message and "use another MODEL_DIR" in message
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "binding",
    ["SEED=1", "BATCH_SIZE=16", "NUM_DATA_SHARDS=2", 'TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 16}'],
)
def test_other_data_in_the_directory_are_refused(trained, capsys, binding):
    message = fails(capsys, *launch.arguments(trained, binding, "TRAIN_STEPS=20"))
    assert f"holds a run with {binding.split('=')[0]} = " in message and "set it back" in message


def test_another_vocabulary_in_the_directory_is_refused(trained, capsys, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    path = copy / "vocabulary" / "sentencepiece.model"
    path.write_bytes(train_sentencepiece(tests.support.tiny_task.TOPICS, 390))
    message = fails(capsys, *launch.arguments(copy, "TRAIN_STEPS=20"))
    assert "is not the vocabulary that the checkpoint of step 12 was trained with" in message


def test_a_damaged_checkpoint_is_set_aside_and_the_run_goes_on(trained, capsys, tmp_path):
    copy = tmp_path / "lr[0.1]\\*"  # The name is no pattern.
    shutil.copytree(trained, copy)
    (data,) = (copy / "checkpoints" / "step_00000012").glob("state.data*")
    damaged = data.read_bytes()[: data.stat().st_size // 8]  # Weights as well as slots.
    data.write_bytes(damaged)
    message = fails(capsys, "evaluate", f"--model_dir={copy}")
    assert "step_00000012 is damaged" in message and "take the one before, of step 8" in message
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        run("check", str(copy))
    table = capsys.readouterr().out
    assert re.search(r"step_00000008 +good +\d+ tensors", table) and re.search(r"step_00000012 +DAMAGED", table)
    assert re.search(r"metrics\.csv +good +12 rows", table)
    arguments = launch.arguments("", "TRAIN_STEPS=13", f"MODEL_DIR={str(copy)!r}")
    command_line.main(arguments)
    assert "the run goes on from step 8" in capsys.readouterr().out
    assert list(launch.losses(copy)) == [str(step) for step in range(1, 14)]
    assert launch.losses(copy)["12"] == launch.losses(trained)["12"]
    kept = copy / "checkpoints" / "step_00000012.damaged"
    assert (kept / data.name).read_bytes() == damaged and (kept / "manifest.json").exists()
    call(capsys, "check", str(copy))
    assert json.loads(call(capsys, "evaluate", f"--model_dir={copy}", "--json"))["step"] == 13


def test_a_checkpoint_of_an_earlier_version_is_refused(trained, capsys, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    path = copy / "checkpoints" / "step_00000012" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("format") == 2 and manifest.pop("digest")
    path.write_text(json.dumps(manifest))
    for arguments in (launch.arguments(copy, "TRAIN_STEPS=20"), ["evaluate", f"--model_dir={copy}"]):
        message = fails(capsys, *arguments)
        assert "step_00000012 was made by another version of switch_tf: finish the run with that version" in message


def test_an_evaluation_that_a_signal_cut_off_is_made_up_for(trained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    complete = (copy / "eval.csv").read_text()
    (copy / "eval.csv").write_text("".join(complete.splitlines(keepends=True)[:-1]))  # As if stopped at step 12.
    command_line.main(launch.arguments(copy, "TRAIN_STEPS=13"))
    assert (copy / "eval.csv").read_text().startswith(complete)
    assert [line.split(",")[0] for line in (copy / "eval.csv").read_text().splitlines()] == ["step", "6", "12", "13"]


@pytest.mark.parametrize("folder", ["checkpoints", "vocabulary"])
def test_a_folder_that_leads_out_of_the_model_directory_is_refused(capsys, tmp_path, folder):
    elsewhere, model_dir = tmp_path / "elsewhere", tmp_path / "run"
    elsewhere.mkdir()
    model_dir.mkdir()
    (model_dir / folder).symlink_to(elsewhere)
    error = fails(capsys, *launch.arguments(model_dir))
    assert f"{folder} is a link to {elsewhere}, out of the model directory: move the whole directory there" in error
    assert not list(elsewhere.iterdir()) and [path.name for path in model_dir.iterdir()] == [folder]


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_last_checkpoint_is_safe(trained, tmp_path):
    model_dir = shutil.copytree(trained, tmp_path / "run")
    command = launch.arguments(model_dir, "TRAIN_STEPS=18")
    failed = launch.run(*command, program="tests.programs.full_disk")
    assert failed.returncode == 2, failed.stderr
    message = failed.stderr.splitlines()[-1]
    assert "MODEL_DIR cannot be written" in message and "the checkpoint of step 12 is safe" in message
    command_line.main(command)
    assert list(launch.losses(model_dir)) == [str(step) for step in range(1, 19)]


def test_help_is_there_for_every_command(capsys):
    for command in ([], ["train"], ["evaluate"], ["predict"], ["describe"], ["report"], ["vocabulary"], ["cache"]):
        with pytest.raises(SystemExit) as exit_:
            command_line.main([*command, "--help"])
        assert exit_.value.code == 0
        assert "usage: switch-tf" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "--step=5"], "needs a text"),
        (["score", "no target"], "needs a text and its target"),
        (["predict", "--file=absent.txt"], "absent.txt"),
        (["predict", "<extra_id_0> x", "--step=5"], "there are 4, 8, 12"),
        (["predict", "<extra_id_0>" + " word" * 40], "TASK_FEATURE_LENGTHS"),
        (["evaluate", "--split=test"], "has no split 'test'"),
        (["evaluate", "--num_batches=0"], "--num_batches=0 must be at least 1"),
        (["evaluate", "--gin.ModelConfig.num_decoder_layers=1"], "holds another model"),
        (["predict", "--held_out=0"], "--held_out=0 must be at least 1"),
    ],
)
def test_wrong_uses_of_a_model_directory(trained, capsys, arguments, message):
    command, *rest = arguments
    assert message in fails(capsys, command, f"--model_dir={trained}", *rest)


def test_a_folder_that_is_no_model_directory(capsys, tmp_path):
    assert "holds no config.gin" in fails(capsys, "evaluate", f"--model_dir={tmp_path}")
    assert "holds no config.gin" in fails(capsys, "report", str(tmp_path))


VARIANTS = {
    "attention experts, groups of sequences, dropless": (
        'ModelConfig.switch_attention="linear"',
        "GROUP_SIZE=None",
        "EVAL_CAPACITY_FACTOR=None",
    ),
    "top 2, router z-loss, mean over layers": (
        'ModelConfig.router="top_n"',
        "Objective.router_z_loss=0.001",
        'Objective.balance_loss_over_layers="mean"',
    ),
    "balance bias, no token left behind": (
        'ModelConfig.router="no_token_left_behind"',
        "ModelConfig.balance_bias_rate=0.001",
        "Objective.balance_loss=0.0",
    ),
    "expert choice": ('ModelConfig.router="expert_choice"', 'ModelConfig.decoder_router="switch"'),
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_routing_train_evaluate_and_predict(tmp_path, capsys, variant):
    bindings = ("TRAIN_STEPS=2", "EVAL_PERIOD=2", "CHECKPOINT_PERIOD=2", *VARIANTS[variant])
    command_line.main(launch.arguments(tmp_path, *bindings))
    assert sorted(launch.losses(tmp_path)) == ["1", "2"]
    capsys.readouterr()
    values = json.loads(call(capsys, "evaluate", f"--model_dir={tmp_path}", "--json"))
    assert values["step"] == 2 and values["neg_log_perplexity"] < 0
    assert "[" in call(capsys, "predict", f"--model_dir={tmp_path}", "a <extra_id_0> b")


@pytest.mark.parametrize(
    ("binding", "sentence"),
    [
        ("CAPACITY_FACTOR=None", "CAPACITY_FACTOR = None must be of the type float"),
        ('ModelConfig.router="expert_choice"', "set ModelConfig.decoder_router = 'switch'"),
        ('ModelConfig.router="swich"', "must be one of"),
        ('ModelConfig.router_policy="explore"', "router_policy = 'explore' must be one of"),
        ("CAPACITY_FACTOR=0.0", "capacity_factor = 0.0 must be positive"),
        ("GROUP_SIZE=30", "GROUP_SIZE = 30 cannot hold a batch"),
    ],
)
def test_wrong_routing_stops_before_the_first_step(tmp_path, capsys, binding, sentence):
    line = fails(capsys, *launch.arguments(tmp_path / "run", "BATCH_SIZE=31", binding))
    assert sentence in line
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_top_2_with_one_expert_stops_before_the_first_step(tmp_path, capsys):
    bindings = ('ModelConfig.router="top_n"', "NUM_EXPERTS=1")
    assert "sends a token to 2 experts and NUM_EXPERTS = 1" in fails(capsys, *launch.arguments(tmp_path, *bindings))
