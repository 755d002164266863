"""Adafactor against its formulas in float64 numpy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.partitioning.axes import Placement, placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.spmd import Partitioned
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.schedules import Constant


class NumpyAdafactor:
    """Shazeer and Stern 2018, algorithm 5 with relative steps, for one matrix or vector in float64."""

    def __init__(self, weight: np.ndarray, is_factored: bool):
        self.weight = weight.astype(np.float64)
        self.is_factored = is_factored
        self.row = self.column = self.full = 0.0
        self.step = 0

    def update(self, gradient: np.ndarray, rate: float) -> None:
        self.step += 1
        beta = 1 - self.step**-0.8
        squared = gradient.astype(np.float64) ** 2 + 1e-30
        if self.is_factored:
            self.row = beta * self.row + (1 - beta) * squared.mean(1)
            self.column = beta * self.column + (1 - beta) * squared.mean(0)
            second_moment = np.outer(self.row, self.column) / self.row.mean()
        else:
            self.full = beta * self.full + (1 - beta) * squared
            second_moment = self.full
        update = gradient / np.sqrt(second_moment)
        update /= max(1.0, np.sqrt(np.mean(update**2)))
        self.weight -= rate * max(1e-3, np.sqrt(np.mean(self.weight**2))) * update


def run(weight: np.ndarray, axes, gradients: list[np.ndarray], rate: float, **settings) -> tuple[np.ndarray, dict]:
    optimizer = Adafactor(**settings)
    slots = {name: tf.zeros(slot.shape) for name, slot in optimizer.slot_shapes(weight.shape, axes).items()}
    value = tf.constant(weight, tf.float32)
    for step, gradient in enumerate(gradients):
        change = optimizer.change(
            tf.constant(gradient, tf.float32), value, slots, axes, tf.constant(step, tf.int64), tf.constant(rate)
        )
        value, slots = change.weight, change.slots
    return value.numpy(), slots


def normal(shape, seed, scale=1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape, scale=scale)


@pytest.mark.parametrize(
    ("shape", "axes", "is_factored"),
    [
        ((160, 144), ("embed", "mlp"), True),
        ((144, 160), ("mlp", "embed"), True),
        ((64, 256), ("embed", "mlp"), False),  # A side below 128: not factored.
        ((160,), ("embed",), False),
        ((32, 160), (None, "heads"), False),
        ((160, 130), ("embed", None), False),  # A router is not factored, however large.
    ],
)
def test_matrices_and_vectors(shape, axes, is_factored):
    weight, gradients = normal(shape, 0, 0.1), [normal(shape, 1 + i, 0.01 * (i + 1)) for i in range(5)]
    reference = NumpyAdafactor(weight if shape[0] != 144 else weight.T, is_factored)
    for gradient in gradients:
        reference.update(gradient if shape[0] != 144 else gradient.T, 0.01)
    expected = reference.weight if shape[0] != 144 else reference.weight.T
    ours, slots = run(weight, axes, gradients, 0.01)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-7)
    assert set(slots) == ({"v_row", "v_column"} if is_factored else {"v"})


def test_each_expert_is_a_separate_matrix():
    weight = np.stack([normal((160, 144), e, 10.0**-e) for e in range(3)])
    gradients = [np.stack([normal((160, 144), 10 * i + e, 10.0**e) for e in range(3)]) for i in range(4)]
    ours, slots = run(weight, ("experts", "embed", "expert_mlp"), gradients, 0.02)
    for expert in range(3):
        reference = NumpyAdafactor(weight[expert], True)
        for gradient in gradients:
            reference.update(gradient[expert], 0.02)
        # Absolute: where a weight nearly cancels its update, the rounding is that of the two.
        np.testing.assert_allclose(ours[expert], reference.weight, rtol=3e-5, atol=3e-7 * 10.0**-expert)
    assert slots["v_row"].shape == [3, 160] and slots["v_column"].shape == [3, 144]


def test_attention_kernels_are_matrices_of_model_by_heads():
    weight, gradients = normal((160, 4, 36), 0), [normal((160, 4, 36), 1)]
    ours, slots = run(weight, ("embed", "heads", "kv"), gradients, 0.02)
    reference = NumpyAdafactor(weight.reshape(160, 144), True)
    reference.update(gradients[0].reshape(160, 144), 0.02)
    np.testing.assert_allclose(ours.reshape(160, 144), reference.weight, rtol=3e-5, atol=3e-7)
    assert slots["v_row"].shape == [160] and slots["v_column"].shape == [4, 36]


def test_updates_are_clipped_and_relative_to_the_weight():
    weight, gradient = np.full([8], 2.0), np.full([8], 100.0)
    ours, _ = run(weight, ("embed",), [gradient], 0.01)
    np.testing.assert_allclose(ours, 2.0 - 0.01 * 2.0, rtol=1e-6)
    # A weight of zeros is still updated, because of epsilon2.
    ours, _ = run(np.zeros([8]), ("embed",), [gradient], 0.01)
    np.testing.assert_allclose(ours, -0.01 * 1e-3, rtol=1e-5)


def test_factored_slots_are_small():
    slots = Adafactor().slot_shapes((128, 768, 3072), ("experts", "embed", "expert_mlp"))
    assert {name: slot.shape for name, slot in slots.items()} == {"v_row": (128, 768), "v_column": (128, 3072)}
    assert slots["v_column"].axes == ("experts", "expert_mlp")


def test_it_is_a_keras_optimizer():
    """`apply` updates variables as the pure function does, over several steps."""
    variable = keras.Variable(normal((160, 144), 0, 0.1).astype(np.float32), name="kernel")
    variable.axes = ("embed", "mlp")
    gradients = [normal((160, 144), 1 + i).astype(np.float32) for i in range(3)]
    expected, _ = run(variable.numpy(), variable.axes, gradients, 0.05)
    optimizer = Adafactor(learning_rate=Constant(0.05))
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient)], [variable])
    np.testing.assert_allclose(variable, expected, rtol=1e-5, atol=1e-7)
    assert Adafactor.from_config(optimizer.get_config()).decay_exponent == 0.8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "placement", [Placement(), Partitioned(Layout.parse("data:1", ""))], ids=["one", "partitioned"]
)
def test_a_gradient_that_is_not_finite_changes_nothing(placement, bad):
    """The two ways to leave a weight as it is: of one device, and of a program that XLA partitions."""
    weight, gradient = (tf.constant(normal((2, 160, 144), seed), tf.float32) for seed in (0, 1))
    slots = {"v_row": tf.ones([2, 160]), "v_column": tf.ones([2, 144])}

    def change(gradient, is_finite, **settings):
        arguments = (slots, ("experts", "embed", "expert_mlp"), tf.constant(3), tf.constant(0.25))
        with placed_by(placement):
            return Adafactor(**settings).change(gradient, weight, *arguments, is_finite=tf.constant(is_finite))

    whole = change(gradient, True)
    gradient = tf.tensor_scatter_nd_update(gradient, [[1, 0, 0]], [bad])
    kept = change(gradient, False)
    tf.nest.map_structure(np.testing.assert_array_equal, (kept.weight, kept.slots), (weight, slots))
    assert kept.mean_square == 0 and whole.mean_square > 0
    by_matrix = change(gradient, False, skip_by_matrix=True)
    np.testing.assert_array_equal(by_matrix.weight[1], weight[1])
    np.testing.assert_array_equal(by_matrix.weight[0], whole.weight[0])
    np.testing.assert_array_equal(by_matrix.slots["v_row"], [whole.slots["v_row"][0], slots["v_row"][1]])


def test_rates_and_steps_by_the_name_of_a_weight():
    """One matrix under three names: half of the rate is half of the step, and an absolute step has the size of u."""
    weight, gradient = normal((8, 8), 0, scale=0.1), normal((8, 8), 1)
    settings = {"rate_factors": {"router/": 0.5, ".": 1.0}, "absolute_steps": ["_norm/scale$"]}
    optimizer, plain = Adafactor(**settings), Adafactor()

    def step(optimizer, *name):
        slots = {"v": tf.zeros([8, 8])}
        arguments = (tf.constant(gradient, tf.float32), tf.constant(weight, tf.float32), slots)
        change = optimizer.change(*arguments, ("embed", "mlp"), tf.constant(0), tf.constant(0.25), *name)
        return change.weight.numpy() - weight

    whole = step(plain)
    np.testing.assert_array_equal(step(plain, "encoder/layer_1/router/kernel"), whole)
    np.testing.assert_array_equal(step(optimizer, "encoder/layer_1/wi"), whole)
    np.testing.assert_allclose(step(optimizer, "encoder/layer_1/router/kernel"), whole / 2, rtol=1e-5)
    # At the first step v = g^2: u is the gradient's sign.
    np.testing.assert_allclose(step(optimizer, "encoder/layer_1/x_norm/scale"), -0.25 * np.sign(gradient), rtol=1e-5)


def test_a_number_is_a_learning_rate():
    for rate in (7, 0.5, 0):
        np.testing.assert_array_equal(Adafactor(learning_rate=rate).rate(tf.constant(3)), np.float32(rate))


@pytest.mark.parametrize("rate", [-1, "0.1", True, Constant, [0.1]])
def test_what_is_no_learning_rate_is_refused(rate):
    with pytest.raises(SettingError, match=r"Adafactor\.learning_rate = .* must be 0 or more, or a schedule such as"):
        Adafactor(learning_rate=rate)


@pytest.mark.parametrize("settings", [{"rate_factors": {"router/[": 0.1}}, {"absolute_steps": ["router/["]}])
def test_names_of_weights_are_regular_expressions(settings):
    with pytest.raises(SettingError, match=r"'router/\[' is no regular expression"):
        Adafactor(**settings)


def test_settings_by_name_survive_keras_serialization():
    optimizer = Adafactor(rate_factors={"router/": 0.5}, absolute_steps=["scale$"])
    again = Adafactor.from_config(optimizer.get_config())
    assert (again.rate_factors, again.absolute_steps) == ({"router/": 0.5}, ("scale$",))
