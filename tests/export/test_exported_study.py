"""A study's runs, exported and trained by JAX alone, end where `switch-tf train` ends."""

import csv
import json
import pathlib
import subprocess
import sys

import gin
import pytest

from switch_tf.cli import main as command_line
from switch_tf.runs import gin_config
from switch_tf.runs.study import Study
from tools import export_study

pytest.importorskip("jax", reason="the [aot] extra is not installed")
ROOT = pathlib.Path(__file__).parents[2]
STUDY = "tests/support/tiny_study.gin"


def values(folder: pathlib.Path) -> list[tuple[str, float]]:
    with open(folder / "eval.csv", newline="") as file:
        return [(row["step"], float(row["neg_log_perplexity"])) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_jax_trains_an_exported_run_as_tensorflow_does(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    folder = tmp_path / "study"
    bindings = [f"Study.folder = '{folder}'"]
    export_study.main([STUDY, f"--output={tmp_path / 'exported'}", f"--binding={bindings[0]}", "--seeds=1"])
    runs = json.loads((tmp_path / "exported" / "runs.json").read_text())
    # The variants share the batches; each has a program of its own.
    assert len({run["training"] for run in runs}) == 1 and len({run["program"] for run in runs}) == len(runs) == 2
    program = [sys.executable, ROOT / "tools" / "train_exported_study.py", tmp_path / "exported", tmp_path]
    subprocess.run(list(map(str, program)), check=True, env={"JAX_PLATFORMS": "cpu"}, cwd=tmp_path)
    gin_config.load([STUDY], [*bindings, "Study.seeds = (1,)"])
    for run in Study().runs():
        gin.clear_config()
        in_tensorflow = tmp_path / "in_tensorflow" / run.variant
        command_line.main([*run.arguments(), f"--gin.MODEL_DIR='{in_tensorflow}'"])
        found, expected = values(pathlib.Path(run.model_dir)), values(in_tensorflow)
        assert [step for step, _ in found] == [step for step, _ in expected]
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], abs=1e-4)
