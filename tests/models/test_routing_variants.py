"""Every way of routing in the whole model: it learns, decoding equals teacher forcing, wrong settings are refused."""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.schedules import Constant
from switch_tf.training.step import balance_bias_change, make_train_step
from tests.support.features import random_features

VARIANTS = {
    "sampled": {"router_policy": "sample"},
    "input dropout": {"router_policy": "input_dropout"},
    "top 2": {"router": "top_n"},
    "top 3": {
        "router": "top_n",
        "router_settings": {"num_choices": 3, "later_choice_policy": "all", "eval_later_choice_policy": "all"},
    },
    "no token left behind": {"router": "no_token_left_behind"},
    "by gate": {"router_settings": {"priority": "gate"}, "decoder_router": "switch"},
    "expert choice": {"router": "expert_choice", "decoder_router": "switch"},
    "expert selection": {"router": "expert_selection", "decoder_router": "top_n"},
    "balance bias": {"balance_bias_rate": 1e-2},
    "linear attention experts": {"switch_attention": "linear"},
    "feed-forward attention experts": {"switch_attention": "feed_forward"},
    "one expert": {"num_experts": 1},
    "groups of sequences": {"group_size": None, "expert_capacity": 2},
    "all layers": {"sparse_layout": "all"},
}
# What learns, or decodes, by the same code as a variant that the fast tests have.
LEARNS_LIKE_ANOTHER = ("top 2", "by gate", "feed-forward attention experts", "one expert", "all layers")
DECODES_LIKE_ANOTHER = ("sampled", "input dropout", "top 2", "balance bias", "feed-forward attention experts")
DECODES_LIKE_ANOTHER += ("one expert", "groups of sequences", "all layers")


def variants(slow: tuple[str, ...]) -> list:
    return [pytest.param(name, marks=pytest.mark.slow) if name in slow else name for name in VARIANTS]


def tensors(features: dict) -> dict:
    return {name: tf.constant(value) for name, value in features.items()}


def built(config: ModelConfig) -> EncoderDecoder:
    model = EncoderDecoder(config)
    model.build()
    return model


@pytest.mark.parametrize("variant", variants(slow=LEARNS_LIKE_ANOTHER))
def test_variants_learn(tiny_config, variant):
    model = built(dataclasses.replace(tiny_config, num_encoder_layers=1, sparse_every=1, **VARIANTS[variant]))
    optimizer = Adafactor(learning_rate=Constant(0.02))
    step = tf.function(make_train_step(model, optimizer, Objective(router_z_loss=1e-3)), autograph=False)
    weights = [tf.identity(weight.value) for weight in model.trainable_variables]
    slots = [
        {name: tf.zeros(slot.shape) for name, slot in optimizer.slot_shapes(tuple(w.shape), w.axes).items()}
        for w in model.trainable_variables
    ]
    batch, losses = tensors(random_features()), []
    for index in range(25):
        weights, slots, metrics = step(weights, slots, tf.constant(index, tf.int64), batch, tf.constant(0))
        losses.append(float(metrics.loss))
    assert losses[-1] < 0.6 * losses[0]
    assert list(metrics.routing) == model.config.sparse_layer_names


@pytest.mark.parametrize("variant", variants(slow=DECODES_LIKE_ANOTHER))
def test_decoding_step_by_step_equals_teacher_forcing(tiny_config, variant):
    config = dataclasses.replace(tiny_config, **{"eval_capacity_factor": 4.0} | VARIANTS[variant])
    if config.router_of(is_decoder=True) == "top_n":
        settings = config.router_settings_of(is_decoder=True) | {"eval_later_choice_policy": "all"}
        config = dataclasses.replace(config, decoder_router="top_n", decoder_router_settings=settings)
    model = built(dataclasses.replace(config, expert_capacity=None))
    features = random_features()
    features["decoder_target_tokens"] = np.full_like(features["decoder_target_tokens"], 5)
    memory, _ = model.encode(tensors(features))
    expected, _ = model.decode(tensors(features), memory)
    caches = model.start_decoding(memory, 8)
    mask = tf.constant(features["encoder_input_tokens"] != 0)
    for position in range(8):
        tokens = tf.constant(features["decoder_input_tokens"][:, position : position + 1])
        logits, caches = model.decode_step(tokens, caches, tf.constant(position), mask)
        np.testing.assert_allclose(logits[:, 0], expected[:, position], atol=1e-4)


@pytest.mark.parametrize("router", ["switch", "top_n", "no_token_left_behind"])
def test_dropless_evaluation_does_not_depend_on_the_rest_of_the_batch(tiny_config, router):
    changes = {"router": router, "capacity_factor": 0.5, "group_size": 64}
    if router == "top_n":
        changes["router_settings"] = {"eval_later_choice_policy": "all"}
    dropless = built(dataclasses.replace(tiny_config, eval_capacity_factor=None, **changes))
    tight = built(dataclasses.replace(tiny_config, eval_capacity_factor=0.5, min_expert_capacity=1, **changes))
    features = random_features()
    alone = [{name: value[row : row + 1] for name, value in features.items()} for row in range(4)]
    for model, is_same in ((dropless, True), (tight, False)):
        together = model(features, return_routing=True)
        apart = tf.concat([model(row) for row in alone], axis=0)
        assert np.allclose(together.logits, apart, atol=1e-4) == is_same
        dropped = [float(routing.metrics.fraction_dropped) for routing in together.routings.values()]
        assert (max(dropped) < 1e-6) == is_same


def test_a_balance_bias_moves_against_the_load_alone(tiny_config):
    model = built(dataclasses.replace(tiny_config, balance_bias_rate=0.125))
    step = make_train_step(model, Adafactor(learning_rate=Constant(0.0)), Objective())
    weights = [tf.identity(weight.value) for weight in model.trainable_variables]
    slots = [
        {name: tf.zeros(slot.shape) for name, slot in Adafactor().slot_shapes(tuple(w.shape), w.axes).items()}
        for w in model.trainable_variables
    ]
    after, _, metrics = step(weights, slots, tf.constant(0, tf.int64), tensors(random_features()), tf.constant(0))
    biases = {v.path: new for v, new in zip(model.trainable_variables, after) if v.path.endswith("balance_bias")}
    assert len(biases) == 2
    for path, bias in biases.items():
        load = next(routing.expert_load for name, routing in metrics.routing.items() if f"/{name}/" in path)
        np.testing.assert_array_equal(bias, 0.125 * np.sign(0.25 - load))
    np.testing.assert_array_equal(balance_bias_change(tf.constant([0.75, 0.25]), 0.5), [0.5, -0.5])


def test_a_balance_bias_alone_balances_a_collapsed_router():
    """Without a balance loss, 200 updates of the bias balance tokens that all prefer one expert."""
    probabilities = np.random.default_rng(0).dirichlet([8.0, 1, 1, 1], 512).astype(np.float32)
    bias = tf.zeros([4])
    loads = []
    for _ in range(200):
        load = np.bincount((probabilities + bias.numpy()).argmax(-1), minlength=4) / 512
        loads.append(load)
        bias -= balance_bias_change(tf.constant(load, tf.float32), 1e-2)
    assert loads[0].max() > 0.9
    assert np.mean(loads[-20:], axis=0).max() < 0.3


@pytest.mark.parametrize(
    ("layout", "every", "layers", "sparse"),
    [
        ("every", 3, 6, [2, 5]),
        ("every_from_first", 2, 4, [0, 2]),
        ("every_from_second", 3, 6, [1, 4]),
        ("every_from_second", 1, 3, [0, 1, 2]),
        ("bottom", 2, 6, [0, 1, 2]),
        ("top", 3, 6, [4, 5]),
        ("all", 2, 3, [0, 1, 2]),
        ("every", 0, 4, []),
    ],
)
def test_sparse_layers_by_position(tiny_config, layout, every, layers, sparse):
    changes = {"num_encoder_layers": layers, "sparse_every": every, "sparse_layout": layout}
    config = dataclasses.replace(tiny_config, **changes, decoder_sparse_every=1)
    assert [index for index in range(layers) if config.is_sparse(index)] == sparse


def test_the_decoder_has_its_own_spacing(tiny_config):
    config = dataclasses.replace(tiny_config, num_decoder_layers=4, sparse_every=2, decoder_sparse_every=0)
    assert config.sparse_layer_names == ["encoder/layer_1"]
    assert dataclasses.replace(config, decoder_sparse_every=4).sparse_layer_names[1:] == ["decoder/layer_3"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"router": "swich"}, r"ModelConfig.router = 'swich' must be one of 'expert_choice'"),
        ({"sparse_layout": "middle"}, "must be one of 'all', 'bottom'"),
        ({"rematerialization": "layers"}, "must be one of 'blocks', 'none', 'sublayers'"),
        ({"router": "expert_choice"}, "cannot serve the decoder: set ModelConfig.decoder_router = 'switch'"),
        (
            {"router_settings": {"priority": "gate"}},
            r"router = 'switch' with router_settings = \{'priority': 'gate'\} is not causal",
        ),
        (
            {"router": "expert_choice", "decoder_router": "switch", "eval_capacity_factor": None},
            "tokens do not choose: set a factor",
        ),
        ({"eval_capacity_factor": 0.0}, "must be positive, or None"),
        ({"expert_capacity": 0}, "must be None or at least 1"),
        ({"group_size": 0}, "must be None or at least 1"),
        ({"switch_attention": "linear", "activation_dtype": "bfloat16"}, r"diverges in bfloat16 \(App. A\)"),
        ({"switch_attention": "linear", "router": "top_n"}, "'switch' or 'no_token_left_behind'"),
        ({"router_temperature": 0.0}, "must be positive"),
        ({"switch_attention": "linear", "router_dtype": "bfloat16"}, r"diverges in bfloat16 \(App. A\)"),
        ({"switch_attention": "linear", "num_experts": 0}, "needs experts"),
        (
            {"router_settings": {"num_choices": 3}},
            "ModelConfig.router_settings has 'num_choices', which is no setting of router = 'switch': it has priority",
        ),
        (
            {"decoder_router_settings": {"num_choices": 3}},
            "ModelConfig.decoder_router_settings has 'num_choices', which is no setting of router = 'switch'",
        ),
        ({"router": "expert_choice", "router_settings": {"priority": "gate"}}, "it has none"),
        (
            {"router": "top_n", "router_settings": {"num_choices": "3"}},
            "num_choices in ModelConfig.router_settings = '3' must be of the type int",
        ),
        ({"router_settings": 3}, "ModelConfig.router_settings = 3 must be of the type dict"),
        ({"router": "top_n", "num_experts": 1}, "2 experts and NUM_EXPERTS = 1"),
        ({"router_policy": "explore"}, "ModelConfig.router_policy = 'explore' must be one of"),
        (
            {"router": "top_n", "router_settings": {"later_choice_policy": "some"}},
            "later_choice_policy = 'some' is unknown; choose one of",
        ),
        ({"capacity_factor": None}, "ModelConfig.capacity_factor = None must be of the type float"),
        ({"num_experts": 8.5}, "must be of the type int"),
        ({"tied_logits": "no"}, "must be of the type bool"),
        ({"router_jitter": "x"}, "must be of the type float"),
        ({"group_size": 2.5}, "must be of the type int or None"),
        ({"balance_bias_rate": -1.0}, "must be 0"),
    ],
)
def test_wrong_settings_stop_in_a_sentence(tiny_config, changes, sentence):
    with pytest.raises(SettingError, match=sentence):
        dataclasses.replace(tiny_config, **changes)


def test_settings_of_a_router_go_to_the_stack_that_they_are_for(tiny_config):
    gate = dataclasses.replace(tiny_config, router_settings={"priority": "gate"}, decoder_router="switch")
    assert [gate.make_router(is_decoder).priority for is_decoder in (False, True)] == ["gate", "position"]
    both = dataclasses.replace(tiny_config, router="top_n", router_settings={"num_choices": 3})
    assert [both.make_router(is_decoder).num_choices for is_decoder in (False, True)] == [3, 3]
    three = dataclasses.replace(both, decoder_router_settings={"num_choices": 2})
    assert [three.make_router(is_decoder).num_choices for is_decoder in (False, True)] == [3, 2]


def test_a_config_with_settings_of_a_router_is_hashable_and_comes_back_from_json(tiny_config):
    config = dataclasses.replace(tiny_config, router="top_n", router_settings={"num_choices": 3})
    twin = ModelConfig(**json.loads(json.dumps(dataclasses.asdict(config))))
    assert (twin, hash(twin)) == (config, hash(config))
    assert config != dataclasses.replace(config, router_settings={"num_choices": 4})


def test_a_dense_decoder_allows_any_router(tiny_config):
    dataclasses.replace(tiny_config, router="expert_choice", decoder_sparse_every=0)
