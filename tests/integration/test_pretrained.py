"""The small models that come with the repository."""

import math
import re

import pytest

from switch_tf.checkpoints.folder import find_checkpoint
from switch_tf.cli import main as command_line
from tests.support.launch import ROOT

MODELS = {"t5_nano": (90_624, -3.579), "switch_nano_16": (584_192, -3.291)}


@pytest.mark.parametrize("name", MODELS)
def test_predict_takes_it_as_it_is(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # Its own settings name a folder of the repository.
    flags = ["--gin.DECODER='sample'", "--gin.TOP_P=0.7", "x : array_like <extra_id_0> Returns <extra_id_1>"]
    command_line.main(["predict", f"--model_dir={ROOT / 'pretrained' / name}", *flags])
    filled = re.search(r"x : array_like \[(.*)\] Returns \[(.*)\]", capsys.readouterr().out)
    assert any(filled.groups())


@pytest.mark.parametrize("name", MODELS)
def test_its_size_is_what_its_page_says(name):
    checkpoints, step = find_checkpoint(str(ROOT / "pretrained" / name))
    shapes = checkpoints.manifest(step).shapes
    count = sum(math.prod(shape) for weight, shape in shapes.items() if weight != "step")
    page = (ROOT / "pretrained" / "README.md").read_text()
    assert (step, count) == (1600, MODELS[name][0])
    assert re.search(rf"`{name}`.*\| {count:,} \| {MODELS[name][1]} \|", page)


@pytest.mark.slow  # Extracts the corpus.
@pytest.mark.parametrize("name", MODELS)
def test_its_likelihood_is_what_its_page_says(name, capsys):
    command_line.main(["evaluate", f"--model_dir={ROOT / 'pretrained' / name}"])
    found = float(re.search(r"neg_log_perplexity +(-\d\.\d+)", capsys.readouterr().out)[1])
    assert found == pytest.approx(MODELS[name][1], abs=5e-3)  # The page: 24 batches.
