"""Routings of given probabilities."""

import numpy as np
import tensorflow as tf

from switch_tf.layers.router_base import Scores
from switch_tf.layers.routing import Routing
from switch_tf.layers.token_choice import SwitchRouter
from tests.support.gates import softmax


def random_probabilities(groups=3, size=24, experts=4, seed=0) -> np.ndarray:
    return softmax(np.random.default_rng(seed).normal(size=[groups, size, experts]) * 2).astype(np.float32)


def assign(router: SwitchRouter, probabilities, mask, capacity: int) -> Routing:
    """Routes with the given probabilities."""
    probabilities = tf.convert_to_tensor(probabilities)
    scores = Scores(tf.math.log(probabilities), probabilities, probabilities)
    return router.assign(scores, tf.constant(mask), capacity)
