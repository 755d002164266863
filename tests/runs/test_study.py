"""The studies that come with the project: each variant is an experiment that can be trained."""

import pathlib

import pytest

from switch_tf.errors import SettingError
from switch_tf.runs import gin_config
from switch_tf.runs.study import Study, StudyRun, ready_runs

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
    # What a run starts from is a run of the study, and comes before it.
    for index, run in enumerate(runs):
        assert {other.model_dir for other in runs[:index]}.issuperset(run.needs)
    if study.score is None:
        # For each parameter of the dense model.
        assert all(run.steps * run.tokens_per_step > 100 * 90_624 for run in runs)


def test_the_first_seed_of_every_variant_comes_first(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = study_of("experts").runs()
    assert [run.seed for run in runs] == [0] * 8 + [1] * 8 + [2] * 8
    dense = runs[0]
    assert dense.model_dir == "runs/studies/experts/dense-seed0" and dense.tokens_per_step == 48 * 128
    assert "NUM_EXPERTS = 0" in dense.bindings and "SEED = 0" in dense.bindings
    assert dense.command().endswith("""'--gin.MODEL_DIR='"'"'runs/studies/experts/dense-seed0'"'"''""")


def test_a_student_starts_from_the_teacher_of_its_seed(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = study_of("distillation").runs()
    assert [run.variant for run in runs[:3]] == ["dense", "16 experts", "distilled"]
    student = next(run for run in runs if run.variant == "distilled" and run.seed == 1)
    assert student.needs == ("runs/studies/distillation/16_experts-seed1",)
    assert "TEACHER = 'runs/studies/distillation/16_experts-seed1'" in student.bindings
    assert student.gin_files[-1] == "gin/runs/distill.gin" and runs[0].gin_files[-1] != "gin/runs/distill.gin"


def finish(run: StudyRun) -> None:
    folder = pathlib.Path(run.model_dir)
    folder.mkdir(parents=True)
    (folder / "eval.csv").write_text("step,neg_log_perplexity\n10,-3.0\n")


def test_a_run_is_ready_when_what_it_starts_from_is_done(tmp_path):
    teacher = StudyRun("teacher", 0, str(tmp_path / "teacher"), (), (), 10, 1)
    student = StudyRun("student", 0, str(tmp_path / "student"), (), (), 10, 1, needs=(teacher.model_dir,))
    assert ready_runs([student, teacher]) == [teacher]
    finish(teacher)
    assert ready_runs([student, teacher]) == [student]
    finish(student)
    assert ready_runs([student, teacher]) == []


VARIANTS = {"a": {"X": 1}, "b": {"X": 2}}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"starts_from": {"a": {"TEACHER": "c"}}}, r"Study\.starts_from = 'c' is no variant"),
        ({"starts_from": {"a": {"TEACHER": "b"}, "b": {"TEACHER": "a"}}}, r"is a circle: a <- b <- a"),
        ({"teacher": "c"}, r"Study\.teacher = 'c' is no variant"),
        ({"more_gin_files": {"c": []}}, r"Study\.more_gin_files = 'c' is no variant"),
    ],
)
def test_variants_that_do_not_fit_together_are_refused(settings, sentence):
    with pytest.raises(SettingError, match=sentence):
        Study("folder", ["a.gin"], VARIANTS, **settings)
