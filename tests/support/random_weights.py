"""Configurations of every family, and random weights for them, in memory and as lazy tensors."""

import numpy as np

from switch_tf.interop import architecture
from switch_tf.interop.lazy_tensors import in_memory, stacked
from switch_tf.models.config import ModelConfig

DENSE = ModelConfig(
    vocab_size=50,
    d_model=20,
    d_ff=36,
    d_kv=8,
    num_heads=3,
    num_encoder_layers=4,
    num_decoder_layers=2,
    relative_position_buckets=12,
)
MODELS = {
    "t5_1_0": {},
    "t5_1_1": {"activation": "gated_gelu", "tied_logits": False},
    "switch": {"num_experts": 8},
    "decoder_alone": {"num_experts": 3, "sparse_every": 0, "decoder_sparse_every": 1},
    "all_sparse": {"num_experts": 4, "sparse_every": 1},
    "from_second": {"num_experts": 4, "sparse_every": 3, "sparse_layout": "every_from_second"},
    "top": {"num_experts": 4, "sparse_every": 2, "sparse_layout": "top"},
    "balanced": {"num_experts": 4, "balance_bias_rate": 1e-3},
    "gated_experts": {"num_experts": 2, "activation": "gated_gelu", "tied_logits": False},
}
CONFIG = ModelConfig(
    vocab_size=96,
    d_model=16,
    d_ff=24,
    d_kv=4,
    num_heads=2,
    num_encoder_layers=4,
    num_decoder_layers=2,
    num_experts=4,
    sparse_every=2,
)


def random_weights(config, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    shapes = architecture.expected_shapes(config)
    return {name: random.standard_normal(shape, np.float32).astype(dtype) for name, shape in shapes.items()}


def lazy(weights):
    return {
        name: stacked([in_memory(row) for row in array]) if "/experts/" in name else in_memory(array)
        for name, array in weights.items()
    }
