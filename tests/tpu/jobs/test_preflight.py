"""Checks of a job before anything is sent."""

import dataclasses

import gin
import pytest

from switch_tf.errors import SettingError
from switch_tf.runs import gin_config
from tpu.jobs.preflight import check_job

BASE = ("gin/models/switch_base_128.gin", "gin/runs/pretrain_c4.gin", "gin/layouts/v3_32.gin")


@pytest.fixture
def base(job):
    """Switch-Base-128 on the paper's 32 cores."""
    return dataclasses.replace(job, gin_files=BASE, gin={"TRAIN_STEPS": 1000})


def test_the_whole_configuration_becomes_one_file(base, tmp_path):
    job, text = check_job(base, ["BATCH_SIZE = 1024"])
    assert job == base
    before = gin.config_str()
    path = tmp_path / "experiment.gin"
    path.write_text(text)
    gin_config.load([str(path)], [])
    assert gin.config_str() == before
    assert (gin_config.macro("MODEL_DIR"), gin_config.macro("TRAIN_STEPS")) == (job.model_dir, 1000)
    assert gin_config.macro("BATCH_SIZE") == 1024


def test_gin_may_set_the_model_directory(base):
    job, _ = check_job(dataclasses.replace(base, model_dir=None), ["MODEL_DIR = 'gs://the-bucket/of-gin/'"])
    assert job.model_dir == "gs://the-bucket/of-gin"


@pytest.mark.parametrize(
    ("settings", "bindings", "message"),
    [
        ({"gin_files": ()}, [], "The job has no gin_files"),
        ({"gin_files": ("gin/models/switch_bas_128.gin",)}, [], "did you mean 'gin/models/switch_base_128.gin'?"),
        ({"gin": {"TRIAN_STEPS": 3}}, [], "TRIAN_STEPS is set, but nothing in these gin files reads it"),
        ({"model_dir": None}, [], "MODEL_DIR has no value"),
        ({"model_dir": None}, ["MODEL_DIR = 'runs/mine'"], "model_dir = 'runs/mine' is not in a bucket"),
        (
            {"accelerator_type": "v3-128"},
            [],
            "has 32 devices, but v3-128 has 128: make them equal, or use accelerator_",
        ),
        ({"accelerator_type": "v4-32"}, [], "v4-32 has 16: make them equal, or use accelerator_type = 'v4-64'."),
        ({"gin_files": BASE[:2]}, [], "ENGINE = 'single' runs in one process, but v3-32 has 4 hosts"),
        ({}, ["NUM_LOGICAL_DEVICES = 8"], "NUM_LOGICAL_DEVICES = 8 splits a CPU into devices"),
        ({}, ["BATCH_SIZE = 100"], "100 / 4 = 25 is no multiple of 32"),
        ({"gin": {"BATCH_SIZE": 8.0}}, [], "BATCH_SIZE = 8.0 must be of the type int."),
        ({}, ["TRAIN_STEPS = '1e-3'"], "TRAIN_STEPS = '1e-3' must be of the type int."),
        ({}, ["InverseSquareRoot.base = '1'"], "InverseSquareRoot.base = '1' must be of the type float."),
        ({}, ["CHECKPOINT_PERIOD = 0"], "CHECKPOINT_PERIOD = 0 must be"),
        ({}, ["num_experts = 32"], "num_experts is set, but nothing in these gin files reads it"),
        ({}, ["NUM_EXPERTS = 12"], "NUM_EXPERTS = 12 is no multiple of 32"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(base, settings, bindings, message):
    with pytest.raises(SettingError) as caught:
        check_job(dataclasses.replace(base, **settings), bindings)
    assert message in str(caught.value)


@pytest.mark.parametrize("binding", ["MESH_SHAPE = 'data:16,model:1'", "Experiment.mesh_shape = 'data:16,model:1'"])
def test_macros_and_parameters_mean_the_same(base, binding):
    """`v3_32.gin` binds 32 devices; either way of binding 16 overrides it."""
    fitting = dataclasses.replace(base, accelerator_type="v4-32")
    assert check_job(fitting, [binding])[0] == fitting
    with pytest.raises(SettingError, match="'data:16,model:1' has 16 devices, but v3-32 has 32"):
        check_job(base, [binding])


@pytest.mark.parametrize(
    "text",
    [
        'it\'s "quoted"',
        "$(touch x) `y`",
        "two\nlines = 3",
        "back\\slash\\",
        "größe 文字 \u202e",
        "# %x @y()",
        "long " * 99,
    ],
)
def test_text_arrives_on_the_hosts_as_it_was_written(base, tmp_path, text):
    own_text = dataclasses.replace(base, gin_files=(BASE[0], "gin/runs/pretrain_files.gin", BASE[2]))
    job = dataclasses.replace(own_text, gin={"TRAIN_FILES": text, "TRAIN_STEPS": 3})
    path = tmp_path / "experiment.gin"
    path.write_text(check_job(job)[1])
    gin_config.load([str(path)], [])
    assert (gin_config.macro("TRAIN_FILES"), gin_config.macro("TRAIN_STEPS")) == (text, 3)


def test_references_are_resolved(base):
    """`%DEVICES` is a macro of the user's, read by a parameter."""
    bindings = ["DEVICES = 'data:16,model:1'", "Experiment.mesh_shape = %DEVICES"]
    with pytest.raises(SettingError, match="'data:16,model:1' has 16 devices, but v3-32 has 32"):
        check_job(base, bindings)


def test_one_model_directory(base):
    with pytest.raises(SettingError, match="gin binds 'gs://the-bucket/other': leave one of them out"):
        check_job(base, ["Experiment.model_dir = 'gs://the-bucket/other'"])


def test_a_model_alone_is_no_experiment(base):
    job = dataclasses.replace(base, gin_files=BASE[:1], gin={}, model_dir=None)
    with pytest.raises(SettingError, match=r"Required bindings for `Experiment`.* add --gin_file=gin/runs/"):
        check_job(job)


def test_one_chip_needs_no_mesh(base):
    job = dataclasses.replace(base, accelerator_type="v5litepod-1", gin_files=BASE[:2])
    assert "ENGINE = 'single'" in check_job(job)[1]
