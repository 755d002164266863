"""What a study's table says, against numbers worked out by hand."""

import dataclasses
import math
import pathlib

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.report import study_tables
from switch_tf.runs.study import Study, StudyRun


def finished(folder: pathlib.Path, variant: str, seed: int, values: list[float], steps: int = 300) -> StudyRun:
    """A run's files, without the run."""
    model_dir = folder / f"{variant}-{seed}"
    model_dir.mkdir()
    rows = [f"{step},{value},0.5\n" for step, value in zip((100, 200, 300), values)]
    (model_dir / "eval.csv").write_text("step,neg_log_perplexity,accuracy\n" + "".join(rows))
    (model_dir / "metrics.csv").write_text("step,tokens_per_second\n1,1000\n2,3000\n3,2000\n")
    return StudyRun(variant, seed, str(model_dir), (), (), steps, 10)


@pytest.fixture
def runs(tmp_path) -> list[StudyRun]:
    return [
        finished(tmp_path, "dense", 0, [-4.0, -3.0, -2.0]),
        finished(tmp_path, "dense", 1, [-4.2, -3.2, -2.2]),
        finished(tmp_path, "sparse", 0, [-3.0, -2.0, -1.5]),
        finished(tmp_path, "sparse", 1, [-3.1, -2.3, -1.5]),
        finished(tmp_path, "sparse", 2, [-9.0, -9.0], steps=300),  # Not done yet.
    ]


def test_means_spreads_leads_and_speed_ups(runs):
    dense, sparse = study_tables.summary(study_tables.read_curves(runs), "dense")
    assert (dense["seeds"], sparse["seeds"], sparse["steps"]) == (2, 2, 300)
    np.testing.assert_allclose([dense["neg_log_perplexity"], sparse["neg_log_perplexity"]], [-2.1, -1.5])
    np.testing.assert_allclose([dense["std"], sparse["std"]], [0.2 / 2**0.5, 0.0], atol=1e-12)
    # Paired by seed: 0.5 and 0.7.
    np.testing.assert_allclose([sparse["lead"], sparse["lead_std"]], [0.6, 0.2 / 2**0.5])
    # The mean curve of "sparse" is -3.05, -2.15, -1.5: it reaches -2.1 a thirteenth of the way after step 200.
    reached = 200 + 100 * 0.05 / 0.65
    np.testing.assert_allclose(sparse["steps_to_baseline"], reached)
    np.testing.assert_allclose([sparse["speedup_steps"], sparse["speedup_tokens"]], [300 / reached] * 2)
    np.testing.assert_allclose([dense["lead"], dense["speedup_steps"]], [0.0, 1.0])
    assert sparse["tokens_per_second"] == 2000


def test_a_single_seed_has_no_spread_and_a_missing_baseline_no_lead(runs):
    (row,) = study_tables.summary(study_tables.read_curves(runs[2:3]), "dense")
    assert math.isnan(row["std"]) and math.isnan(row["lead"]) and math.isnan(row["speedup_steps"])


def test_a_student_keeps_a_share_of_its_teachers_gain(tmp_path, runs):
    """Gains of 0.5 and 0.7; the student keeps 0.1 and 0.35 of them: 0.45 of 1.2, shares of 0.2 and 0.5."""
    students = [finished(tmp_path, "student", 0, [-3, -2, -1.9]), finished(tmp_path, "student", 1, [-3, -2, -1.85])]
    rows = study_tables.summary(study_tables.read_curves([*runs, *students]), "dense", "sparse")
    dense, sparse, student = ([row[name] for name in study_tables.SHARE_COLUMNS] for row in rows)
    np.testing.assert_allclose(student, [0.45 / 1.2, 0.3 / 2**0.5])
    np.testing.assert_allclose([dense, sparse], [[0, 0], [1, 0]], atol=1e-12)


def test_a_score_of_a_task_is_compared_at_its_peak(tmp_path, runs, capsys):
    """The pre-trained models that the runs start from have no score, and no row."""
    scored = []
    for name, scores in (("dense", [50, 70, 60]), ("sparse", [60, 80, 90])):
        run = dataclasses.replace(finished(tmp_path, f"tuned {name}", 0, [-4, -3, -2]), score="pair/average")
        rows = [f"{100 * index},pair,average,{value}\n100,pair,other,99\n" for index, value in enumerate(scores, 1)]
        (pathlib.Path(run.model_dir) / "task_eval.csv").write_text("step,task,metric,value\n" + "".join(rows))
        scored.append(run)
    bare = dataclasses.replace(runs[0], score="pair/average")
    curves = study_tables.read_curves([bare, *scored])
    assert {name: curve.final.tolist() for name, curve in curves.items()} == {"tuned dense": [70], "tuned sparse": [90]}
    variants = {"tuned dense": {}, "tuned sparse": {}}
    study = Study(str(tmp_path / "study"), [], variants, teacher="tuned sparse", score="pair/average")
    study_tables.write_report(study, [bare, *scored])
    header, dense, sparse = (tmp_path / "study" / "summary.csv").read_text().splitlines()
    assert header.split(",")[3] == "pair/average" and header.endswith(",share_of_gain,share_std")
    assert dense.split(",")[3] == "70.000000" and sparse.split(",")[-2] == "1.000000"
    curves = (tmp_path / "study" / "curves.csv").read_text().splitlines()
    assert curves[:2] == ["variant,seed,step,tokens,pair/average", "tuned dense,0,100,1000,50.000000"]


def test_reaching_a_value():
    steps, values = np.array([10, 20, 30]), np.array([1.0, 3.0, 2.0])
    assert study_tables.reaches(steps, values, 0.5) == 10
    assert study_tables.reaches(steps, values, 2.0) == 15
    assert math.isnan(study_tables.reaches(steps, values, 4.0))


def test_evaluations_at_different_steps_are_refused(tmp_path, runs):
    other = finished(tmp_path, "sparse", 3, [-3.0, -2.0], steps=200)
    with pytest.raises(SettingError, match="different steps"):
        study_tables.read_curves([*runs, other])


def test_names_of_variants_and_of_a_grid():
    study = Study("folder", ["a.gin"], {"a": {"X": 1}, "b": {"X": 2}}, grid={"Y": [1.0, 2.0]})
    assert list(study.named_bindings()) == ["a, Y=1.0", "a, Y=2.0", "b, Y=1.0", "b, Y=2.0"]
    assert study.named_bindings()["b, Y=1.0"] == {"X": 2, "Y": 1.0}
    assert Study("folder", ["a.gin"], grid={"Y": [1, 2]}).baseline_name == "Y=1"
    with pytest.raises(SettingError, match=r"Study\.variants or Study\.grid"):
        Study("folder", ["a.gin"])
