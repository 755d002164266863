"""Plans of tiny steps for the analysis of compiled programs."""

from switch_tf.models.config import ModelConfig
from switch_tf.partitioning.layout import Layout
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from tpu.precompile.plan import Plan

RULES = "batch:data,experts:data,heads:model,mlp:model,expert_mlp:model,vocab:model"


def make_plan(mesh_shape: str = "data:4,model:2", step: str = "train", **settings: object) -> Plan:
    """A step of 16 sequences of 32 + 8 tokens; `settings` override those of a tiny sparse model."""
    config = {
        "vocab_size": 64,
        "d_model": 16,
        "d_ff": 32,
        "d_kv": 8,
        "num_heads": 2,
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "num_experts": 4,
        "group_size": 32,
        "capacity_factor": 1.0,
        "min_expert_capacity": 1,
    } | settings
    layout = Layout.parse(mesh_shape, RULES)
    return Plan(step, ModelConfig(**config), layout, 16, 32, 8, 1, Adafactor, Objective())
