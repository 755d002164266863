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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E3", 1000.0),
        ("-2e5", -2e5),
        ("1.5e+2", 150.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("100", 100),
        ("'1e-3'", "1e-3"),
        ("1e-3x", "1e-3x"),
        ("v1e3", "v1e3"),
        ("true", True),
        ("null", None),
    ],
)
def test_numbers_arrive_as_python_reads_them(tmp_path, text, value):
    path = tmp_path / "job.yaml"
    path.write_text(f"gin:\n  VALUE: {text}\n")
    read = read_job_file(str(path))["gin"]["VALUE"]
    assert read == value and type(read) is type(value)


def test_a_job_file_in_another_encoding_is_named(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes("name: größe\n".encode("latin-1"))
    with pytest.raises(SettingError, match=r"job\.yaml is no UTF-8 text \(byte 8\): save it as UTF-8"):
        read_job_file(str(path))


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


HOSTILE = (
    "x'; touch hacked; '",
    "$(touch hacked)",
    "`touch hacked`",
    'x"y',
    "x\nTRAIN_STEPS = 1",
    "../../x",
    "x y",
    "\x1b[2J",
    "",
)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize(
    "setting",
    [
        *("name", "project", "zone", "accelerator_type", "runtime_version", "provisioning", "reservation", "network"),
        *("subnetwork", "service_account", "model_dir", "labels: key", "labels: value", "gin: name", "gin: reference"),
    ],
)
def test_hostile_text_is_refused_in_a_printable_line(setting, text):
    if setting == "model_dir":
        text = f"gs://the-bucket/x\n{text}"
    given = {
        "labels: key": {"labels": {text: "x"}},
        "labels: value": {"labels": {"x": f"{text}."}},
        "gin: name": {"gin": {text: 1}},
        "gin: reference": {"gin": {"X": f"@{text}"}},
        "reservation": {"reservation": text, "provisioning": "reserved"},
    }.get(setting, {setting: text})
    with pytest.raises(SettingError) as caught:
        make_job(SETTINGS, given)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?", "a#b", "a\\b", "a\tb", "a\rb", "a\x00b", "\u202eb"])
def test_a_folder_that_is_a_pattern_or_cannot_be_printed_is_refused(name):
    with pytest.raises(SettingError) as caught:
        make_job(SETTINGS, {"model_dir": f"gs://the-bucket/{name}"})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "settings",
    [
        {"network": "projects/host-project/global/networks/shared_vpc-1"},
        {"subnetwork": "projects/example.com:host/regions/us-central1/subnetworks/s"},
        {"service_account": "123-compute@developer.gserviceaccount.com"},
        {"runtime_version": "v2-alpha-tpuv5-lite"},
        {"model_dir": "gs://the-bucket/größe of 文字/it's"},
        {"gin": {"A/b.C.d": "%X", "E": "@a/b.F()", "F": "x @ y"}},
    ],
)
def test_what_is_harmless_is_accepted(settings):
    (setting,) = settings
    assert getattr(make_job(SETTINGS, settings), setting) == settings[setting]


def test_yaml_makes_no_objects(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(f"name: !!python/object/apply:os.system ['touch {tmp_path}/hacked']\n")
    with pytest.raises(SettingError, match=r"is not valid YAML, line 1: could not determine a constructor"):
        read_job_file(str(path))
    assert not (tmp_path / "hacked").exists()


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
