"""The three settings of Table 2: the dtypes of computations and of communication between devices."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.decoding.greedy import greedy
from switch_tf.layers.moe import SwitchFeedForward
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning import axes
from switch_tf.runs import gin_config
from tests.support.features import random_features


def model_in(precision: str) -> EncoderDecoder:
    files = ["gin/models/switch_tiny_8.gin", f"gin/precision/{precision}.gin"]
    gin_config.load(files, ["VOCAB_SIZE = 128", "GROUP_SIZE = 64"])
    model = EncoderDecoder(ModelConfig())
    model.build()
    return model


def run(model: EncoderDecoder) -> tuple[set, dict, tf.Tensor]:
    """Returns the dtypes of all activations that a mesh shards, the routings and the logits."""
    placed = set()

    class Recording(axes.Placement):
        def constrain(self, tensor: tf.Tensor, axes: axes.Axes) -> tf.Tensor:
            placed.add(tensor.dtype)
            return tensor

    with axes.placed_by(Recording()):
        output = model(random_features(vocab_size=128), training=True, return_routing=True)
    return placed, output.routings, output.logits


def is_rounded(tensor: tf.Tensor) -> bool:
    """Whether every number is representable in bfloat16."""
    return bool(tf.reduce_all(tf.cast(tf.cast(tensor, tf.bfloat16), tf.float32) == tensor))


@pytest.mark.parametrize(
    ("precision", "activations", "router"),
    [("float32", tf.float32, "float32"), ("bfloat16", tf.bfloat16, "bfloat16"), ("selective", tf.bfloat16, "float32")],
)
def test_what_is_computed_in_which_dtype(precision, activations, router):
    model = model_in(precision)
    placed, routings, logits = run(model)
    # Nothing that crosses devices is wider than the activations.
    assert placed == {activations}
    assert logits.dtype == tf.float32
    assert {weight.dtype for weight in model.weights} == {"float32"}
    for routing in routings.values():
        assert is_rounded(routing.logits) == (router == "bfloat16")
        # Positions are counted in float32 in each: bfloat16 cannot count beyond 256.
        assert routing.slot.dtype == tf.int32 and routing.gate.dtype == tf.float32
    layer = model.encoder.blocks[1].feed_forward
    assert isinstance(layer, SwitchFeedForward)
    assert layer.router.compute_dtype == router and layer.experts.compute_dtype == activations.name


def test_selective_precision_chooses_as_float32_does_and_bfloat16_does_not():
    """With equal rounded tokens and router weights, bfloat16 logits flip choices; selective precision does not."""
    tokens = tf.cast(tf.random.stateless_normal([4, 512, 128], (0, 1)), tf.bfloat16)
    chosen = {}
    for precision in ("float32", "bfloat16", "selective"):
        router = model_in(precision).encoder.blocks[1].feed_forward.router
        chosen[precision] = router(tokens, tf.ones([4, 512]), capacity=512).expert.numpy()
    np.testing.assert_array_equal(chosen["selective"], chosen["float32"])
    assert np.mean(chosen["bfloat16"] != chosen["float32"]) > 0


@pytest.mark.parametrize("precision", ["bfloat16", "selective"])
def test_decoding_reads_weights_as_they_are(precision):
    """Decoding calls layers directly, not from another layer, which is where Keras would cast their weights."""
    model, features = model_in(precision), random_features(vocab_size=128)
    decoded = tf.function(lambda tokens: greedy(model, tokens, 4), autograph=False)(features["encoder_input_tokens"])
    assert decoded.shape == [4, 4]
    bias = model.decoder.position_bias(tf.range(3), tf.range(3))
    weights = model.decoder.position_bias.embedding.value
    assert weights.dtype == bias.dtype == tf.float32 and not is_rounded(bias)
