"""A sparse teacher and a dense student, by the command line: what a run prints, writes and refuses."""

import dataclasses
import json
import pathlib
import shutil

import gin
import numpy as np
import pytest
import tensorflow as tf

from switch_tf.checkpoints.folder import checkpoints_of
from switch_tf.cli import main as command_line
from switch_tf.data.evaluation_batches import evaluation_batches
from switch_tf.data.teacher_cache import cached_examples, read_description
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.recorder import read_csv
from switch_tf.runs.run import load_run
from switch_tf.runs.teacher_settings import dropless
from switch_tf.training.distillation import TEACHER_LOG_PROBABILITIES, TEACHER_OF_TARGETS, TEACHER_TOKENS
from tests.support import launch
from tests.support.commands import call, fails

TEACHER_COLUMNS = ("soft_cross_entropy", "teacher_entropy", "teacher_neg_log_perplexity", "teacher_agreement")
# Low rates, as in test_meshes.py.
SETTINGS = (
    *("NUM_EXPERTS=0", "WARMUP_STEPS=1000000"),
    *("LOG_PERIOD=1", "TRAIN_STEPS=6", "EVAL_PERIOD=3", "CHECKPOINT_PERIOD=3"),
)
TEACHER_STEP = 12


def train(model_dir: pathlib.Path, *bindings: str) -> pathlib.Path:
    gin.clear_config()
    command_line.main(launch.arguments(model_dir, *bindings))
    return model_dir


@pytest.fixture(scope="module")
def teacher(tiny_run, tmp_path_factory) -> pathlib.Path:
    """The model directory of a sparse teacher: a copy of that of the tiny run."""
    return shutil.copytree(tiny_run, tmp_path_factory.mktemp("teacher") / "tiny")


def arguments(model_dir: pathlib.Path, teacher: pathlib.Path | str, *bindings: str) -> list[str]:
    bindings = (*SETTINGS, f'TEACHER="{teacher}"', *bindings)
    return [*launch.arguments(model_dir), "--gin_file=gin/runs/distill.gin", *(f"--gin.{b}" for b in bindings)]


@pytest.fixture(scope="module")
def distilled(teacher, tmp_path_factory) -> tuple[pathlib.Path, str]:
    """The model directory of a student, and what its training printed."""
    model_dir = tmp_path_factory.mktemp("student")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda *values, **_: lines.append(" ".join(map(str, values))))
        gin.clear_config()
        command_line.main(arguments(model_dir, teacher, "BASELINE_NLP=-6.5"))
    return model_dir, "\n".join(lines)


def weights(model_dir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    reader = tf.train.load_checkpoint(checkpoints_of(str(model_dir)).prefix(step))
    names = [name for name in reader.get_variable_to_shape_map() if "/slots/" not in name and "data/" not in name]
    return {name: reader.get_tensor(name) for name in names}


def test_a_student_starts_with_the_teachers_weights_and_records_what_the_teacher_says(distilled, teacher):
    model_dir, printed = distilled
    # Of 2 + 2 layers, one of each stack is sparse in the teacher: wi and wo of two layers are fresh.
    dense = {name for name in weights(model_dir, 6) if name != "step"}
    assert f"Starting with {len(dense) - 4} of {len(dense)} weights from the teacher {teacher}" in printed
    assert "fresh: encoder/layer_1/feed_forward/wi, " in printed and " and 1 more." in printed
    assert f"Teacher: {teacher}, step {TEACHER_STEP}, " in printed
    rows = read_csv(str(model_dir / "metrics.csv"))
    assert len(rows) == 6 and set(TEACHER_COLUMNS) < rows[0].keys()
    for row in rows:
        hard, soft = -float(row["neg_log_perplexity"]), float(row["soft_cross_entropy"])
        loss = 0.75 * hard + 0.25 * soft + 1e-4 * float(row["z_loss"])
        assert float(row["loss"]) == pytest.approx(loss, rel=1e-5)
        assert soft > float(row["teacher_entropy"]) > 0 and 0 <= float(row["teacher_agreement"]) <= 1
    vocabulary = "vocabulary/sentencepiece.model"
    assert (model_dir / vocabulary).read_bytes() == (teacher / vocabulary).read_bytes()


@pytest.mark.slow
def test_evaluations_tell_the_share_of_the_gain(distilled, teacher, capsys):
    """The teacher's likelihood is what `evaluate` measures of it, dropless and on the same batches."""
    model_dir, _ = distilled
    rows = read_csv(str(model_dir / "eval.csv"))
    found = call(capsys, "evaluate", f"--model_dir={teacher}", "--gin.EVAL_CAPACITY_FACTOR=None", "--json")
    of_teacher = float(found.split('"neg_log_perplexity": ')[1].split(",")[0])
    assert [row["step"] for row in rows] == ["3", "6"]
    for row in rows:
        assert float(row["teacher_neg_log_perplexity"]) == pytest.approx(of_teacher, rel=1e-5)
        share = (float(row["neg_log_perplexity"]) + 6.5) / (of_teacher + 6.5)
        assert float(row["share_of_gain"]) == pytest.approx(share, rel=1e-4)


@pytest.mark.slow
def test_the_first_step_of_a_student_without_learning_starts_where_the_teacher_stands(teacher, tmp_path):
    train_arguments = arguments(tmp_path, teacher, "Adafactor.learning_rate=@Constant()", "Constant.value=0.0")
    command_line.main([*train_arguments, "--gin.TRAIN_STEPS=1"])
    student, theirs = weights(tmp_path, 1), weights(teacher, TEACHER_STEP)
    same = [name for name in student if name in theirs and name != "step" and student[name].shape == theirs[name].shape]
    assert len(same) == len(student) - 5
    for name in same:
        np.testing.assert_array_equal(student[name], theirs[name], err_msg=name)


@pytest.mark.slow
def test_a_run_that_resumes_has_the_same_losses_bit_for_bit(distilled, teacher, tmp_path):
    model_dir, _ = distilled
    copy = tmp_path / "copy"
    shutil.copytree(model_dir, copy)
    shutil.rmtree(checkpoints_of(str(copy)).path(6))
    command_line.main(arguments(copy, teacher, "BASELINE_NLP=-6.5"))
    assert launch.losses(copy) == launch.losses(model_dir)
    assert (copy / "eval.csv").read_text() == (model_dir / "eval.csv").read_text()


@pytest.mark.slow
def test_fraction_0_is_a_plain_run_bit_for_bit(teacher, tmp_path):
    vocabulary = f'VocabularyFile.path="{teacher}/vocabulary/sentencepiece.model"'
    plain = train(tmp_path / "plain", *SETTINGS, "VOCABULARY=@VocabularyFile()", vocabulary)
    command_line.main(arguments(tmp_path / "student", teacher, "TEACHER_FRACTION=0.0", "INITIALIZE_FROM_TEACHER=False"))
    assert launch.losses(tmp_path / "student") == launch.losses(plain)
    ours, theirs = weights(tmp_path / "student", 6), weights(plain, 6)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def cached(teacher: pathlib.Path, folder: pathlib.Path, num_choices: int, *others: str) -> str:
    """Writes a cache of the teacher's predictions in this process; returns what was printed last."""
    gin.clear_config()
    command_line.main(
        ["predict", f"--model_dir={teacher}", f"--probabilities={num_choices}", f"--output={folder}", *others]
    )
    return str(folder)


@pytest.fixture(scope="module")
def cache(teacher, tmp_path_factory) -> str:
    """A cache of the four most probable ids."""
    return cached(teacher, tmp_path_factory.mktemp("cache"), 4)


@pytest.mark.slow
def test_a_cache_has_what_the_teacher_predicts(teacher, cache):
    """Every example of the task, with log probabilities that this test takes from the model's logits."""
    gin_config.load([], [], recorded=(teacher / "config.gin").read_text())
    experiment = Experiment()
    model = load_run(dataclasses.replace(experiment, model=dropless(experiment.model))).model
    description = read_description(cache)
    examples = list(cached_examples(cache, seed=0).take(description.num_examples).as_numpy_iterator())
    task = list(
        evaluation_batches("tiny_span_corruption", experiment.task_feature_lengths, 1, None, "train", experiment.seed)
    )
    assert description.num_examples == len(task) > 50 and description.num_choices == 4
    found = sorted(example["decoder_target_tokens"].tolist() for example in examples)
    assert found == sorted(batch["decoder_target_tokens"][0].tolist() for batch in task)
    features = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    logits = model({name: tf.constant(features[name]) for name in task[0]}).numpy().astype(np.float64)
    log_probabilities = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    best = np.argsort(-log_probabilities, axis=-1)[..., :4]
    expected = np.take_along_axis(log_probabilities, best, -1)
    np.testing.assert_array_equal(features[TEACHER_TOKENS].reshape(best.shape), best)
    np.testing.assert_allclose(features[TEACHER_LOG_PROBABILITIES].reshape(best.shape), expected, atol=1e-4)
    targets = features["decoder_target_tokens"]
    of_targets = np.take_along_axis(log_probabilities, targets[..., np.newaxis], -1)[..., 0]
    np.testing.assert_allclose(features[TEACHER_OF_TARGETS], of_targets, atol=1e-4)
    tails, likelihoods = (1 - np.exp(expected).sum(-1))[targets != 0], of_targets[targets != 0]
    assert description.tail == pytest.approx(np.mean(tails), rel=1e-4)
    assert description.neg_log_perplexity == pytest.approx(np.mean(likelihoods), rel=1e-4)


@pytest.mark.slow
def test_a_student_learns_from_a_cache_without_the_teacher(teacher, cache, tmp_path, capsys):
    settings = (f'TEACHER_CACHE="{cache}"', "TEACHER=None", "INITIALIZE_FROM_TEACHER=False", "NUM_DATA_SHARDS=2")
    command_line.main(arguments(tmp_path / "student", teacher, *settings))
    rows = read_csv(str(tmp_path / "student" / "metrics.csv"))
    assert len(rows) == 6 and {*TEACHER_COLUMNS, "teacher_tail"} < rows[0].keys()
    assert 0 < float(rows[0]["teacher_tail"]) < 1
    for row in rows:
        loss = -0.75 * float(row["neg_log_perplexity"]) + 0.25 * float(row["soft_cross_entropy"])
        assert float(row["loss"]) == pytest.approx(loss + 1e-4 * float(row["z_loss"]), rel=1e-5)
    assert "teacher_agreement" not in read_csv(str(tmp_path / "student" / "eval.csv"))[0]
    shutil.copytree(tmp_path / "student", tmp_path / "copy")
    shutil.rmtree(checkpoints_of(str(tmp_path / "copy")).path(6))
    gin.clear_config()
    command_line.main(arguments(tmp_path / "copy", teacher, *settings))
    assert launch.losses(tmp_path / "copy") == launch.losses(tmp_path / "student")


MISTAKES = [
    (['TEACHER="absent"'], "TEACHER = 'absent' is neither a model directory"),
    (['TEACHER="absent"', "VOCABULARY=@TrainedVocabulary()"], "TEACHER = 'absent' is not there, or empty."),
    (['TEACHER="docs"', "VOCABULARY=@TrainedVocabulary()"], "TEACHER = 'docs' is no checkpoint: "),
    (['TEACHER="{teacher}/checkpoints/step_00000099"'], "step_00000099' holds no checkpoint"),
    (
        ["VOCABULARY=@TrainedVocabulary()", "TrainedVocabulary.num_pieces=390"],
        "was trained with another vocabulary than",
    ),
    (["VOCAB_SIZE=640"], "predicts 512 ids and VOCAB_SIZE = 640: "),
    (["TEACHER_FRACTION=2"], "TEACHER_FRACTION = 2 must be in [0, 1]"),
    (["TEACHER_DTYPE='float16'"], "TEACHER_DTYPE = 'float16' must be"),
    (["TEACHER=None"], "TEACHER = None needs TEACHER_CACHE"),
    (['TEACHER_CACHE="absent"'], "TEACHER_CACHE = 'absent' holds no complete cache"),
    (['TEACHER_CACHE="{cache}"', "TEACHER_TEMPERATURE=2.0"], "was written with TEACHER_TEMPERATURE = 1.0, not 2.0"),
    (['TEACHER_CACHE="{cache}"', 'TASK_FEATURE_LENGTHS={{"inputs": 16, "targets": 10}}'], "not {'inputs': 16, "),
    (['TEACHER_CACHE="{cache}"', "PACK=True"], "was written with PACK = False, not True"),
    (['INITIAL_CHECKPOINT="{teacher}"'], "INITIALIZE_FROM_TEACHER = True both say what the student starts with"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("bindings", "sentence"), MISTAKES)
def test_a_mistake_is_one_sentence_before_the_first_step(teacher, cache, tmp_path, capsys, bindings, sentence):
    bindings = [binding.format(teacher=teacher, cache=cache) for binding in bindings]
    assert sentence in fails(capsys, *arguments(tmp_path / "student", teacher, *bindings))
    assert not (tmp_path / "student" / "metrics.csv").exists()


@pytest.mark.slow
def test_a_resumed_run_keeps_its_teacher(distilled, teacher, tmp_path, capsys):
    shutil.copytree(distilled[0], tmp_path / "copy")
    found = fails(capsys, *arguments(tmp_path / "copy", f"{teacher}/checkpoints/step_00000004", "TRAIN_STEPS=8"))
    assert "holds a run with the step of TEACHER = 12, not 4: set it back" in found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--probabilities=0"], "--probabilities=0 must be at least 1"),
        (["--probabilities=9999"], "--probabilities=9999 is more than VOCAB_SIZE = 512"),
        (["--probabilities=4", "--output={cache}"], "holds a cache already"),
        (["--probabilities=4", "--split=test"], "has no split 'test'"),
        (["--probabilities=4", "--num_examples=0"], "--num_examples=0 must be at least 1"),
        (["--probabilities=4", "--softmax_temperature=0"], "--softmax_temperature=0.0 must be positive"),
    ],
)
def test_mistakes_of_predict(teacher, cache, tmp_path, capsys, flags, sentence):
    flags = [flag.format(cache=cache) for flag in flags]
    assert sentence in fails(capsys, "predict", f"--model_dir={teacher}", f"--output={tmp_path / 'new'}", *flags)


@pytest.mark.slow
def test_describe_counts_the_teacher(teacher, capsys):
    flags = [
        "--gin_file=gin/models/t5_tiny.gin",
        "--gin_file=gin/runs/pretrain.gin",
        "--gin_file=gin/runs/distill.gin",
        "--gin.VOCAB_SIZE=512",
    ]
    assert "teacher" not in json.loads(call(capsys, "describe", *flags, "--json"))
    flags += [f'--gin.TEACHER="{teacher}"', '--gin.TEACHER_DTYPE="bfloat16"']
    found = json.loads(call(capsys, "describe", *flags, "--json"))["teacher"]
    parameters = sum(value.size for name, value in weights(teacher, TEACHER_STEP).items() if name != "step")
    assert (found["parameters"], found["weight_bytes"]) == (parameters, 2 * parameters)
    assert f"teacher {teacher}" in call(capsys, "describe", *flags)
