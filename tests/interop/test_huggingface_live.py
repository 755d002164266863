"""Models of Hugging Face against transformers and torch themselves: make test-all."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.decoding.greedy import greedy
from switch_tf.errors import SettingError
from switch_tf.interop.huggingface import (
    config_from_huggingface,
    config_to_huggingface,
    from_huggingface,
    to_huggingface,
)
from switch_tf.layers.embedding import relative_position_bucket
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from tests.support.features import random_features
from tests.support.live_models import KINDS, ODD, assert_same_weights, random_switch
from tests.support.parity import differences, features_of, relative, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


@pytest.fixture(scope="module")
def references():
    """`tests.support.references`, which needs torch."""
    from tests.support import references

    return references


@pytest.mark.parametrize("num_experts", [8, 16])
@pytest.mark.parametrize(("capacity", "paddings"), [(64, "right left both"), (2, "right")])
def test_switch_equals_theirs(references, num_experts, capacity, paddings):
    theirs = random_switch(references, num_experts=num_experts, expert_capacity=capacity)
    measured = differences(from_huggingface(theirs), references.reference(theirs, references.random_batch(paddings)))
    print(measured)
    measured.check()
    assert (measured.dropped > 0.1) == (capacity == 2)


@pytest.mark.parametrize("kind", ["t5_1_0", "t5_1_1", "mt5"])
def test_dense_models_equal_theirs(references, kind):
    model_type, settings = KINDS[kind]
    theirs = references.random_model(model_type, **settings)
    batch = references.random_batch("right left both")
    measured = differences(from_huggingface(theirs), references.reference(theirs, batch))
    print(measured)
    measured.check()


@pytest.mark.parametrize(
    ("model_type", "settings", "sparse_layers"),
    [
        ("t5", {}, 0),
        ("t5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}, 0),
        ("mt5", {}, 0),
        ("switch_transformers", {"num_sparse_encoder_layers": 2, "num_sparse_decoder_layers": 1}, 3),
        ("switch_transformers", {"num_sparse_encoder_layers": 4, "num_sparse_decoder_layers": 2}, 6),  # All sparse.
        ("switch_transformers", {"num_sparse_encoder_layers": 5, "num_sparse_decoder_layers": 1}, 1),  # Decoder alone.
        ("switch_transformers", {"num_sparse_encoder_layers": 0, "num_sparse_decoder_layers": 0}, 2),  # 0 makes one.
    ],
)
def test_odd_shapes_equal_theirs(torch, references, model_type, settings, sparse_layers):
    theirs = references.random_model(model_type, **{**ODD, **settings})
    model = from_huggingface(theirs)
    assert model.config.num_sparse_layers == sparse_layers
    batch = references.random_batch("right", inputs=150, targets=140, vocab_size=50)
    measured = differences(model, references.reference(theirs, batch))
    print(measured)
    measured.check()
    back = to_huggingface(model, model_type)
    assert_same_weights(torch, back, theirs)
    assert config_from_huggingface(back.config) == model.config


def test_a_head_that_is_tied_without_scaling_gets_its_own_table(references):
    theirs = references.random_model("mt5", untie=False)
    assert theirs.lm_head.weight is theirs.shared.weight
    reference = references.reference(theirs, references.random_batch("right"))
    outputs, gradients, _ = run(from_huggingface(theirs), reference.batch)
    real = reference.batch["decoder_target_tokens"] != 0
    assert relative(outputs["logits"], reference.outputs["logits"], real) < 1e-4
    both = gradients["shared.weight"] + gradients["lm_head.weight"]
    assert relative(both, reference.gradients["shared.weight"]) < 1e-3


def test_their_padding_takes_slots_and_ours_does_not(references):
    theirs = random_switch(references, expert_capacity=2)
    measured = differences(from_huggingface(theirs), references.reference(theirs, references.random_batch("left")))
    assert measured.logits > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_models_come_back_bit_by_bit_and_through_their_files(torch, references, tmp_path, kind):
    model_type, settings = KINDS[kind]
    theirs = references.random_model(model_type, **settings)
    back = to_huggingface(from_huggingface(theirs), model_type)
    assert type(back) is type(theirs) and not back.training
    assert_same_weights(torch, back, theirs)
    ignored = ("dtype", "architectures")
    expected = {name: value for name, value in theirs.config.to_dict().items() if name not in ignored}
    assert {name: value for name, value in back.config.to_dict().items() if name not in ignored} == expected

    back.save_pretrained(tmp_path)
    loaded = type(back).from_pretrained(tmp_path)
    assert_same_weights(torch, loaded, theirs)
    assert (loaded.lm_head.weight is loaded.shared.weight) == (theirs.lm_head.weight is theirs.shared.weight)
    again = from_huggingface(loaded)
    np.testing.assert_array_equal(
        again(random_features(vocab_size=48)), from_huggingface(theirs)(random_features(vocab_size=48))
    )


def test_a_switch_transformer_with_a_head_of_its_own(torch, references, tmp_path):
    theirs = random_switch(references, tie_word_embeddings=False)
    with pytest.raises(SettingError, match=r"embed_tokens\.weight and shared.weight differ"):
        from_huggingface(theirs)  # Untied, theirs has three token tables.
    with torch.no_grad():
        for stack in (theirs.encoder, theirs.decoder):
            stack.embed_tokens.weight.copy_(theirs.shared.weight)
    model = from_huggingface(theirs)
    assert not model.config.tied_logits
    back = to_huggingface(model)
    assert_same_weights(torch, back, theirs)
    back.save_pretrained(tmp_path)
    assert_same_weights(torch, type(back).from_pretrained(tmp_path), theirs)
    batch = references.random_batch("right left")
    expected = references.reference(theirs, batch).outputs["logits"]
    real = batch["decoder_target_tokens"] != 0
    assert relative(model(features_of(batch)), expected, real) < 1e-4


def test_bfloat16_weights_become_float32(torch, references):
    theirs = random_switch(references)
    model = from_huggingface(theirs.bfloat16(), dropout_rate=0.0, expert_dropout_rate=0.0)
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert (model.config.dropout_rate, model.config.expert_dropout_rate) == (0.0, 0.0)
    assert next(theirs.parameters()).dtype == torch.bfloat16
    back = to_huggingface(model, dropout_rate=0.1, expert_dropout_rate=0.1)
    assert_same_weights(torch, back, theirs.float())


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_decoding_equals_generate(torch, references, kind):
    model_type, settings = KINDS[kind]
    theirs = references.random_model(model_type, **settings)
    with torch.no_grad():
        theirs.shared.weight.mul_(0.1)  # Or each token would call for itself again, through the tied head.
    inputs = references.random_batch("right right right right")["encoder_input_tokens"]
    tokens = torch.tensor(inputs).long()
    generated = theirs.generate(
        tokens, attention_mask=(tokens != 0).long(), max_new_tokens=16, do_sample=False, num_beams=1
    )[:, 1:].numpy()
    ours = greedy(from_huggingface(theirs), tf.constant(inputs), 16).numpy()
    np.testing.assert_array_equal(ours[:, : generated.shape[1]], generated)
    assert not np.any(ours[:, generated.shape[1] :]) and len(np.unique(generated)) > 4


def test_router_losses_equal_theirs_layer_by_layer(torch, references):
    from transformers.models.switch_transformers.modeling_switch_transformers import (
        load_balancing_loss_func,
        router_z_loss_func,
    )

    theirs = random_switch(references, expert_capacity=2)
    reference = references.reference(theirs, references.random_batch("none none"))
    _, _, routings = run(from_huggingface(theirs), reference.batch)
    assert len(routings) == 2
    for name, routing in routings.items():
        logits = torch.tensor(reference.outputs[name])
        expected = load_balancing_loss_func(logits.softmax(-1), logits.argmax(-1))
        np.testing.assert_allclose(routing.balance_loss, expected, rtol=1e-5)
        np.testing.assert_allclose(routing.z_loss, router_z_loss_func(logits), rtol=1e-5)


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("buckets", "farthest"), [(32, 128), (8, 16), (7, 33), (12, 50), (32, 100), (64, 256), (48, 1024)]
)
def test_relative_position_buckets_equal_theirs(torch, bidirectional, buckets, farthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-600, 601, dtype=np.int32)
    ours = relative_position_bucket(
        tf.constant(distance), bidirectional=bidirectional, num_buckets=buckets, max_distance=farthest
    )
    theirs = T5Attention._relative_position_bucket(torch.tensor(distance).long(), bidirectional, buckets, farthest)
    np.testing.assert_array_equal(ours, theirs)


def test_our_model_goes_there_and_back(tiny_config):
    model = EncoderDecoder(tiny_config, seed=3)
    model.build()
    there = to_huggingface(model, expert_capacity=64, group_size=None)
    assert (there.config.expert_capacity, there.config.num_sparse_encoder_layers) == (64, 1)
    back = from_huggingface(there)
    for ours, again in zip(model.weights, back.weights):
        np.testing.assert_array_equal(ours, again)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("group_size", 4096),
        ("expert_dropout_rate", 0.4),
        ("eval_capacity_factor", None),
        ("router", "top_n"),
        ("router_policy", "sample"),
        ("balance_bias_rate", 1e-3),
        ("switch_attention", "linear"),
    ],
)
def test_what_their_config_cannot_say_is_refused(tiny_config, setting, value):
    config = dataclasses.replace(tiny_config, **{"expert_capacity": 8, "group_size": None, setting: value})
    with pytest.raises(SettingError, match=rf"{setting} = {value!r} .*to_huggingface\(model, {setting}="):
        config_to_huggingface(config)


def test_gated_experts_are_refused(tiny_config):
    with pytest.raises(SettingError, match=r"activation = 'gated_gelu' .* trained with 'relu'"):
        config_to_huggingface(dataclasses.replace(tiny_config, activation="gated_gelu"))


@pytest.mark.parametrize("change", [{"d_ff": 33}, {"tied_logits": False}, {"num_encoder_layers": 3}])
def test_changes_that_shape_weights_are_refused(tiny_config, change):
    model = EncoderDecoder(dataclasses.replace(tiny_config, expert_capacity=8, group_size=None))
    model.build()
    with pytest.raises(SettingError, match=f"after a change of {next(iter(change))}"):
        to_huggingface(model, **change)


def test_sparse_layers_that_their_steps_do_not_reach_are_refused(tiny_config):
    config = dataclasses.replace(tiny_config, expert_capacity=8, group_size=None, num_encoder_layers=6, sparse_every=3)
    with pytest.raises(SettingError, match=r"sparse_layout = 'every' makes layers \[2, 5\] of 6 sparse"):
        config_to_huggingface(config)


@pytest.mark.parametrize("num_layers", [1, 2, 3, 4, 6, 12])
def test_every_number_of_sparse_layers_comes_back(num_layers):
    from transformers import SwitchTransformersConfig

    for number in range(num_layers + 2):
        theirs = SwitchTransformersConfig(
            num_layers=num_layers,
            num_decoder_layers=num_layers,
            num_sparse_encoder_layers=number,
            num_sparse_decoder_layers=number,
        )
        ours = config_from_huggingface(theirs)
        again = config_from_huggingface(config_to_huggingface(ours))
        assert again.sparse_layer_names == ours.sparse_layer_names


def test_default_configs_come_back():
    import transformers

    for kind in (transformers.SwitchTransformersConfig, transformers.T5Config, transformers.MT5Config):
        theirs = kind(decoder_start_token_id=0, initializer_factor=0.05, dropout_rate=0.3, layer_norm_epsilon=1e-5)
        ours = config_from_huggingface(theirs)
        assert isinstance(ours, ModelConfig)
        assert config_to_huggingface(ours, theirs.model_type).to_dict() == theirs.to_dict()
