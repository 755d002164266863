"""Bindings that nothing reads and values of the wrong type are refused before anything is made."""

import itertools
import pathlib

import gin
import pytest

from switch_tf import compat
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.runs import gin_bindings, gin_config, loop, study
from switch_tf.runs.experiment import Experiment, configured_lengths

RUN = ["gin/models/switch_base_8.gin", "gin/runs/python_docs.gin"]
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("num_experts = 32", r"^num_experts is set, but nothing .* reads it \(did you mean 'NUM_EXPERTS'\?\)\.$"),
        ("Num_Experts = 32", r"^Num_Experts is set.*did you mean 'NUM_EXPERTS'"),
        ("experts/NUM_EXPERTS = 32", r"^experts/NUM_EXPERTS is set.*did you mean 'NUM_EXPERTS'"),
        ("dropout_rate = 0.5", r"^dropout_rate is set.*did you mean 'DROPOUT_RATE'"),
        ("NUM_EXPERT = 32", r"^NUM_EXPERT is set.*did you mean 'NUM_EXPERTS'"),
        ("eval/Experiment.seed = 3", r"^eval/Experiment\.seed is set, but nothing refers to @eval/Experiment\(\)"),
        (
            "WarmupAndDecay.warmup_steps = 3",
            r"^WarmupAndDecay\.warmup_steps is set, but nothing.*refers to @WarmupAndD",
        ),
    ],
)
def test_what_nothing_reads_is_refused(binding, message):
    with pytest.raises(SettingError, match=message):
        gin_config.load(RUN, [binding])


def test_what_something_reads_is_not():
    gin_config.load(
        RUN, ["mine = 3", "ModelConfig.num_experts = %mine", "sub/wide/WIDTH = 8", "ModelConfig.d_ff = %sub/wide/WIDTH"]
    )
    assert (ModelConfig().num_experts, ModelConfig().d_ff) == (3, 8)
    schedule = ["Adafactor.learning_rate = @late/WarmupAndDecay()", "late/WarmupAndDecay.warmup_steps = 3"]
    gin_config.load(RUN, schedule)
    # The reader of a macro has been overridden: the macro is allowed.
    gin_config.load(RUN, ["NUM_EXPERTS = 8", "ModelConfig.num_experts = 4"])


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("BATCH_SIZE = 8.0", "BATCH_SIZE = 8.0 must be of the type int."),
        ("TRAIN_STEPS = 2.5", "TRAIN_STEPS = 2.5 must be of the type int."),
        ("train.steps = '3'", "train.steps = '3' must be of the type int."),
        ("SEED = None", "SEED = None must be of the type int."),
        ("USE_CACHED = 1", "USE_CACHED = 1 must be of the type bool."),
        ("DROPOUT_RATE = '0.1'", "DROPOUT_RATE = '0.1' must be of the type float."),
        ("NUM_EVAL_BATCHES = 1.5", "NUM_EVAL_BATCHES = 1.5 must be of the type int or None."),
        ("HOOKS = 'mine'", "HOOKS = 'mine' must be of the type Sequence[switch_tf.runs.hooks.Hook]."),
        ("HOOKS = [3]", "HOOKS = [3] must be of the type Sequence[switch_tf.runs.hooks.Hook]."),
        ("PROFILE_STEPS = (1, 2, 3)", "PROFILE_STEPS = (1, 2, 3) must be of the type tuple[int, int] or None."),
        ("VOCABULARY = 'x.model'", "VOCABULARY = 'x.model' must be of the type Vocabulary or None."),
        ("BATCH_SIZE = @Objective()", "BATCH_SIZE = @Objective() must be of the type int."),
        ("train.objective = @ModelConfig()", "train.objective = @ModelConfig() must be of the type Objective."),
        (
            "ModelConfig.d_kv = @train()",
            "ModelConfig.d_kv = @train() must be of the type int.",
        ),
        ("HOOKS = @train()", "HOOKS = @train() must be of the type Sequence[switch_tf.runs.hooks.Hook]."),
        ("TASK_FEATURE_LENGTHS = {'inputs': 8.5}", None),
        ("TASK_FEATURE_LENGTHS = 512", None),
    ],
)
def test_a_wrong_type_is_one_sentence_before_anything_is_made(binding, message):
    with pytest.raises(SettingError) as caught:
        gin_config.load(RUN, [binding])
    expected = message or f"{binding} must be of the type Mapping[str, int]."
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("binding", "name"),
    [
        (f"SEED = 0x{'f' * 5000}", "SEED"),  # Python does not even print it.
        ("ModelConfig.d_ff = 9223372036854775808", "ModelConfig.d_ff"),
        ("LEARNING = 1e999\nConstant.value = %LEARNING\nAdafactor.learning_rate = @Constant()", "LEARNING"),
        ("TASK_FEATURE_LENGTHS = {'inputs': -1e999, 'targets': 8}", "TASK_FEATURE_LENGTHS"),
    ],
)
def test_numbers_that_nothing_computes_with_are_refused(binding, name):
    with pytest.raises(SettingError) as caught:
        gin_config.load(RUN, [binding])
    assert str(caught.value) == (
        f"{name} has a number that is infinite, or an integer of more than 64 bits: take a smaller one."
    )


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("HOOKS = [", r"^--gin\.HOOKS=\[: a bracket or a quote is not closed\.$"),
        ("SEED = @gin.macro()", r"^A value refers to a macro without a name: write %NAME\.$"),
        ("SEED = {'x': %SEED}", r"^SEED refers to itself: give it a value\.$"),
        ("HOOKS = [[%HOOKS]]", r"^HOOKS refers to itself: give it a value\.$"),
    ],
)
def test_values_that_have_no_end_are_refused(binding, message):
    with pytest.raises(SettingError, match=message):
        gin_config.load(RUN, [binding])


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ("{'inputs': 8}", "is not of the form"),
        ("{}", "is not of the form"),
        (
            "{'inputs': 8, 'targets': 0}",
            r"TASK_FEATURE_LENGTHS\['targets'\] = 0 must be at least 1, and at most 1,048,576",
        ),
        (
            "{'inputs': 2147483648, 'targets': 8}",
            r"\['inputs'\] = 2147483648 must be at least 1, and at most 1,048,576",
        ),
    ],
)
def test_lengths_are_checked_with_and_without_an_experiment(lengths, message):
    gin_config.load(RUN, [f"TASK_FEATURE_LENGTHS = {lengths}"])
    for check in (Experiment, configured_lengths):
        with pytest.raises(SettingError, match=message):
            check()


def test_a_recorded_configuration_is_read_with_what_its_macros_made():
    """gin records what `VOCABULARY = @VocabularyFile()` made in a scope of the macro's name."""
    recorded = "import tasks.vocabularies\nVOCABULARY = @VocabularyFile()\nVOCABULARY/VocabularyFile.path = 'x.model'\n"
    recorded += "Experiment.vocabulary = %VOCABULARY\n"
    gin_config.load([], ["VOCABULARY/VocabularyFile.path = 'y.model'"], recorded=recorded)
    assert gin_config.parameter("Experiment.vocabulary").path == "y.model"


@pytest.mark.parametrize(("written", "meant"), [("true", "True"), ("FALSE", "False"), ("null", "None")])
def test_literals_of_other_languages_are_translated(written, meant):
    with pytest.raises(
        SettingError, match=rf"^--gin\.USE_CACHED={written} is not .*: write --gin\.USE_CACHED={meant}\.$"
    ):
        gin_config.load(RUN, [f"USE_CACHED = {written}"])


def test_macros_inside_of_dicts_and_lists_have_types_too(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    lengths = "TASK_FEATURE_LENGTHS = {'inputs': %LENGTH, 'targets': 8}"
    gin_config.load(RUN, [lengths, "LENGTH = 16"])
    assert Experiment().task_feature_lengths == {"inputs": 16, "targets": 8}
    with pytest.raises(SettingError, match="must be of the type"):
        gin_config.load(RUN, [lengths, "LENGTH = 16.5"])


@gin.configurable
class Foreign:
    """A class of somebody's own, whose annotations are not ours to judge."""

    def __init__(self, period: int = None, pair: list[int] = (1, 2)):  # noqa: RUF013 (as many people write it)
        self.period, self.pair = period, pair


def test_classes_of_ones_own_are_taken_as_they_are():
    gin_config.load(RUN, ["Foreign.period = None", "Foreign.pair = (3, 4)", "eval/Foreign.period = 3"])
    with gin.config_scope("eval"):
        assert Foreign().period == 3
    with pytest.raises(SettingError, match=r"Foreign\.period = 'x' must be of the type int"):
        gin_config.load(RUN, ["Foreign.period = 'x'"])


def test_describe_takes_settings_of_the_optimizer_with_a_model_file_alone():
    gin_config.load(["gin/models/switch_tiny_8.gin"], ["Adafactor.min_size_to_factor = 64"])


def test_a_circle_of_macros_is_named():
    with pytest.raises(SettingError, match=r"is a circle of macros"):
        gin_config.load(RUN, ["SEED = %OTHER", "OTHER = %SEED"])


@pytest.mark.parametrize("value", ["/x", "runs/mine", "gs://bucket/x", "2024/mine", "mine"])
def test_a_string_without_quotes_is_told_from_other_mistakes(value):
    with pytest.raises(SettingError) as caught:
        gin_config.load(RUN, [f"MODEL_DIR = {value}"])
    assert str(caught.value) == (
        f"--gin.MODEL_DIR={value} is not a valid gin value: a string needs quotes, --gin.MODEL_DIR='\"{value}\"'."
    )


def test_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    gin_config.load(RUN, ["MODEL_DIR = '~/run'", "VocabularyFile.path = '~'", "VOCABULARY = @VocabularyFile()"])
    assert gin.query_parameter("MODEL_DIR/gin.macro.value") == "/home/somebody/run"
    assert gin.query_parameter("VocabularyFile.path") == "/home/somebody"


def test_no_model_directory_is_no_folder():
    gin_config.load(RUN, ["MODEL_DIR = ''"])
    with pytest.raises(SettingError, match=r"^MODEL_DIR = '' names no folder"):
        Experiment()
    gin_config.load(RUN, ["MODEL_DIR = 'gs://bucket/lr[0.1]'"])
    with pytest.raises(
        SettingError, match=r"^MODEL_DIR = 'gs://bucket/lr\[0\.1\]' has one of .* a pattern in a bucket"
    ):
        Experiment()


def test_every_shipped_file_is_read_with_the_right_types():
    assert loop.train  # Its module registers what the files bind.
    folder = ROOT / "gin"
    models = sorted((folder / "models").glob("*.gin"))
    runs = sorted((folder / "runs").glob("*.gin"))
    layouts = sorted((folder / "layouts").glob("*.gin"))
    count = max(map(len, (models, runs, layouts)))
    whole = [path for path in runs if path.stem not in ("decoding", "distill", "distill_finetuned")]
    for model, run, layout in itertools.islice(zip(*map(itertools.cycle, (models, whole, layouts))), count):
        if layout.stem.endswith("_switch_c"):  # They set its groups.
            model = folder / "models" / "switch_c_2048.gin"
        gin_config.load([str(path.relative_to(ROOT)) for path in (model, run, layout)], [])


def test_every_configurable_of_ours_is_called_or_referred_to_by_a_shipped_file():
    """The list of configurables that code calls is complete."""
    assert study.Study  # Its module registers it.
    for name in gin_bindings._CALLED:
        assert gin.get_configurable(name)
    assert "Objective" not in gin_bindings._CALLED and compat.gin_bindings() == {}
