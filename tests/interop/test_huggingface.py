"""Models of Hugging Face against what theirs computed once (tests/interop/golden), without torch."""

import ast
import dataclasses
import pathlib
import re
import sys
import types

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.interop import huggingface, huggingface_weights
from switch_tf.interop.huggingface import config_from_huggingface, config_to_huggingface, to_huggingface
from switch_tf.interop.huggingface_weights import from_their_weights, load_weights, to_their_weights
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from tests.support.parity import GOLDEN, Reference, differences

NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))


def namespace(name: str, **changes):
    return types.SimpleNamespace(**{**Reference.load(name).config, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_outputs_loss_and_gradients_equal_theirs(name):
    reference = Reference.load(name)
    measured = differences(reference.our_model(), reference)
    measured.check()
    assert (measured.dropped > 0.1) == name.endswith("dropping")


def test_golden_files_are_small():
    assert len(NAMES) == 7 and sum(path.stat().st_size for path in GOLDEN.glob("*.npz")) < 1_500_000


@pytest.mark.parametrize("name", NAMES)
def test_weights_come_back_bit_by_bit(name):
    reference = Reference.load(name)
    model = reference.our_model()
    back = {}
    for weight in model.weights:
        back |= to_their_weights(model.config, weight_name(weight), weight.numpy())
    assert back.keys() == reference.weights.keys()
    for theirs, array in back.items():
        np.testing.assert_array_equal(array, reference.weights[theirs])


def test_an_expert_table_holds_their_matrices_transposed():
    reference = Reference.load("switch_8")
    table = from_their_weights(
        config_from_huggingface(namespace("switch_8")),
        "decoder/layer_1/feed_forward/experts/wi",
        (8, 16, 32),
        reference.weights,
    )
    theirs = reference.weights["decoder.block.1.layer.2.mlp.experts.expert_5.wi.weight"]
    np.testing.assert_array_equal(table[5], theirs.T)


def test_configs_say_the_same():
    switch = config_from_huggingface(namespace("switch_16_dropping"))
    assert (switch.num_experts, switch.expert_capacity, switch.group_size) == (16, 1, None)
    assert switch.sparse_layer_names == ["encoder/layer_1", "decoder/layer_1"]
    assert (switch.router_jitter, switch.dropout_rate, switch.expert_dropout_rate) == (0.01, 0.1, 0.1)
    assert switch.tied_logits and switch.activation == "relu"
    kinds = {name: config_from_huggingface(namespace(name)) for name in ("t5_1_0", "t5_1_1", "mt5")}
    assert [(kind.activation, kind.tied_logits) for kind in kinds.values()] == [
        ("relu", True),
        ("gated_gelu", False),
        ("gated_gelu", False),
    ]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("switch_8", "router_bias", True),
        ("switch_8", "dense_act_fn", "gelu_new"),
        ("switch_8", "router_dtype", "float16"),
        ("t5_1_0", "feed_forward_proj", "gated-silu"),
        ("t5_1_0", "pad_token_id", 3),
        ("mt5", "decoder_start_token_id", 5),
        ("mt5", "model_type", "umt5"),
    ],
)
def test_what_our_config_cannot_say_is_refused(name, setting, value):
    with pytest.raises(SettingError, match=rf"{setting} = {value!r} "):
        config_from_huggingface(namespace(name, **{setting: value}))


def test_how_a_model_is_computed_need_not_be_said(tiny_config):
    config = dataclasses.replace(tiny_config, expert_capacity=8, group_size=None)
    changed = {"rematerialization": "blocks", "dispatcher": "einsum", "activation_dtype": "bfloat16"}
    assert config_to_huggingface(dataclasses.replace(config, **changed)) == config_to_huggingface(config)


def test_capacity_by_factors_is_refused(tiny_config):
    with pytest.raises(SettingError, match=r"expert_capacity = None .*to_huggingface\(model, expert_capacity=64\)"):
        config_to_huggingface(tiny_config)


def test_torch_is_imported_where_it_is_used():
    for module in (huggingface, huggingface_weights):
        for node in ast.parse(pathlib.Path(module.__file__).read_text()).body:
            assert not re.search(r"import.*\b(torch|transformers)\b", ast.unparse(node)), module.__name__


def test_wrong_weights_are_refused():
    reference = Reference.load("t5_1_0")
    model = EncoderDecoder(config_from_huggingface(namespace("t5_1_0")))
    model.build()
    weights, name = reference.weights, "decoder.block.0.layer.1.EncDecAttention.q.weight"
    with pytest.raises(SettingError, match=rf"{name} is missing"):
        load_weights(model, {other: array for other, array in weights.items() if other != name})
    with pytest.raises(SettingError, match=rf"{name} has the shape \(16, 15\) where \(16, 16\)"):
        load_weights(model, {**weights, name: weights[name][:, 1:]})
    with pytest.raises(SettingError, match="no place for more"):
        load_weights(model, {**weights, "more": np.zeros(3)})
    with pytest.raises(SettingError, match=r"lm_head.weight and shared.weight differ"):
        load_weights(model, {**weights, "lm_head.weight": weights["shared.weight"] + 1})
    load_weights(model, {**weights, "lm_head.weight": weights["shared.weight"]})


def test_a_missing_torch_is_told_with_its_mend(monkeypatch, tiny_config):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SettingError, match=r"torch, which is not installed: pip install 'switch-tf\[interop\]'"):
        to_huggingface(EncoderDecoder(tiny_config))


def test_a_family_must_fit(tiny_config):
    with pytest.raises(SettingError, match=r"family = 't5' does not fit num_experts = 4: choose 'switch_transformers'"):
        config_to_huggingface(tiny_config, "t5")
    with pytest.raises(SettingError, match="tied_logits = True is no mT5"):
        config_to_huggingface(dataclasses.replace(tiny_config, num_experts=0), "mt5")
