"""The studies that come with the project: each variant is an experiment that can be trained."""

import pathlib

import pytest

from switch_tf.runs import gin_config
from switch_tf.runs.study import Study

ROOT = pathlib.Path(__file__).parents[2]
STUDIES = sorted(path.stem for path in (ROOT / "gin" / "studies").glob("*.gin"))


def study_of(name: str) -> Study:
    gin_config.load([f"gin/studies/{name}.gin"], [])
    return Study()


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_is_made_of_experiments(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    study = study_of(name)
    runs = study.runs()
    assert len(runs) == len(study.seeds) * len(study.named_bindings()) == len({run.model_dir for run in runs})
    assert study.baseline_name in study.named_bindings()
    assert all(run.steps * run.tokens_per_step > 100 * 90_624 for run in runs)  # For each parameter of the dense model.


def test_the_first_seed_of_every_variant_comes_first(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = study_of("experts").runs()
    assert [run.seed for run in runs] == [0] * 7 + [1] * 7 + [2] * 7
    dense = runs[0]
    assert dense.model_dir == "runs/studies/experts/dense-seed0" and dense.tokens_per_step == 96 * 128
    assert "NUM_EXPERTS = 0" in dense.bindings and "SEED = 0" in dense.bindings
    assert dense.command().endswith("""'--gin.MODEL_DIR='"'"'runs/studies/experts/dense-seed0'"'"''""")
