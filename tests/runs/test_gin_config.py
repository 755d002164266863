"""Gin mistakes end in one sentence that names the binding and the remedy."""

import gin
import pytest

from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.runs import gin_config

SMALL = "gin/models/t5_small.gin"


def test_bindings_override_later_files_override_earlier_ones(tmp_path):
    (tmp_path / "mine.gin").write_text("VOCAB_SIZE = 100\nModelConfig.d_ff = 7\n")
    gin_config.load([SMALL, "mine.gin"], ["ModelConfig.d_ff = 9"], [str(tmp_path)])
    config = ModelConfig()
    assert (config.vocab_size, config.d_ff, config.d_model) == (100, 9, 512)


def test_a_second_load_forgets_the_first():
    gin_config.load(["gin/models/switch_base_8.gin"], [])
    gin_config.load([SMALL], [])
    assert ModelConfig().num_experts == 0


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("TRIAN_STEPS = 3", r"TRIAN_STEPS is set, but nothing .* reads it"),
        ("VOCAB_SIZ = 3", r"VOCAB_SIZ is set.*did you mean 'VOCAB_SIZE'"),
        ("ModelConfig.d_moddel = 3", r"--gin\.ModelConfig\.d_moddel.*d_moddel"),
        ("ModelConfigg.d_model = 3", r"--gin\.ModelConfigg\.d_model.*ModelConfigg"),
        ("ModelConfig.d_model = ]", r"--gin\.ModelConfig\.d_model"),
        ("ModelConfig.d_model = %WIDTH", r"WIDTH has no value: set it with --gin\.WIDTH"),
    ],
)
def test_a_wrong_binding_is_named(binding, message):
    with pytest.raises(SettingError, match=message) as caught:
        gin_config.load([SMALL], [binding])
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named_with_the_nearest_one():
    with pytest.raises(SettingError, match=r"t5_smal\.gin is not there.*did you mean 'gin/models/t5_small\.gin'"):
        gin_config.load(["gin/models/t5_smal.gin"], [])


def test_a_missing_module_is_named(tmp_path):
    (tmp_path / "mine.gin").write_text("import no_such_module\n")
    with pytest.raises(SettingError, match=r"mine\.gin: No module named 'no_such_module'"):
        gin_config.load(["mine.gin"], [], [str(tmp_path)])


def test_macros_can_be_read():
    gin_config.load([SMALL], [])
    assert gin_config.macro("VOCAB_SIZE") == 32128
    assert gin_config.macro("ABSENT", "default") == "default"


def test_the_recorded_configuration_gives_the_same_model():
    gin_config.load(["gin/models/switch_base_8.gin"], ["CAPACITY_FACTOR = 1.5"])
    config = ModelConfig()
    recorded = gin.operative_config_str()
    gin_config.load([], [], recorded=recorded)
    assert ModelConfig() == config


def test_the_macro_that_a_file_was_looked_for_by():
    for name, value in (("MODEL_DIR", "gs://b/run"), ("TRAIN_FILES", ["gs://a/x.txt", "gs://b/run2/*.txt"]), ("N", 3)):
        gin.bind_parameter(f"{name}/gin.macro.value", value)
    found = gin_config.macro_of_path
    assert found("gs://b/run/config.gin") == "MODEL_DIR = 'gs://b/run'"
    assert found("gs://b/run2/1.txt") == "TRAIN_FILES = 'gs://b/run2/*.txt'"
    assert found("gs://c/run") is None


def test_parameters_are_read_with_their_macros_and_references_resolved():
    from switch_tf.runs import loop  # noqa: F401 (registers what the files bind)

    gin_config.load(["gin/runs/python_docs.gin"], ["BATCH_SIZE = 24", "Experiment.seed = 7"])
    assert gin_config.parameter("Experiment.batch_size") == 24
    assert gin_config.parameter("Experiment.seed") == 7
    assert gin_config.parameter("train.objective").balance_loss == 1e-2
    assert gin_config.parameter("Experiment.absent", "default") == "default"
    gin_config.load([SMALL], [])
    with pytest.raises(SettingError, match=r"Nothing binds Experiment\.seed: add --gin_file=gin/runs/pretrain\.gin"):
        gin_config.parameter("Experiment.seed", gin_file="gin/runs/pretrain.gin")
