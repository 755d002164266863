"""Recomputed functions: the same values and gradients, the function run once more for them."""

import numpy as np
import tensorflow as tf

from switch_tf.layers.recompute import recomputed


def test_values_and_gradients_are_the_functions():
    random = np.random.default_rng(0)
    x, y = (tf.constant(random.normal(size=[2, 3]), tf.float32) for _ in range(2))
    calls = []

    def function(x, y):
        calls.append(None)
        return tf.sin(x * y) + x

    results = []
    for wrapped in (function, recomputed(function)):
        with tf.GradientTape() as tape:
            tape.watch([x, y])
            value = tf.square(wrapped(x, y))
        results.append((value, *tape.gradient(value, [x, y])))
    for expected, found in zip(*results):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert len(calls) == 3  # Once as it is; forward and once more, recomputed.


def test_what_is_not_a_number_stays_so():
    x = tf.constant([1.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = recomputed(tf.exp)(x) * [1.0, np.nan]
    np.testing.assert_array_equal(np.isnan(tape.gradient(value, x)), [False, True])
