"""From a pre-trained model directory to scores on tasks: begin, evaluate while training, keep the best, compare."""

import collections
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys

import gin
import numpy as np
import pytest
import seqio
import tensorflow as tf

import tasks.all  # noqa: F401 (registers tasks)
import tests.support.rule_glue
import tests.support.tiny_task
from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.checkpoints.manifest import Score
from switch_tf.cli import main as command_line
from switch_tf.runs.recorder import read_csv
from tasks.metrics import benchmark_averages
from tasks.tfds_source import data_set_of
from tasks.vocabularies import train_sentencepiece
from tests.support import launch, tiny_tfds

ROOT = pathlib.Path(__file__).parents[2]
SMALL = ("TRAIN_STEPS=8", "EVAL_PERIOD=2", "CHECKPOINT_PERIOD=4", "NUM_EVAL_EXAMPLES=20", "NUM_EVAL_BATCHES=1")
SINGLE = ('ENGINE="single"',)
RULES = 'LAYOUT_RULES="batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"'
DATA_4_MODEL_2 = ('ENGINE="dtensor"', 'MESH_SHAPE="data:4,model:2"', RULES, "NUM_LOGICAL_DEVICES=8", "GROUP_SIZE=None")
MIRRORED_8 = ('ENGINE="tpu"', 'MESH_SHAPE="data:8"', 'LAYOUT_RULES="batch:data"', "NUM_LOGICAL_DEVICES=8")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """The data sets that follow a rule."""
    folder = tmp_path_factory.mktemp("tfds")
    tests.support.rule_glue.write(str(folder))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _data_sets(data_dir):
    """Finds the data sets, in this process and in those that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(data_dir))
        patch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(data_dir))
        yield


@pytest.fixture(scope="module")
def pretrained(tiny_run, tmp_path_factory) -> pathlib.Path:
    """A copy of the tiny run's model directory."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("pretrained") / "tiny")


def arguments(model_dir: pathlib.Path, initial: pathlib.Path, *bindings: str) -> list[str]:
    bindings = (f'INITIAL_CHECKPOINT="{initial}"', *SMALL, *bindings)
    return [
        *launch.arguments(model_dir),
        "--gin_file=tests/support/rules.gin",
        *(f"--gin.{binding}" for binding in bindings),
    ]


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory) -> pathlib.Path:
    """The model directory of a short fine-tuning."""
    model_dir = tmp_path_factory.mktemp("finetuned")
    gin.clear_config()
    command_line.main(arguments(model_dir, pretrained))
    return model_dir


def call(capsys, *arguments: str) -> str:
    gin.clear_config()
    capsys.readouterr()
    command_line.main(list(arguments))
    return capsys.readouterr().out


def fails(capsys, *arguments: str) -> str:
    """Runs a command that must end with status 2; returns its line."""
    with pytest.raises(SystemExit) as exit_:
        command_line.main(list(arguments))
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def weights(model_dir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """The step and the weights of a checkpoint, by name."""
    reader = tf.train.load_checkpoint(checkpoints_of(str(model_dir)).prefix(step))
    names = [
        name for name in reader.get_variable_to_shape_map() if "/slots/" not in name and not name.startswith("data/")
    ]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
def test_a_run_starts_from_the_weights_alone(pretrained, tmp_path, capsys):
    command_line.main(arguments(tmp_path, pretrained, "LEARNING_RATE=0.0", "TRAIN_STEPS=1"))
    before, after = weights(pretrained, 12), weights(tmp_path, 1)
    assert before.pop("step") == 12 and after.pop("step") == 1
    assert len(before) > 20
    for name in before:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)
    assert "Starting from the weights of" in capsys.readouterr().out
    vocabulary = "vocabulary/sentencepiece.model"
    assert (tmp_path / vocabulary).read_bytes() == (pretrained / vocabulary).read_bytes()
    # Slots that went on from the pre-training would hold the squares of its gradients.
    slots = [name for name in checkpoints_of(str(tmp_path)).manifest(1).shapes if "/slots/" in name]
    old, new = (
        tf.train.load_checkpoint(checkpoints_of(str(d)).prefix(s)) for d, s in ((pretrained, 12), (tmp_path, 1))
    )
    assert not np.array_equal(old.get_tensor(slots[0]), new.get_tensor(slots[0]))


def test_the_recipe_is_the_papers(finetuned):
    config = (finetuned / "config.gin").read_text()
    for setting in ("DROPOUT_RATE = 0.1", "EXPERT_DROPOUT_RATE = 0.4", "LEARNING_RATE = 0.001"):
        assert f"\n{setting}\n" in config
    rates = {row["learning_rate"] for row in launch.losses(finetuned).values()}
    assert [round(float(rate), 9) for rate in rates] == [0.001]


def test_scores_are_recorded_while_the_run_trains(finetuned):
    rows = read_csv(str(finetuned / "task_eval.csv"))
    assert list(rows[0]) == ["step", "task", "metric", "value"]
    names = [("glue_rte", "accuracy"), ("glue_sst2", "accuracy"), ("rule_glue", "average")]
    assert [(row["task"], row["metric"]) for row in rows] == names * 4
    assert [row["step"] for row in rows[::3]] == ["2", "4", "6", "8"]
    manifest = checkpoints_of(str(finetuned)).manifest(8)
    assert manifest.score == Score("rule_glue/average", float(rows[-1]["value"]))


def test_a_better_evaluation_makes_a_checkpoint_that_stays(pretrained, tmp_path):
    """At steps 2, 4, 6 and 8 the model is 10, 30, 20 and 20 % right, says the metric."""
    values = iter([0.0, 10.0, 30.0, 20.0, 20.0])  # The first is of the targets, before the first step.
    sst2 = seqio.TaskRegistry.get("glue_sst2")
    seqio.TaskRegistry.add(
        "rises_and_falls",
        sst2.source,
        preprocessors=sst2.preprocessors,
        output_features=sst2.output_features,
        metric_fns=[lambda targets, predictions: {"score": next(values)}],
    )
    settings = ('EVAL_TASK="rises_and_falls"', 'BEST_METRIC="rises_and_falls/score"', "KEEP_CHECKPOINTS=1")
    try:
        command_line.main(arguments(tmp_path, pretrained, *settings, "CHECKPOINT_PERIOD=100"))
    finally:
        seqio.TaskRegistry.remove("rises_and_falls")
    assert checkpoints_of(str(tmp_path)).steps() == [4, 8]
    assert checkpoints_of(str(tmp_path)).best() == 4


@pytest.mark.slow
def test_a_run_that_goes_on_has_each_score_once(finetuned, pretrained, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(finetuned, copy)
    complete = (copy / "task_eval.csv").read_text()
    for step in checkpoints_of(str(copy)).steps():
        if step > 4:
            shutil.rmtree(checkpoints_of(str(copy)).path(step))
    command_line.main(arguments(copy, pretrained))
    assert (copy / "task_eval.csv").read_text() == complete
    assert launch.losses(copy) == launch.losses(finetuned)


def test_evaluate_agrees_with_training_and_writes_answers(finetuned, capsys, tmp_path):
    recorded = {
        (row["task"], row["metric"]): float(row["value"])
        for row in read_csv(str(finetuned / "task_eval.csv"))
        if row["step"] == "8"
    }
    values = json.loads(call(capsys, "evaluate", f"--model_dir={finetuned}", "--json", f"--output={tmp_path}"))
    scores = {(task, metric): value for task, of_task in values["tasks"].items() for metric, value in of_task.items()}
    assert values["step"] == 8 and "neg_log_perplexity" in values
    assert scores == recorded
    folder = tmp_path / "predictions" / "step_00000008" / "validation"
    assert sorted(path.name for path in folder.iterdir()) == ["glue_rte.jsonl", "glue_sst2.jsonl"]
    answers = [json.loads(line) for line in (folder / "glue_sst2.jsonl").read_text().splitlines()]
    assert len(answers) == 20
    assert answers[0].keys() == {"inputs", "target", "prediction"}
    assert answers[0]["inputs"].startswith("sst2 sentence: ") and answers[0]["target"] in ("positive", "negative")
    right = sum(answer["target"] == answer["prediction"] for answer in answers)
    assert scores["glue_sst2", "accuracy"] == pytest.approx(100 * right / 20)
    written = tmp_path / "evaluate_validation"
    assert json.loads((written / "scores.json").read_text()) == values
    rows = read_csv(str(written / "scores.csv"))
    assert list(rows[0]) == ["step", "task", "metric", "value"]
    assert {(row["task"], row["metric"]): float(row["value"]) for row in rows} == recorded
    assert {row["step"] for row in rows} == {"8"}
    assert list(written.glob("events.*"))


@pytest.mark.slow
def test_evaluate_compares_checkpoints(finetuned, capsys, tmp_path):
    copy = tmp_path / "moved"  # Neither the folder nor that of the pre-training is where it was.
    shutil.copytree(finetuned, copy)
    config = (copy / "config.gin").read_text()
    (copy / "config.gin").write_text(re.sub(r"INITIAL_CHECKPOINT = .*", "INITIAL_CHECKPOINT = 'absent'", config))
    table = call(capsys, "evaluate", f"--model_dir={copy}", "--step=4", "--step=8").splitlines()
    steps, accuracy = (next(line.split() for line in table if line.startswith(name)) for name in ("step ", "glue_rte/"))
    assert steps == ["step", "4", "8"] and len(accuracy) == 3
    values = json.loads(call(capsys, "evaluate", f"--model_dir={copy}", "--all", "--json"))
    assert [checkpoint["step"] for checkpoint in values["checkpoints"]] == checkpoints_of(str(copy)).steps()
    assert (copy / "predictions" / "step_00000004" / "validation" / "glue_rte.jsonl").exists()
    best = json.loads(call(capsys, "evaluate", f"--model_dir={copy}", "--step=best", "--json"))
    assert best["step"] == checkpoints_of(str(copy)).best()


def test_any_model_directory_is_scored_on_any_task(pretrained, capsys):
    out = call(
        capsys,
        "evaluate",
        f"--model_dir={pretrained}",
        "--gin_file=gin/runs/evaluate.gin",
        '--gin.MIXTURE_OR_TASK="rule_glue"',
        '--gin.TASK_FEATURE_LENGTHS={"inputs": 64, "targets": 10}',
        "--gin.NUM_EVAL_EXAMPLES=20",
        "--num_batches=2",
        "--by_task",
        "--json",
    )
    tasks = json.loads(out)["tasks"]
    for name in ("glue_sst2", "glue_rte"):
        assert tasks[name]["accuracy"] <= 100
        assert tasks[name]["neg_log_perplexity"] < 0 < tasks[name]["target_tokens"]
    assert list(tasks["rule_glue"]) == ["average"]


GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli_matched", "mnli_mismatched", "qnli", "rte")
SUPER_GLUE = ("boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc_simple_eval")


@pytest.mark.slow
@pytest.mark.parametrize(("benchmark", "scored"), [("glue", GLUE), ("super_glue", SUPER_GLUE)])
def test_the_whole_of_a_benchmark_trains_and_is_scored(pretrained, tmp_path, monkeypatch, benchmark, scored):
    """Its tasks have other splits than one another, and some have a rate of 0 or no metric."""
    needed = {data_set_of(task) for task in seqio.get_mixture_or_task(benchmark).tasks}
    tiny_tfds.write(str(tmp_path / "tfds"), {name: tiny_tfds.DATA_SETS[name] for name in needed})
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path / "tfds"))
    settings = (f'MIXTURE_OR_TASK="{benchmark}"', "EVAL_PERIOD=1", "TRAIN_STEPS=1")
    command_line.main(arguments(tmp_path / "run", pretrained, *settings))
    scores = collections.defaultdict(dict)
    for row in read_csv(str(tmp_path / "run" / "task_eval.csv")):
        scores[row["task"]][row["metric"]] = float(row["value"])
    assert scores.keys() == {benchmark, *(f"{benchmark}_{name}" for name in scored)}
    assert scores[benchmark] == {"average": pytest.approx(benchmark_averages(scores)[benchmark])}
    score = checkpoints_of(str(tmp_path / "run")).manifest(1).score
    assert score == Score(f"{benchmark}/average", scores[benchmark]["average"])


@pytest.mark.slow
def test_mnli_is_trained_on_as_one_task_and_scored_as_another(pretrained, tmp_path, monkeypatch):
    needed = {name: tiny_tfds.DATA_SETS[name] for name in ("glue/mnli:2.0.0", "glue/mnli_matched:2.0.0")}
    tiny_tfds.write(str(tmp_path / "tfds"), needed)
    monkeypatch.setattr(seqio.utils, "_TFDS_DATA_DIR_OVERRIDE", str(tmp_path / "tfds"))
    mnli = ('MIXTURE_OR_TASK="glue_mnli"', 'EVAL_TASK="glue_mnli_matched"', "EVAL_PERIOD=1", "TRAIN_STEPS=1")
    command_line.main(arguments(tmp_path / "mnli", pretrained, *mnli))
    assert [row["task"] for row in read_csv(str(tmp_path / "mnli" / "task_eval.csv"))] == ["glue_mnli_matched"] * 2


@pytest.mark.slow
def test_a_checkpoint_in_the_middle_can_be_the_beginning(pretrained, tmp_path):
    initial = pretrained / "checkpoints" / "step_00000008"
    command_line.main(arguments(tmp_path, initial, "LEARNING_RATE=0.0", "TRAIN_STEPS=1"))
    before, after = weights(pretrained, 8), weights(tmp_path, 1)
    for name in before.keys() - {"step"}:
        np.testing.assert_array_equal(before[name], after[name], err_msg=name)


@pytest.mark.parametrize(
    ("bindings", "message"),
    [
        (['INITIAL_CHECKPOINT="absent"'], "INITIAL_CHECKPOINT = 'absent' is neither a model directory"),
        (["ModelConfig.d_ff=128"], "holds another model: decoder/"),
        (["NUM_EXPERTS=8"], "use the model's gin files and macros of its config.gin"),
        (['EVAL_TASK="glue_rt"'], "EVAL_TASK = 'glue_rt' is not registered (did you mean 'glue_rte'?)"),
        (['EVAL_TASK="glue_ax"'], "EVAL_TASK = 'glue_ax' has no task with metrics and a split 'validation'"),
        (['BEST_METRIC="glue_rte/acuracy"'], "is no metric of EVAL_TASK (did you mean 'glue_rte/accuracy'?)"),
        (["EVAL_TASK=None"], "BEST_METRIC = 'average' needs EVAL_TASK"),
    ],
)
def test_a_wrong_setting_is_one_line_before_the_first_step(pretrained, tmp_path, capsys, bindings, message):
    assert message in fails(capsys, *arguments(tmp_path, pretrained, *bindings))
    assert not (tmp_path / "metrics.csv").exists()


def test_another_vocabulary_is_refused(pretrained, tmp_path, capsys):
    (tmp_path / "other").write_bytes(train_sentencepiece(tests.support.tiny_task.TOPICS, 390))
    bindings = ("VOCABULARY=@VocabularyFile()", f'VocabularyFile.path="{tmp_path / "other"}"')
    message = fails(capsys, *arguments(tmp_path / "run", pretrained, *bindings))
    assert "was trained with another vocabulary than" in message and "@InitialVocabulary()" in message


@pytest.mark.slow
@pytest.mark.parametrize("engine", [DATA_4_MODEL_2, MIRRORED_8])
def test_every_engine_begins_and_scores_alike(pretrained, tmp_path, engine):
    bindings = ("TRAIN_STEPS=2", "GROUP_SIZE=None", "EVAL_CAPACITY_FACTOR=None")
    for name, settings in (("single", SINGLE), ("mesh", engine)):
        done = launch.run(*arguments(tmp_path / name, pretrained, *bindings, *settings))
        assert done.returncode == 0, done.stderr
    single, mesh = (launch.losses(tmp_path / name) for name in ("single", "mesh"))
    for step in ("1", "2"):
        assert float(mesh[step]["loss"]) == pytest.approx(float(single[step]["loss"]), abs=1e-4)
    bindings = [f"--gin.{setting}" for setting in engine]
    done = launch.run("evaluate", f"--model_dir={tmp_path / 'single'}", "--json", f"--output={tmp_path}", *bindings)
    assert done.returncode == 0, done.stderr
    again = launch.run("evaluate", f"--model_dir={tmp_path / 'single'}", "--json")
    ours, theirs = (json.loads(run.stdout) for run in (done, again))
    assert ours["tasks"] == theirs["tasks"]
    for task in ("glue_rte", "glue_sst2"):
        place = pathlib.Path("predictions", "step_00000002", "validation", f"{task}.jsonl")
        assert (tmp_path / place).read_text() == (tmp_path / "single" / place).read_text()


@pytest.mark.slow
def test_from_nothing_to_a_fine_tuned_model(tmp_path):
    """The commands of docs/finetuning.md, one after the other, in a folder of their own."""
    page = (ROOT / "docs" / "finetuning.md").read_text()
    commands = page.split("## From nothing")[1].split("```sh\n")[1].split("```")[0].replace("\\\n", " ")
    first, *others = commands.replace("runs/rules", str(tmp_path)).splitlines()
    environment = dict(setting.split("=") for setting in shlex.split(first)[1:])
    programs = {"python": [sys.executable], "switch-tf": [sys.executable, "-m", launch.SWITCH_TF]}
    for command in others:
        program, *rest = shlex.split(command)
        done = subprocess.run(
            [*programs[program], *rest], cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    table = dict(line.split() for line in done.stdout.splitlines()[1:])
    assert float(table["glue_sst2/accuracy"]) > 95 and float(table["glue_rte/accuracy"]) > 95
    assert float(table["rule_glue/average"]) > 95


@pytest.mark.slow
def test_a_checkpoint_that_was_saved_before_its_evaluation_gets_its_score(pretrained, tmp_path):
    command = arguments(tmp_path, pretrained, "TRAIN_STEPS=3")
    stopped = launch.run(*command, program="tests.programs.preempted_at_step_2")
    assert stopped.returncode == 128 + signal.SIGTERM, stopped.stderr
    assert checkpoints_of(str(tmp_path)).best() is None
    command_line.main(command)
    score = checkpoints_of(str(tmp_path)).manifest(2).score
    rows = {(row["task"], row["step"]): row["value"] for row in read_csv(str(tmp_path / "task_eval.csv"))}
    assert score.value == float(rows["rule_glue", "2"])
    assert {2, 3} == set(checkpoints_of(str(tmp_path)).steps())
