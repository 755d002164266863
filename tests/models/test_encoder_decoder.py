"""The encoder-decoder, end to end."""

import dataclasses
import re

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.decoding.greedy import greedy
from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.training.losses import Objective, objective, token_losses, token_weights
from tests.support.features import random_features


def built(config: ModelConfig, seed: int = 0) -> EncoderDecoder:
    model = EncoderDecoder(config, seed=seed)
    model.build()
    return model


def tensors(features: dict) -> dict:
    return {name: tf.constant(value) for name, value in features.items()}


def test_every_weight_names_its_axes(tiny_config):
    """As T5X names the axes of its weights (`embed`, `heads`, `kv`, `mlp`, `vocab`, `expert`)."""
    model = built(dataclasses.replace(tiny_config, tied_logits=False, activation="gated_gelu"))
    expected = {
        r"token_embedder/embedding": ("vocab", "embed"),
        r"logits/kernel": ("embed", "vocab"),
        r"position_bias/embedding": (None, "heads"),
        r"(self|cross)_attention/(query|key|value)": ("embed", "heads", "kv"),
        r"(self|cross)_attention/out": ("heads", "kv", "embed"),
        r"layer_0/feed_forward/wi_[01]": ("embed", "mlp"),
        r"layer_0/feed_forward/wo": ("mlp", "embed"),
        r"layer_1/feed_forward/router/kernel": ("embed", "router_experts"),
        r"layer_1/feed_forward/experts/wi_[01]": ("experts", "embed", "expert_mlp"),
        r"layer_1/feed_forward/experts/wo": ("experts", "expert_mlp", "embed"),
        r"norm/scale": ("embed",),
    }
    used = set()
    for weight in model.weights:
        (pattern,) = [pattern for pattern in expected if re.search(pattern + "$", weight.path)]
        assert weight.axes == expected[pattern], weight.path
        used.add(pattern)
    assert used == expected.keys()


def test_call_takes_numpy_features_and_returns_logits(tiny_config):
    logits = built(tiny_config)(random_features(), training=False)
    assert logits.shape == [4, 8, 96] and logits.dtype == tf.float32


@pytest.mark.parametrize("changes", [{}, {"tied_logits": False, "activation": "gated_gelu"}, {"num_experts": 0}])
def test_stateless_call_equals_call(tiny_config, changes):
    model = built(dataclasses.replace(tiny_config, **changes))
    features = tensors(random_features())
    weights = [tf.identity(weight.value) for weight in model.trainable_variables]
    output, _ = model.stateless_call(weights, [], features, training=True, seed=5, return_routing=True)
    expected = model(features, training=True, seed=5, return_routing=True)
    np.testing.assert_array_equal(output.logits, expected.logits)
    assert output.routings.keys() == expected.routings.keys()


def test_dispatchers_give_equal_logits_and_gradients(tiny_config):
    features = tensors(random_features())
    results = []
    for dispatcher in ("gather", "einsum"):
        model = built(dataclasses.replace(tiny_config, dispatcher=dispatcher))
        with tf.GradientTape() as tape:
            output = model(features, training=True, seed=1, return_routing=True)
            loss = tf.reduce_sum(tf.sin(output.logits)) + sum(r.balance_loss for r in output.routings.values())
        gradients = tape.gradient(loss, [weight.value for weight in model.trainable_variables])
        results.append([output.logits, *(tf.convert_to_tensor(gradient) for gradient in gradients)])
    assert any(r.metrics.fraction_dropped > 0 for r in output.routings.values())
    for ours, reference in zip(*results):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


def test_weights_are_a_function_of_the_seed(tiny_config):
    first, again, other = (built(tiny_config, seed) for seed in (1, 1, 2))
    for one, same, different in zip(first.weights, again.weights, other.weights):
        np.testing.assert_array_equal(one, same)
        if "scale" not in one.path:
            assert not np.array_equal(one, different)


def test_feed_forward_layers_can_have_an_initialization_of_their_own(tiny_config):
    plain = built(tiny_config)
    scaled = built(dataclasses.replace(tiny_config, feed_forward_initializer_scale=tiny_config.initializer_scale / 4))
    for before, after in zip(plain.trainable_variables, scaled.trainable_variables):
        # The same draws: sigma goes with the square root of the scale.
        factor = 0.5 if after.path.endswith(("/wi", "/wo")) else 1.0
        np.testing.assert_allclose(after.numpy(), factor * before.numpy(), rtol=1e-6, err_msg=after.path)


def test_noise_is_a_function_of_the_seed(tiny_config):
    model = built(dataclasses.replace(tiny_config, dropout_rate=0.2, expert_dropout_rate=0.4))
    features = random_features()
    first = model(features, training=True, seed=1)
    np.testing.assert_array_equal(first, model(features, training=True, seed=1))
    assert not np.allclose(first, model(features, training=True, seed=2))
    np.testing.assert_array_equal(model(features), model(features, seed=9))


def test_no_prediction_sees_its_own_target_or_later_ones(tiny_config):
    model = built(dataclasses.replace(tiny_config, eval_capacity_factor=4.0))
    features = random_features()
    changed = {name: value.copy() for name, value in features.items()}
    changed["decoder_input_tokens"][:, 5:] = 7
    ours, theirs = model(features), model(changed)
    np.testing.assert_allclose(ours[:, :5], theirs[:, :5], atol=1e-5)
    assert not np.allclose(ours[:, 5:], theirs[:, 5:], atol=1e-3)


def test_padding_of_the_inputs_does_not_matter(tiny_config):
    model = built(dataclasses.replace(tiny_config, eval_capacity_factor=4.0, group_size=1024))
    features = random_features()
    longer = dict(features)
    longer["encoder_input_tokens"] = np.pad(features["encoder_input_tokens"], [(0, 0), (0, 6)])
    np.testing.assert_allclose(model(features), model(longer), atol=1e-5)


def packed(single: dict) -> dict:
    """Packs two unpadded examples, and then a padded one, into two rows each as long as two examples."""
    rows = {name: np.pad(single[name], [(0, 1), (0, 0)]) for name in single}
    rows = {name: array.reshape(2, 2 * array.shape[1]) for name, array in rows.items()}
    for name, length in (("encoder", 16), ("decoder", 8)):
        tokens = rows["encoder_input_tokens" if name == "encoder" else "decoder_target_tokens"]
        rows[f"{name}_segment_ids"] = (np.repeat([1, 2], length) * (tokens != 0)).astype(np.int32)
    return rows


@pytest.mark.parametrize(
    "changes",
    [
        {"num_experts": 0},
        {"router": "switch"},
        {"router": "top_n", "router_settings": {"eval_later_choice_policy": "all"}},
        {"router": "no_token_left_behind"},
        {"switch_attention": "linear"},
    ],
)
def test_packed_examples_have_the_logits_and_the_loss_of_single_ones(tiny_config, changes):
    """Without drops, packing changes nothing: segments do not attend to each other, and padding is not routed."""
    model = built(dataclasses.replace(tiny_config, eval_capacity_factor=None, **changes))
    single = random_features(batch=3)  # The third example is padded.
    together = packed(single)
    alone, logits = model(single).numpy(), model(together).numpy().reshape(4, 8, 96)[:3]
    real = single["decoder_target_tokens"] != 0
    np.testing.assert_allclose(logits[real], alone[real], atol=1e-4)
    ours, theirs = (
        token_losses(model(features), features["decoder_target_tokens"], token_weights(features))
        for features in (tensors(together), tensors(single))
    )
    assert float(ours.tokens) == float(theirs.tokens) == real.sum()
    np.testing.assert_allclose(ours.negative_log_likelihood, theirs.negative_log_likelihood, rtol=1e-5)


def test_packed_examples_train_like_single_ones(tiny_config):
    """In one routing group with enough slots, loss, balance loss and gradients are those of the unpacked batch."""
    config = dataclasses.replace(tiny_config, capacity_factor=4.0, group_size=1024, router_jitter=0.0)
    model = built(config)
    single = random_features(batch=3)
    results = []
    for features in (tensors(single), tensors(packed(single))):
        with tf.GradientTape() as tape:
            output = model(features, training=True, return_routing=True)
            loss, _ = objective(output, features, Objective(router_z_loss=1e-3), tf.constant(20.0))
        weights = [weight.value for weight in model.trainable_variables]
        gradients = [tf.convert_to_tensor(gradient) for gradient in tape.gradient(loss, weights)]
        balance = [routing.balance_loss for routing in output.routings.values()]
        results.append([loss, *balance, *gradients])
    for ours, theirs in zip(*results):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_cached_decoding_equals_teacher_forcing(tiny_config):
    model = built(dataclasses.replace(tiny_config, eval_capacity_factor=4.0))
    features = random_features()
    expected = model(features)
    memory, _ = model.encode(tensors(features))
    caches = model.start_decoding(memory, 8)
    mask = tf.constant(features["encoder_input_tokens"] != 0)
    for position in range(8):
        tokens = tf.constant(features["decoder_input_tokens"][:, position : position + 1])
        logits, caches = model.decode_step(tokens, caches, tf.constant(position), mask)
        real = features["decoder_target_tokens"][:, position] != 0
        np.testing.assert_allclose(logits[:, 0][real], expected[:, position][real], atol=1e-4)


def test_greedy_decoding_takes_the_best_token_and_stops_at_the_end(tiny_config):
    model = built(dataclasses.replace(tiny_config, eval_capacity_factor=4.0))
    inputs = tf.constant(random_features()["encoder_input_tokens"])
    decoded = tf.function(lambda tokens: greedy(model, tokens, 8), autograph=False)(inputs).numpy()
    step = np.zeros([4, 1], np.int32)
    for position in range(8):
        features = {"encoder_input_tokens": inputs, "decoder_input_tokens": tf.constant(step)}
        best = np.argmax(model(features)[:, -1], axis=-1)
        alive = ~np.any(decoded[:, :position] == 1, axis=1)
        np.testing.assert_array_equal(decoded[:, position], np.where(alive, best, 0))
        step = np.concatenate([step, decoded[:, position : position + 1]], axis=1)


def test_greedy_decoding_leaves_nothing_after_the_end(tiny_config):
    model = built(dataclasses.replace(tiny_config, eval_capacity_factor=4.0, tied_logits=False))
    inputs = tf.constant(random_features()["encoder_input_tokens"])
    endless = greedy(model, inputs, 8, end_of_sequence=-1).numpy()
    end = int(endless[0, 0])  # So that the first row ends at once.
    decoded = greedy(model, inputs, 8, end_of_sequence=end).numpy()
    for row, full in zip(decoded, endless):
        length = list(full).index(end) + 1 if end in full else 8
        np.testing.assert_array_equal(row[:length], full[:length])
        np.testing.assert_array_equal(row[length:], 0)
    assert np.any(endless[0, 1:] != 0) and not np.any(decoded[0, 1:])


def test_bfloat16_activations_stay_close_to_float32(tiny_config):
    config = dataclasses.replace(tiny_config, num_experts=0)
    features = random_features()
    exact = built(config)(features)
    rounded = built(dataclasses.replace(config, activation_dtype="bfloat16"))
    assert {weight.dtype for weight in rounded.weights} == {"float32"}
    assert rounded.encode(tensors(features))[0].dtype == tf.bfloat16
    spread = float(np.std(exact))
    assert 0 < float(np.abs(rounded(features) - exact).max()) < 0.15 * spread


def test_sparse_layers_are_every_nth(tiny_config):
    config = dataclasses.replace(tiny_config, num_encoder_layers=6, sparse_every=3)
    assert [config.is_sparse(i) for i in range(6)] == [False, False, True, False, False, True]
    assert config.num_sparse_layers == 2
    assert dataclasses.replace(config, sparse_every=1).num_sparse_layers == 8
    assert dataclasses.replace(config, num_experts=0).num_sparse_layers == 0


def test_from_config_makes_an_equal_model(tiny_config):
    model = built(tiny_config, seed=3)
    twin = EncoderDecoder.from_config(model.get_config())
    twin.build()
    np.testing.assert_array_equal(model(random_features()), twin(random_features()))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("d_model", 0),
        ("capacity_factor", 0.0),
        ("dropout_rate", 1.0),
        ("router_jitter", -0.1),
        ("activation_dtype", "float16"),
        ("activation", "swish"),
        ("dispatcher", "scatter"),
        ("num_experts", -1),
        ("num_experts", 2**26 + 1),
        ("d_ff", 2**62),
        ("num_encoder_layers", 1025),
        ("layer_norm_epsilon", -1e-6),
        ("relative_position_buckets", 3),
        ("relative_position_max_distance", 16),
    ],
)
def test_wrong_settings_are_refused_by_name(tiny_config, setting, value):
    with pytest.raises(SettingError, match=rf"ModelConfig\.{setting} = {value!r} must be"):
        dataclasses.replace(tiny_config, **{setting: value})
