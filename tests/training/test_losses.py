"""Cross-entropy and z-loss against a float64 numpy version."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers.routing import Routing
from switch_tf.models.encoder_decoder import ModelOutput
from switch_tf.training.losses import Objective, objective, token_losses, token_weights


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


def test_loss_weights_of_seqio_decide():
    features = {"decoder_target_tokens": tf.constant([[5, 6, 7]]), "decoder_loss_weights": tf.constant([[0, 1, 1]])}
    np.testing.assert_array_equal(token_weights(features), [[0, 1, 1]])


@pytest.mark.parametrize(
    ("settings", "balance", "router_z"),
    [
        (Objective(), 3.0, 4.0),
        (Objective(z_loss=0.5, balance_loss=0.25, router_z_loss=1e-3), 3.0, 4.0),
        (Objective(balance_loss_over_layers="mean", router_z_loss=0.1), 1.5, 4.0),
    ],
)
def test_objective_adds_the_auxiliary_losses_of_all_layers(settings, balance, router_z):
    routing = Routing(*[None] * 4, 1, None, balance_loss=tf.constant(1.5), z_loss=tf.constant(2.0), metrics=None)
    logits, targets = tf.random.stateless_normal([2, 4, 9], (0, 1)), tf.constant([[1, 2, 3, 0]] * 2)
    features = {"decoder_target_tokens": targets}
    loss, sums = objective(ModelOutput(logits, {"a": routing, "b": routing}), features, settings, tf.constant(6.0))
    expected = (sums.negative_log_likelihood + settings.z_loss * sums.squared_log_z) / 6
    expected += settings.balance_loss * balance + settings.router_z_loss * router_z
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_an_unknown_mean_over_layers_is_refused():
    with pytest.raises(SettingError, match="must be 'sum' or 'mean'"):
        Objective(balance_loss_over_layers="average")
