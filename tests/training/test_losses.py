"""Cross-entropy and z-loss against a float64 numpy version."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers.routing import Routing
from switch_tf.models.encoder_decoder import ModelOutput
from switch_tf.training.losses import Objective, cross_entropy, objective, token_losses, token_weights


def test_sums_over_real_tokens():
    random = np.random.default_rng(0)
    logits, targets = random.normal(size=[2, 5, 7]) * 5, random.integers(1, 7, [2, 5])
    targets[1, 3:] = 0
    weights = token_weights({"decoder_target_tokens": tf.constant(targets, tf.int32)})
    np.testing.assert_array_equal(weights, targets != 0)
    sums = token_losses(tf.constant(logits, tf.float32), tf.constant(targets, tf.int32), weights)
    log_z = np.log(np.exp(logits).sum(-1))
    likelihood = np.take_along_axis(logits, targets[..., np.newaxis], -1)[..., 0] - log_z
    real = targets != 0
    np.testing.assert_allclose(sums.negative_log_likelihood, -likelihood[real].sum(), rtol=1e-5)
    np.testing.assert_allclose(sums.squared_log_z, (log_z[real] ** 2).sum(), rtol=1e-5)
    assert sums.correct == np.sum(logits.argmax(-1)[real] == targets[real])
    assert sums.tokens == real.sum()


def test_huge_logits_do_not_overflow():
    logits = tf.constant([[[3e4, -3e4, 0.0]]])
    sums = token_losses(logits, tf.constant([[1]]), tf.ones([1, 1]))
    np.testing.assert_allclose(sums.negative_log_likelihood, 6e4, rtol=1e-6)


def test_gradients_are_the_derivatives():
    """d log Z / d logits = softmax, d likelihood / d logits = softmax - one-hot; in float64."""
    random = np.random.default_rng(1)
    logits, targets = random.normal(size=[2, 3, 7]) * 3, random.integers(0, 7, [2, 3])
    of_likelihood, of_log_z = random.normal(size=[2, 2, 3])
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = of_likelihood[..., None] * (softmax - np.eye(7)[targets]) + of_log_z[..., None] * softmax

    logits = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        likelihood, log_z = cross_entropy(logits, tf.constant(targets, tf.int32))
        total = tf.reduce_sum(likelihood * of_likelihood.astype("f") + log_z * of_log_z.astype("f"))
    np.testing.assert_allclose(tape.gradient(total, logits), expected, rtol=1e-5, atol=1e-6)


def test_loss_weights_of_seqio_decide():
    features = {"decoder_target_tokens": tf.constant([[5, 6, 7]]), "decoder_loss_weights": tf.constant([[0, 1, 1]])}
    np.testing.assert_array_equal(token_weights(features), [[0, 1, 1]])


@pytest.mark.parametrize(
    ("settings", "auxiliary"),
    [
        # z-loss: log^2 8 on each token; balance losses 1.25 and 1.75, router z-losses 2 and 6 of two layers.
        (Objective(), 1e-4 * np.log(8) ** 2 + 1e-2 * (1.25 + 1.75)),
        (Objective(z_loss=0.5, balance_loss=0.25, router_z_loss=1e-3), 0.5 * np.log(8) ** 2 + 0.75 + 0.008),
        (Objective(z_loss=0.0, balance_loss_over_layers="mean", router_z_loss=0.1), 1e-2 * 1.5 + 0.8),
        (Objective(z_loss=0.0, balance_loss=0.0), 0.0),
    ],
)
def test_objective_adds_the_auxiliary_losses_of_all_layers(settings, auxiliary):
    """Uniform logits over 8 tokens: a cross-entropy of ln 8 and log Z = ln 8 for each of the 6 real targets."""
    targets = tf.constant([[1, 2, 3, 0]] * 2)
    routings = {
        name: Routing(*[None] * 4, 1, None, balance_loss=tf.constant(balance), z_loss=tf.constant(z), metrics=None)
        for name, balance, z in (("a", 1.25, 2.0), ("b", 1.75, 6.0))
    }
    output = ModelOutput(tf.zeros([2, 4, 8]), routings)
    loss, sums = objective(output, {"decoder_target_tokens": targets}, settings, tf.constant(6.0))
    np.testing.assert_allclose(loss, np.log(8) + auxiliary, rtol=1e-6)
    np.testing.assert_allclose(sums.negative_log_likelihood, 6 * np.log(8), rtol=1e-6)


def test_a_part_of_a_batch_is_normalized_by_the_tokens_of_all_of_it():
    output = ModelOutput(tf.zeros([1, 2, 8]), {})
    features = {"decoder_target_tokens": tf.constant([[1, 2]])}
    loss, _ = objective(output, features, Objective(z_loss=0.0), tf.constant(8.0))
    np.testing.assert_allclose(loss, 2 * np.log(8) / 8, rtol=1e-6)


def test_an_unknown_mean_over_layers_is_refused():
    with pytest.raises(SettingError, match="must be 'sum' or 'mean'"):
        Objective(balance_loss_over_layers="average")
