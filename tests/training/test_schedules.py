"""T5's learning rates at well-known steps."""

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.training.schedules import Constant, InverseSquareRoot, ProductOfFactors, WarmupAndDecay


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


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


def test_linear_warm_up_and_decay_to_zero():
    schedule = WarmupAndDecay(peak=0.04, warmup_steps=4, total_steps=12, decay_steps=4)
    expected = [0.01, 0.02, 0.03, 0.04, 0.04, 0.04, 0.04, 0.04, 0.04, 0.03, 0.02, 0.01, 0.0, 0.0]
    np.testing.assert_allclose(rates(schedule, range(14)), expected, atol=1e-8)


def test_linear_decay_from_the_peak_to_a_final_rate():
    schedule = WarmupAndDecay(peak=1.0, warmup_steps=2, total_steps=10, final=0.2)
    expected = [0.5, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2]
    np.testing.assert_allclose(rates(schedule, range(11)), expected, rtol=1e-6)


def test_cosine_decay_is_half_a_period():
    schedule = WarmupAndDecay(peak=2.0, warmup_steps=0, total_steps=8, decay="cosine", final=1.0)
    expected = 1.0 + 0.5 * (1.0 + np.cos(np.pi * np.arange(10).clip(max=8) / 8))
    np.testing.assert_allclose(rates(schedule, range(10)), expected, rtol=1e-6)


def test_rsqrt_decay_after_the_warm_up():
    schedule = WarmupAndDecay(peak=0.1, warmup_steps=100, decay="rsqrt", final=0.02)
    steps = [0, 49, 99, 199, 399, 899, 1599, 2499, 9999, 10**6]
    expected = [0.001, 0.05, 0.1, 0.1 / 2**0.5, 0.05, 0.1 / 3, 0.025, 0.02, 0.02, 0.02]
    np.testing.assert_allclose(rates(schedule, steps), expected, rtol=1e-5)


def test_no_decay():
    np.testing.assert_allclose(
        rates(WarmupAndDecay(peak=0.1, warmup_steps=2, decay="none"), [0, 1, 10**6]), [0.05, 0.1, 0.1]
    )


# Values that T5X's create_learning_rate_scheduler returns, worked out from its definition with Python floats.
@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (
            {"factors": "constant * linear_warmup * rsqrt_decay", "base_learning_rate": 1.0, "warmup_steps": 100},
            [0, 1, 10, 50, 100, 101, 400, 900, 10_000, 1_000_000],
            [1e-8, 0.001, 0.01, 0.05, 0.1, 0.0995037190, 0.05, 1 / 30, 0.01, 0.001],
        ),
        (
            {"factors": "constant*rsqrt_normalized_decay", "base_learning_rate": 0.5, "warmup_steps": 400},
            [0, 1, 100, 400, 1600, 3600, 6400, 10_000, 40_000, 640_000],
            [0.5, 0.5, 0.5, 0.5, 0.25, 1 / 6, 0.125, 0.1, 0.05, 0.0125],
        ),
        (
            {"factors": "linear_decay", "base_learning_rate": 2.0, "warmup_steps": 4, "decay_factor": 0.125},
            [0, 1, 2, 3, 4, 5, 6, 8, 11, 100],
            [1e-8, 0.5, 1.0, 1.5, 2.0, 1.75, 1.5, 1.0, 0.25, 1e-8],
        ),
        (
            {"factors": "constant * decay_every", "base_learning_rate": 1.0, "steps_per_decay": 10},
            [0, 1, 9, 10, 19, 20, 29, 30, 40, 50],
            [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.0625, 0.03125],
        ),
        (
            {
                "factors": "constant * cosine_decay",
                "base_learning_rate": 1.0,
                "warmup_steps": 10,
                "steps_per_cycle": 60,
            },
            [0, 10, 20, 30, 40, 50, 60, 69, 70, 100],
            [1, 1, 0.93301270, 0.75, 0.5, 0.25, 0.06698730, 0.00068523, 1, 0.5],
        ),
    ],
)
def test_products_of_t5xs_factors(settings, steps, expected):
    np.testing.assert_allclose(rates(ProductOfFactors(**settings), steps), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ProductOfFactors("constant * rsqrt"), "'rsqrt' is unknown"),
        (lambda: ProductOfFactors(warmup_steps=0), "warmup_steps = 0"),
        (lambda: WarmupAndDecay(decay="exponential"), "decay = 'exponential' is unknown"),
        (lambda: WarmupAndDecay(peak=0.1, final=0.2), "final = 0.2"),
        (lambda: WarmupAndDecay(total_steps=0), "total_steps = 0"),
    ],
)
def test_wrong_settings_are_named(make, sentence):
    with pytest.raises(SettingError, match=sentence):
        make()


@pytest.mark.parametrize("schedule", [WarmupAndDecay(peak=0.5, decay="cosine"), ProductOfFactors(decay_factor=0.1)])
def test_schedules_survive_keras_serialization(schedule):
    again = type(schedule).from_config(schedule.get_config())
    assert again.get_config() == schedule.get_config()
    assert rates(again, [0, 500, 5000]) == rates(schedule, [0, 500, 5000])
