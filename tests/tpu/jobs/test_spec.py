"""Descriptions of jobs."""

import pytest

from switch_tf.errors import SettingError
from tpu.jobs.spec import make_job, read_job_file

SETTINGS = {
    "name": "mine",
    "project": "the-project",
    "zone": "europe-west4-a",
    "accelerator_type": "v3-32",
    "model_dir": "gs://the-bucket/runs/mine",
}


def test_later_sources_override_and_mappings_are_merged(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(
        "name: of-the-file\nzone: us-central1-a\nlabels: {team: research, year: 2026}\n"
        "gin_files: gin/a.gin\ngin:\n  TRAIN_STEPS: 100\n  VOCABULARY: '@VocabularyFile()'\n  MIXTURE_OR_TASK: c4\n"
    )
    flags = {**SETTINGS, "zone": None, "labels": {"team": "mine"}, "gin": {"TRAIN_STEPS": 5}}
    job = make_job(read_job_file(str(path)), flags)
    assert (job.name, job.zone) == ("mine", "us-central1-a")
    assert job.labels == {"team": "mine", "year": "2026"}
    assert job.gin_files == ("gin/a.gin",)
    assert job.bindings == ["TRAIN_STEPS = 5", "VOCABULARY = @VocabularyFile()", "MIXTURE_OR_TASK = 'c4'"]
    assert make_job(job.to_dict()) == job


def test_project_and_zone_may_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "of-the-environment")
    monkeypatch.setenv("CLOUDSDK_COMPUTE_ZONE", "us-east1-d")
    bare = {name: value for name, value in SETTINGS.items() if name not in ("project", "zone")}
    assert make_job(bare).parent == "projects/of-the-environment/locations/us-east1-d"
    assert make_job(SETTINGS).project == "the-project"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"accelerator": "v3-32"}, "'accelerator' is not a setting of a job (did you mean 'accelerator_type'?)."),
        ({"qqq": 1}, "'qqq' is not a setting of a job (available: name, project, zone,"),
        ({"accelerator_type": "v3-31"}, "accelerator_type = 'v3-31' is not a TPU slice (available: v3-8, v3-32,"),
        ({"name": "Mine"}, "name = 'Mine' must be at most 40 lower-case letters"),
        ({"name": "m" * 41}, "must be at most 40"),
        ({"zone": "europe"}, "zone = 'europe' must be a zone such as"),
        ({"provisioning": "cheap"}, "provisioning = 'cheap' is not one of on-demand, spot, reserved."),
        ({"reservation": "r"}, "reservation = 'r' needs provisioning = 'reserved'."),
        ({"max_restarts": -1}, "max_restarts = -1 must be at least 0."),
        ({"max_restarts": "three"}, "max_restarts = 'three' must be a number."),
        ({"max_restarts": True}, "max_restarts = True must be a number."),
        ({"keep": 1}, "keep = 1 must be true or false."),
        ({"name": 7}, "name = 7 must be text."),
        ({"gin_files": [1]}, "gin_files = [1] must be a list of names."),
        ({"labels": ["a"]}, "labels = ['a'] must be of the form NAME: value."),
        ({"labels": {"Team": "x"}}, "labels: key = 'Team' must be lower-case letters"),
        ({"labels": {"switch-tf-job": "x"}}, "'switch-tf-job' is reserved for switch-tf"),
        ({"model_dir": "runs/mine"}, "model_dir = 'runs/mine' is not in a bucket"),
        ({"model_dir": "gs://the-bucket"}, "make it gs://BUCKET/FOLDER"),
    ],
)
def test_mistakes_are_one_sentence(settings, message):
    with pytest.raises(SettingError) as caught:
        make_job(SETTINGS, settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_settings_are_named(monkeypatch):
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT", raising=False)
    with pytest.raises(SettingError, match="The job has no project: set it in --job=FILE or with --project="):
        make_job({**SETTINGS, "project": None})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "is not valid YAML, line 2"),
        ("- a", "is not of the form NAME: value"),
        (None, "cannot be read: No such"),
    ],
)
def test_unreadable_files(tmp_path, text, message):
    path = tmp_path / "job.yaml"
    if text is not None:
        path.write_text(text + "\n")
    with pytest.raises(SettingError) as caught:
        read_job_file(str(path))
    assert message in str(caught.value)
