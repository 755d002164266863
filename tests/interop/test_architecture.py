"""What is read from names and shapes, against the models themselves."""

import dataclasses

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.interop import architecture, t5x_names
from switch_tf.interop.huggingface_directory import their_weights
from switch_tf.interop.huggingface_weights import NAMES
from switch_tf.interop.lazy_tensors import LazyTensor, in_memory
from switch_tf.planning.weight_specs import weights_of
from tests.support.random_weights import DENSE, MODELS


@pytest.fixture(params=MODELS)
def config(request):
    return dataclasses.replace(DENSE, **MODELS[request.param])


def unread(shapes) -> dict[str, LazyTensor]:
    """Tensors of which nothing but the shape may be asked."""
    return {name: LazyTensor(tuple(shape), np.dtype(np.float32), None) for name, shape in shapes.items()}


def test_the_shapes_are_those_of_the_model(config):
    assert architecture.expected_shapes(config) == {weight.name: weight.shape for weight in weights_of(config)}


def test_switch_attention_is_refused():
    config = dataclasses.replace(DENSE, num_experts=4, switch_attention="linear")
    with pytest.raises(SettingError, match="switch_attention = 'linear' is in no other system"):
        architecture.expected_shapes(config)


@pytest.mark.parametrize("system", ["huggingface", "t5x"])
def test_settings_are_read_from_names_and_shapes(config, system):
    if config.balance_bias_rate:
        pytest.skip("no other system has a balance bias")
    weights = unread(architecture.expected_shapes(config))
    theirs = their_weights(config, weights) if system == "huggingface" else t5x_names.their_weights(weights)
    theirs = {name: tensor for name, tensor in theirs.items() if "embed_tokens" not in name}  # Copies.
    found = architecture.collect(theirs, NAMES if system == "huggingface" else t5x_names.NAMES, "it")
    settings = architecture.settings_from_weights(found, "it")
    read = dataclasses.replace(DENSE, **settings)
    assert read.sparse_layer_names == config.sparse_layer_names
    same_layers = {"sparse_layout", "sparse_every", "decoder_sparse_every"}
    assert dataclasses.replace(read, **{name: getattr(config, name) for name in same_layers}) == config
    ours = architecture.our_weights(found, config, "it")
    assert {name: tensor.shape for name, tensor in ours.items()} == architecture.expected_shapes(config)


def test_incomplete_models_are_refused():
    config = dataclasses.replace(DENSE, **MODELS["switch"])
    whole = their_weights(config, unread(architecture.expected_shapes(config)))

    def check(tensors):
        found = architecture.collect(tensors, NAMES, "it")
        settings = architecture.settings_from_weights(found, "it")
        architecture.our_weights(found, dataclasses.replace(DENSE, **settings), "it")

    check(whole)
    expert = "encoder.block.1.layer.1.mlp.experts.expert_{}.wi.weight"
    for change, message in (
        (lambda tensors: tensors.pop(expert.format(3)), "lacks expert 3 of encoder/layer_1/feed_forward/experts/wi"),
        (lambda tensors: tensors.pop(expert.format(7)), r"has layers of \[7, 8\] experts"),
        (lambda tensors: tensors.pop("decoder.final_layer_norm.weight"), "lacks decoder/final_norm/scale"),
        (lambda tensors: tensors.update(unread({"more": (3,)})), "has the weight more"),
        (lambda tensors: tensors.update(unread({expert.format(3): (7, 20)})), "has experts of the shapes"),
        (
            lambda tensors: tensors.update(unread({"encoder.block.0.layer.0.SelfAttention.k.weight": (8, 20)})),
            r"in the shape \(8, 20\), where its other weights ask for \(24, 20\)",
        ),
    ):
        tensors = dict(whole)
        change(tensors)
        with pytest.raises(SettingError, match=message):
            check(tensors)


def test_layers_that_no_setting_says():
    config = dataclasses.replace(DENSE, num_experts=2, sparse_every=2)
    names = architecture.expected_shapes(config)
    moved = {name.replace("encoder/layer_1/", "encoder/layer_x/"): shape for name, shape in names.items()}
    moved = {name.replace("encoder/layer_2/", "encoder/layer_1/"): shape for name, shape in moved.items()}
    moved = {name.replace("encoder/layer_x/", "encoder/layer_2/"): shape for name, shape in moved.items()}
    found = architecture.collect(their_weights(config, unread(moved)), NAMES, "it")
    assert dataclasses.replace(DENSE, **architecture.settings_from_weights(found, "it")).sparse_layout == "top"
    with pytest.raises(SettingError, match=r"The layers \[0, 3\] of the encoder and \[1\] of the decoder are sparse"):
        architecture.sparse_settings([0, 3], [1], dataclasses.asdict(config))


def test_reading_is_lazy_and_in_their_dtype():
    config = dataclasses.replace(DENSE, **MODELS["switch"])
    random = np.random.default_rng(0)
    ours = {
        name: random.standard_normal(shape, np.float32) for name, shape in architecture.expected_shapes(config).items()
    }
    theirs = their_weights(config, {name: in_memory(array) for name, array in ours.items()})
    again = architecture.our_weights(architecture.collect(theirs, NAMES, "it"), config, "it")
    for name, array in ours.items():
        np.testing.assert_array_equal(again[name].read(), array, err_msg=name)
        if "/experts/" in name:
            np.testing.assert_array_equal(again[name].rows[5].read(), array[5])
