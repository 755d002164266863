"""Noise is a function of seed and position, and is distributed as it says."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.layers import randomness
from switch_tf.partitioning import axes


def test_same_seed_same_numbers_other_seed_others():
    first = randomness.uniform((64, 8), 3).numpy()
    np.testing.assert_array_equal(first, randomness.uniform((64, 8), 3).numpy())
    assert not np.array_equal(first, randomness.uniform((64, 8), 4).numpy())


def test_a_traced_seed_gives_the_numbers_of_a_python_one():
    traced = tf.function(lambda seed: randomness.uniform((5, 7), randomness.fold_in(seed, "layer")))
    expected = randomness.uniform((5, 7), randomness.fold_in(11, "layer"))
    np.testing.assert_array_equal(traced(tf.constant(11)), expected)


def test_an_element_does_not_depend_on_how_many_rows_there_are():
    np.testing.assert_array_equal(randomness.uniform((4, 6), 0), randomness.uniform((9, 6), 0)[:4])


def test_uniform_is_uniform_and_uncorrelated():
    numbers = randomness.uniform((512, 512), 1).numpy()
    assert numbers.min() > 0.0 and numbers.max() < 1.0
    counts, _ = np.histogram(numbers, bins=64, range=(0, 1))
    expected = numbers.size / 64
    chi_square = np.sum((counts - expected) ** 2 / expected)
    # 63 degrees of freedom: mean 63, standard deviation 11.2.
    assert chi_square < 63 + 5 * 11.2
    standard_error = numbers.size**-0.5
    for shifted in (np.roll(numbers, 1, axis=0), np.roll(numbers, 1, axis=1)):
        assert abs(np.corrcoef(numbers.ravel(), shifted.ravel())[0, 1]) < 5 * standard_error


def test_the_lowest_and_the_highest_bits_are_inside_of_the_open_interval(monkeypatch):
    monkeypatch.setattr(randomness, "random_bits", lambda shape, seed, *block: tf.constant([0, 0xFFFFFFFF], tf.uint32))
    lowest, highest = randomness.uniform((2,), 0).numpy()
    assert 0.0 < lowest < highest < 1.0
    assert lowest == 1.0 - highest
    assert np.isfinite(randomness.normal((2,), 1.0, 0)).all()


def test_neighbouring_seeds_are_uncorrelated():
    first, second = (randomness.uniform((100_000,), seed).numpy() for seed in (0, 1))
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 * 100_000**-0.5


def test_truncated_normal_has_the_moments_of_one_cut_at_two_sigma():
    numbers = randomness.truncated_normal((1000, 1000), 0.5, 0).numpy()
    assert np.abs(numbers).max() <= 1.0
    assert numbers.mean() == pytest.approx(0.0, abs=3e-3)
    assert numbers.std() == pytest.approx(0.5 * 0.87962566, rel=5e-3)


def test_normal_has_unit_variance_and_normal_tails():
    numbers = randomness.normal((1000, 1000), 1.0, 0).numpy()
    assert numbers.std() == pytest.approx(1.0, rel=5e-3)
    assert np.mean(np.abs(numbers) > 2) == pytest.approx(0.0455, rel=0.05)


def test_a_shard_of_a_weight_has_the_values_of_the_whole_weight():
    whole = randomness.truncated_normal((6, 8), 1.0, 3).numpy()
    np.testing.assert_array_equal(randomness.truncated_normal((2, 4), 1.0, 3, start=(4, 2)), whole[4:, 2:6])


def test_a_replica_draws_its_own_part_of_the_mask():
    class SecondReplica(axes.Placement):
        def global_indices(self, axes_of_tensor, dimension, size):
            return tf.range(size) + (size if axes_of_tensor[dimension] == axes.BATCH else 0)

    names = (axes.BATCH, axes.LENGTH)
    with axes.placed_by(SecondReplica()):
        part = randomness.uniform((2, 5), 1, names)
    np.testing.assert_array_equal(part, randomness.uniform((4, 5), 1, names)[2:])
