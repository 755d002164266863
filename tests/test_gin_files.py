"""Every gin file composes with the others, and what the shipped ones say is what the documents say."""

import itertools
import pathlib

import pytest

import switch_tf.runs.loop  # noqa: F401 (registers `train`)
from switch_tf.models.config import ModelConfig
from switch_tf.runs import gin_config
from switch_tf.runs.experiment import Experiment
from switch_tf.runs.teacher_settings import configured_teacher
from switch_tf.training.distillation import SoftLoss

GIN = pathlib.Path(__file__).parents[1] / "gin"
MODELS = sorted(path.stem for path in (GIN / "models").glob("*.gin"))
# The sequences in a batch of each.
RUNS = {
    "pretrain": 2048,
    "pretrain_c4": 2048,
    "pretrain_files": 2048,
    "pretrain_multilingual": 1024,
    "python_docs": 16,
    "installed_docs": 48,
    "finetune": 2048,
}


@pytest.mark.parametrize(
    ("model", "run"),
    # The fast tests have every model once and every run once.
    [
        pytest.param(model, run, marks=() if run == "pretrain" or model == "switch_base_8" else pytest.mark.slow)
        for model, run in itertools.product(MODELS, RUNS)
    ],
)
def test_models_and_runs_compose(model, run):
    bindings = ['MODEL_DIR = "unused"', 'MIXTURE_OR_TASK = "unused"', "Experiment.model = @ModelConfig()"]
    if run == "finetune":
        bindings.append('INITIAL_CHECKPOINT = "unused"')
    gin_config.load([f"gin/models/{model}.gin", f"gin/runs/{run}.gin"], bindings)
    gin_config.check_required(but=("TRAIN_FILES",))
    experiment = Experiment()
    assert experiment.model == ModelConfig()
    assert experiment.batch_size == RUNS[run]
    assert experiment.model.dropout_rate == (0.1 if run == "finetune" else 0.0)


@pytest.mark.parametrize("run", [run for run in RUNS if run != "finetune"])
def test_distillation_composes_with_pre_training(run):
    bindings = ['MODEL_DIR = "unused"', 'MIXTURE_OR_TASK = "unused"', 'TEACHER = "teacher"']
    gin_config.load(["gin/models/t5_small.gin", f"gin/runs/{run}.gin", "gin/runs/distill.gin"], bindings)
    gin_config.check_required(but=("TRAIN_FILES",))
    teacher = configured_teacher()
    assert (teacher.checkpoint, teacher.soft_loss, teacher.initialize_student) == ("teacher", SoftLoss(), True)
    assert Experiment().batch_size == RUNS[run]
    assert Experiment().vocabulary.checkpoint == "teacher"


def test_distillation_of_a_fine_tuned_teacher_needs_no_initial_checkpoint():
    bindings = ['MODEL_DIR = "unused"', 'MIXTURE_OR_TASK = "unused"', 'TEACHER = "teacher"']
    gin_files = ["gin/models/t5_small.gin", "gin/runs/finetune.gin", "gin/runs/distill_finetuned.gin"]
    gin_config.load(gin_files, bindings)
    gin_config.check_required()
    assert configured_teacher().soft_loss.fraction == 0.25
    assert gin_config.parameter("train.initial_checkpoint") is None
    assert Experiment().model.dropout_rate == 0.1


@pytest.mark.parametrize("precision", sorted(path.stem for path in (GIN / "precision").glob("*.gin")))
def test_precisions_compose_with_models(precision):
    gin_config.load(["gin/models/switch_base_8.gin", f"gin/precision/{precision}.gin"], [])
    config = ModelConfig()
    dtypes = {"float32": ("float32",) * 2, "bfloat16": ("bfloat16",) * 2, "selective": ("bfloat16", "float32")}
    assert (config.activation_dtype, config.router_dtype) == dtypes[precision]


def config_of(model: str) -> ModelConfig:
    gin_config.load([f"gin/models/{model}.gin"], [])
    return ModelConfig()


def test_released_switch_settings():
    base, large, xxl, c = map(config_of, ("switch_base_128", "switch_large_128", "switch_xxl_128", "switch_c_2048"))
    assert [config.capacity_factor for config in (base, large, xxl, c)] == [1.25, 1.25, 1.25, 1.0]
    assert [config.eval_capacity_factor for config in (base, large, xxl, c)] == [2.0, 2.0, 4.0, 2.0]
    assert [config.min_expert_capacity for config in (base, large, xxl, c)] == [4, 4, 2, 2]
    assert [config.group_size for config in (base, large, xxl, c)] == [8192, 4096, 4096, 2048]
    assert [config.num_sparse_layers for config in (base, large, xxl, c)] == [12, 24, 24, 30]
    assert {config.initializer_scale for config in (base, large, xxl, c)} == {0.1}


@pytest.mark.parametrize(
    ("sparse", "dense", "run", "num_experts"),
    [("switch_nano_16", "t5_nano", "installed_docs", 16), ("switch_tiny_8", "t5_tiny", "python_docs", 8)],
)
def test_small_models_differ_in_experts_alone(sparse, dense, run, num_experts):
    configs = []
    for model in (sparse, dense):
        gin_config.load([f"gin/models/{model}.gin", f"gin/runs/{run}.gin"], ['MODEL_DIR = "unused"'])
        configs.append(ModelConfig())
    sparse, dense = configs
    shape = ("vocab_size", "d_model", "d_ff", "d_kv", "num_heads", "num_encoder_layers", "num_decoder_layers")
    for name in (*shape, "activation", "tied_logits", "dropout_rate", "initializer_scale", "activation_dtype"):
        assert getattr(sparse, name) == getattr(dense, name), name
    assert (sparse.num_experts, dense.num_experts) == (num_experts, 0)
