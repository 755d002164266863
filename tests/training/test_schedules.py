"""T5's learning rates at the steps that people know."""

import numpy as np
import pytest

from switch_tf.training.schedules import Constant, InverseSquareRoot


@pytest.mark.parametrize(
    ("step", "rate"), [(0, 0.01), (1, 0.01), (10_000, 0.01), (40_000, 0.005), (250_000, 0.002), (1_000_000, 0.001)]
)
def test_inverse_square_root(step, rate):
    np.testing.assert_allclose(InverseSquareRoot()(step), rate, rtol=1e-6)


def test_warm_up_is_flat_and_the_base_a_factor():
    schedule = InverseSquareRoot(base=2.0, warmup_steps=100)
    np.testing.assert_allclose([schedule(0), schedule(100), schedule(400)], [0.2, 0.2, 0.1], rtol=1e-6)


def test_constant():
    np.testing.assert_allclose([Constant(1e-3)(0), Constant(1e-3)(10**6)], 1e-3)
