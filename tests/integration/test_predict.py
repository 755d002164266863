"""A trained model at the command line and in Python: predict, score, encode."""

import io
import json
import math
import shutil
import sys
import types

import gin
import numpy as np
import pytest
import tensorflow as tf

import switch_tf
import tasks.glue  # noqa: F401 (registers glue_sst2)
import tests.support.tiny_task  # noqa: F401 (registers the task)
from switch_tf.cli import main as command_line
from switch_tf.data.task_lookup import vocabulary_of
from switch_tf.errors import SettingError
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.run import load_run
from switch_tf.runs.task_inputs import TaskInputs
from tests.support.commands import call, fails

TEXTS = ["The <extra_id_0> statement <extra_id_1>.", "plain words", "One <extra_id_0>", "\N{SNOWMAN} is no ASCII", "x"]


@pytest.fixture(scope="module")
def model_dir(tiny_run, tmp_path_factory) -> str:
    """A copy of the tiny run's model directory."""
    return str(shutil.copytree(tiny_run, tmp_path_factory.mktemp("trained") / "tiny"))


@pytest.fixture(scope="module")
def predictor(model_dir):
    return switch_tf.load(model_dir, batch_size=3)


@pytest.fixture(scope="module")
def model(model_dir):
    """The model and its vocabulary, without anything that predicts."""
    gin_config.load(["tests/support/tiny.gin"], [f"MODEL_DIR = '{model_dir}'"])
    run = load_run(Experiment())
    return types.SimpleNamespace(run=run, vocabulary=vocabulary_of(run.experiment.mixture_or_task))


def likelihood(model, text: str, target: str) -> float:
    """The log likelihood of a target, worked out in numpy."""
    inputs = [*model.vocabulary.encode(text), 1]
    targets = [*model.vocabulary.encode(target), 1]
    logits = model.run.model(
        {
            "encoder_input_tokens": tf.constant([inputs]),
            "decoder_input_tokens": tf.constant([[0, *targets[:-1]]]),
        },
        dropless=True,
    ).numpy()[0]
    logits = logits.astype(np.float64)
    return float(np.sum(logits[range(len(targets)), targets] - np.logaddexp.reduce(logits, axis=-1)))


def test_any_text_has_a_prediction_whatever_is_predicted_with_it(predictor):
    together = predictor.predict(TEXTS)
    for text, prediction in zip(TEXTS, together):
        (alone,) = predictor.predict([text])
        assert alone.text == prediction.text and len(prediction.candidates) == 1
        assert alone.score == pytest.approx(prediction.score, rel=1e-4)
    assert predictor.predict([]) == []


def test_scores_are_log_likelihoods(predictor, model):
    targets = ["a target", "", "another one", "x", "<extra_id_0> y"]
    expected = [likelihood(model, text, target) for text, target in zip(TEXTS, targets)]
    assert predictor.score(TEXTS, targets) == pytest.approx(expected, rel=1e-4)
    with pytest.raises(SettingError, match="5 inputs have 1 targets"):
        predictor.score(TEXTS, ["one"])


def test_vectors_are_the_encoders(predictor, model):
    for text, states in zip(TEXTS, predictor.encode(TEXTS)):
        ids = [*model.vocabulary.encode(text), 1]
        memory, _ = model.run.model.encode({"encoder_input_tokens": tf.constant([ids])})
        np.testing.assert_allclose(states, memory[0], atol=1e-4)


def test_a_prefix_is_what_predictions_start_with(predictor):
    for prediction, prefix in zip(predictor.predict(TEXTS[:2], prefixes=["im", "re"]), ["im", "re"]):
        assert prediction.text.startswith(prefix)
    with pytest.raises(SettingError, match="MAX_DECODE_LENGTH"):
        predictor.predict(["x"], prefixes=["a prefix of very many words"])


def test_long_texts_are_refused_or_cut(model_dir, predictor, capsys):
    text = "word " * 60
    with pytest.raises(SettingError, match=r"TASK_FEATURE_LENGTHS\['inputs'\] is 32"):
        predictor.predict([text])
    cutting = switch_tf.load(model_dir, too_long="cut")
    ids = cutting.tokenize(text)
    assert len(ids) == 32 and ids[-1] == 1 and ids[:31] == cutting.vocabulary.encode(text)[:31]
    assert fails(capsys, "predict", f"--model_dir={model_dir}", text).startswith("A text has")
    assert call(capsys, "predict", f"--model_dir={model_dir}", "--too_long=cut", text)


def test_lines_become_json_lines_and_a_bad_one_does_not_end_the_rest(model_dir, predictor, tmp_path, capsys):
    lines = [json.dumps({"body": text, "id": index}) for index, text in enumerate(TEXTS)]
    too_long = json.dumps({"body": "word " * 60})
    bad = ['{"body": ', "[1]", '{"text": "x"}', '{"body": 3}', '{"body": "\\ud800"}', too_long]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines[:2], *bad, *lines[2:]]) + "\n")
    output = tmp_path / "out.jsonl"
    arguments = ["--field=body", f"--file={tmp_path / 'in.jsonl'}", f"--output={output}", "--batch_size=2"]
    gin.clear_config()
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["predict", f"--model_dir={model_dir}", *arguments])
    assert exit_.value.code == 1
    errors = capsys.readouterr().err
    assert "line 3: It is not JSON" in errors and "6 of 11 lines have no result" in errors
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert ["error" in record for record in records] == [False] * 2 + [True] * 6 + [False] * 3
    found = [record for record in records if "error" not in record]
    expected = predictor.predict(TEXTS)
    assert [record["id"] for record in found] == list(range(5))
    assert [record["prediction"] for record in found] == [prediction.text for prediction in expected]
    np.testing.assert_allclose([record["score"] for record in found], [each.score for each in expected], rtol=1e-4)
    assert ["filled" in record for record in found] == ["<extra_id_0>" in text for text in TEXTS]


def test_a_stream_is_answered_line_by_line(model_dir, monkeypatch, capsys):
    answered = []

    class Lines(io.BytesIO):
        def __next__(self) -> bytes:
            answered.append(capsys.readouterr().out)
            return super().__next__()

    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=Lines(b"plain words\nOne <extra_id_0>\n")))
    gin.clear_config()
    command_line.main(["predict", f"--model_dir={model_dir}", "--stream", "--output=-"])
    assert [json.loads(text)["inputs"] for text in answered[1:]] == ["plain words", "One <extra_id_0>"]
    assert not answered[0]


def test_macros_choose_the_decoder(model_dir, capsys):
    beams = ['--gin.DECODER="beam"', "--gin.NUM_BEAMS=3", "--gin.MAX_DECODE_LENGTH=5"]
    record = json.loads(call(capsys, "predict", f"--model_dir={model_dir}", *beams, "--output=-", TEXTS[0]))
    scores = [candidate["score"] for candidate in record["candidates"]]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True) and "filled" in record
    samples = ['--gin.DECODER="sample"', "--gin.NUM_SAMPLES=4", "--gin.TOP_P=0.99"]
    first, again = (call(capsys, "predict", f"--model_dir={model_dir}", *samples, "words") for _ in range(2))
    assert first == again and len(set(first.splitlines())) > 1
    assert "NUM_BEAMS" in fails(capsys, "predict", f"--model_dir={model_dir}", "--gin.NUM_BEAMS=0", "x")


def test_a_task_makes_inputs_of_fields_and_answers_of_predictions(model_dir, predictor, tmp_path, capsys):
    # The formats of the appendix of Raffel et al. (2020): "sst2 sentence: ...", labels 0 (negative) and 1 (positive).
    lines = ['{"sentence": "a joy to watch"}', '{"sentence": 3}', "{", '{"sentence": "too long, dull", "id": "b"}']
    (tmp_path / "reviews.jsonl").write_text("\n".join(lines) + "\n")
    output = tmp_path / "labels.jsonl"
    arguments = ["--task=glue_sst2", f"--file={tmp_path / 'reviews.jsonl'}", f"--output={output}"]
    gin.clear_config()
    with pytest.raises(SystemExit) as exit_:
        command_line.main(["predict", f"--model_dir={model_dir}", *arguments])
    assert exit_.value.code == 1
    errors = capsys.readouterr().err
    assert "line 2: glue_sst2 cannot preprocess {'sentence': 3}" in errors and "line 3: It is not JSON" in errors
    first, *bad, last = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(bad) == 2 and all("error" in record for record in bad)
    expected = predictor.predict(["sst2 sentence: a joy to watch", "sst2 sentence: too long, dull"])
    assert [first["prediction"], last["prediction"]] == [prediction.text for prediction in expected]
    assert last["id"] == "b" and {first["answer"], last["answer"]} == {-1}  # Four steps of training teach no label.

    sst2 = TaskInputs("glue_sst2")
    (features,) = sst2.preprocessed([{"sentence": "a joy to watch"}])
    assert [sst2.answer(text, features) for text in ("negative", "positive", "neither")] == [0, 1, -1]
    assert "is a mixture" in fails(capsys, "predict", f"--model_dir={model_dir}", "--task=glue", "{}")


def test_score_at_the_command_line(model_dir, model, tmp_path, capsys):
    expected = likelihood(model, "plain words", "a target")
    out = call(capsys, "score", f"--model_dir={model_dir}", "plain words", "a target")
    assert float(out) == pytest.approx(expected, abs=1e-3)
    pairs = [{"q": text, "a": "a target"} for text in TEXTS]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    arguments = [f"--file={tmp_path / 'pairs.jsonl'}", "--inputs=q", "--targets=a", "--output=-"]
    records = [json.loads(line) for line in call(capsys, "score", f"--model_dir={model_dir}", *arguments).splitlines()]
    assert [record["q"] for record in records] == TEXTS
    assert math.isclose(records[1]["score"], expected, rel_tol=1e-4)
