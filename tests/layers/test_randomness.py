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


def jitter(seed, shape=(4, 256, 128)) -> np.ndarray:
    """The noise of `randomness.jitter` in units of epsilon: uniform in [-1, 1]."""
    return (randomness.jitter(shape, 0.25, seed).numpy() - 1.0) / 0.25


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """The correlation of uniform numbers in units of its standard error."""
    return float(np.mean(first * second)) * 3.0 * first.size**0.5


@pytest.mark.parametrize("seed", range(5))
def test_jitter_has_the_moments_and_the_histogram_of_a_uniform_distribution(seed):
    noise = jitter(seed)
    assert np.abs(noise).max() <= 1.0
    # The variance of n is 1/3, that of n^2 is 4/45.
    assert abs(noise.mean()) < 4 * (3 * noise.size) ** -0.5
    assert abs(np.mean(noise**2) - 1 / 3) < 4 * (4 / 45 / noise.size) ** 0.5
    counts, _ = np.histogram(noise, bins=64, range=(-1, 1))
    assert np.sum((counts - noise.size / 64) ** 2 / (noise.size / 64)) < 63 + 5 * 11.2
    # Every token and every dimension, too: 1,024 means of 128, and 128 means of 1,024, have the variance of a mean.
    for kept, others in (((0, 1), 2), (2, (0, 1))):
        means = (
            noise.mean(others).ravel() * (3 * noise.size / np.prod(np.array(noise.shape)[np.atleast_1d(kept)])) ** 0.5
        )
        assert abs(np.mean(means**2) - 1) < 5 * (2 / means.size) ** 0.5


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("distance", [1, 2, 3, 64])
def test_jitter_of_elements_at_a_distance_is_uncorrelated(axis, distance):
    noise = jitter(7, (70, 75, 100))
    shifted = np.roll(noise, distance, axis)
    assert abs(correlation(noise, shifted)) < 5
    pairs, *_ = np.histogram2d(noise.ravel(), shifted.ravel(), bins=8, range=[(-1, 1), (-1, 1)])
    expected = noise.size / 64
    assert np.sum((pairs - expected) ** 2 / expected) < 63 + 5 * 11.2


def test_jitter_of_two_tokens_or_two_dimensions_agrees_no_more_than_by_chance():
    """The scalar products of 256 tokens' noise have the variance of independent ones; so have those of dimensions."""
    noise = jitter(5)[0]
    for vectors in (noise, noise.T):
        products = (vectors @ vectors.T)[np.triu_indices(len(vectors), 1)]
        assert np.mean(products**2) == pytest.approx(vectors.shape[1] / 9, rel=0.05)
        # With 32,640 pairs the largest of as many normal numbers is 4.2 standard deviations.
        assert np.abs(products).max() < 6 * (vectors.shape[1] / 9) ** 0.5


@pytest.mark.parametrize("other", [1, 2, 2**16, randomness.fold_in(0, "encoder/layer_1"), randomness.fold_in(0, 1)])
def test_jitter_of_other_seeds_steps_and_layers_is_uncorrelated(other):
    first, second = jitter(0), jitter(other)
    assert abs(correlation(first, second)) < 5
    for axis in range(3):
        assert abs(correlation(first, np.roll(second, 1, axis))) < 5


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
        jitter_of_part = randomness.jitter((2, 5), 0.1, 1, names)
    np.testing.assert_array_equal(part, randomness.uniform((4, 5), 1, names)[2:])
    np.testing.assert_array_equal(jitter_of_part, randomness.jitter((4, 5), 0.1, 1, names)[2:])
