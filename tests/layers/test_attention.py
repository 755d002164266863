"""Attention, its masks and its cache; the relative position buckets of T5."""

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.layers import attention
from switch_tf.layers.attention import KeyValues, MultiHeadAttention
from switch_tf.layers.embedding import RelativePositionBias, TokenEmbedder, relative_position_bucket
from switch_tf.layers.normalization import RMSNorm
from switch_tf.partitioning import axes


def layer(**settings) -> MultiHeadAttention:
    built = MultiHeadAttention(d_model=16, num_heads=4, d_kv=8, name="attention", **settings)
    built.build()
    return built


def sequence(length=6, batch=2, seed=0) -> tf.Tensor:
    return tf.random.stateless_normal([batch, length, 16], (seed, 2))


def test_attention_equals_a_loop_over_heads_without_scaling():
    built, x, memory = layer(), sequence(), sequence(5, seed=1)
    bias = np.random.default_rng(0).normal(size=[1, 4, 6, 5]).astype(np.float32)
    output = built.attend(built.project_query(x), built.project(memory), [bias])
    expected = np.zeros([2, 6, 16])
    for b, head in np.ndindex(2, 4):
        query, key, value = (
            np.asarray(source[b]) @ kernel.numpy()[:, head]
            for source, kernel in ((x, built.query), (memory, built.key), (memory, built.value))
        )
        logits = query @ key.T + bias[0, head]
        weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        expected[b] += weights @ value @ built.out.numpy()[head]
    np.testing.assert_allclose(output, expected, atol=1e-4)


def test_masked_keys_do_not_matter():
    built, x = layer(), sequence()
    mask = np.array([[True] * 4 + [False] * 2] * 2)
    bias = attention.padding_bias(tf.constant(mask))
    other = tf.where(mask[..., np.newaxis], x, 9.0)
    query = built.project_query(x)
    seen, expected = (built.attend(query, built.project(memory), [bias]) for memory in (other, x))
    np.testing.assert_allclose(seen, expected, atol=1e-6)


def test_segments_do_not_attend_to_each_other():
    segments = tf.constant([[1, 1, 2, 2, 0]])
    bias = attention.segment_bias(segments, segments)[0, 0].numpy()
    same = np.equal.outer(segments[0], segments[0])
    np.testing.assert_array_equal(bias == 0, same)


def test_cache_holds_one_position_after_the_other():
    cache = KeyValues.empty(2, 3, 4, 8, tf.float32)
    new = KeyValues(tf.ones([2, 4, 1, 8]), 2 * tf.ones([2, 4, 1, 8]))
    cache = cache.written(new, tf.constant(1))
    np.testing.assert_array_equal(cache.keys[0, 0, :, 0], [0, 1, 0])
    np.testing.assert_array_equal(cache.values[0, 0, :, 0], [0, 2, 0])


def buckets_by_hand(distance: int, bidirectional: bool, buckets: int = 32, farthest: int = 128) -> int:
    """T5's rule in words: sign, then exact distances, then logarithmic ones."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)
    exact = buckets // 2
    if distance < exact:
        return offset + distance
    far = exact + int(np.log(distance / exact) / np.log(farthest / exact) * (buckets - exact) + 1e-9)
    return offset + min(far, buckets - 1)


@pytest.mark.parametrize("bidirectional", [True, False])
def test_relative_position_buckets(bidirectional):
    distances = np.arange(-300, 301)
    ours = relative_position_bucket(
        tf.constant(distances, tf.int32), bidirectional=bidirectional, num_buckets=32, max_distance=128
    )
    np.testing.assert_array_equal(ours, [buckets_by_hand(int(d), bidirectional) for d in distances])


def test_position_bias_depends_on_the_distance_alone():
    bias = RelativePositionBias(4, bidirectional=True, name="bias")
    bias.build()
    values = bias(tf.range(6), tf.range(6))
    assert values.shape == [1, 4, 6, 6]
    np.testing.assert_allclose(values[:, :, 1:, 1:], values[:, :, :-1, :-1])
    np.testing.assert_allclose(values[0, :, 2, 5], bias.embedding[16 + 3])


def test_rms_norm_divides_by_the_root_mean_square():
    norm = RMSNorm(16, epsilon=1e-6, name="norm")
    norm.build()
    norm.scale.assign(np.arange(16, dtype=np.float32))
    x = 3 + 10 * sequence().numpy()
    expected = np.arange(16) * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(norm(tf.constant(x)), expected, rtol=1e-5)


def test_tied_logits_are_scaled():
    embedder = TokenEmbedder(32, 16, name="embedder")
    embedder.build()
    x = sequence()
    expected = np.asarray(x) / 4 @ embedder.embedding.numpy().T
    np.testing.assert_allclose(embedder.attend(x), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(embedder(tf.constant([[3, 1]]))[0, 0], embedder.embedding[3])
    assert np.std(embedder.embedding) == pytest.approx(1.0, rel=0.1)


class _Partitioned(axes.Placement):
    is_partitioned = True


@pytest.mark.parametrize("placement", [axes.Placement(), _Partitioned()], ids=["scattered", "selected"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_cache_is_written_at_one_position(rows, placement):
    random = np.random.default_rng(0)
    cache = KeyValues(*(tf.constant(random.normal(size=[2, 4, 5 * rows, 8]), tf.float32) for _ in range(2)))
    new = KeyValues(*(tf.constant(random.normal(size=[2, 4, rows, 8]), tf.float32) for _ in range(2)))
    for position in range(5):
        expected = [old.numpy() for old in cache]
        with axes.placed_by(placement):
            after = tf.function(KeyValues.written, autograph=False)(cache, new, tf.constant(position))
        for index in range(2):
            expected[index][:, :, position * rows : (position + 1) * rows] = new[index].numpy()
            np.testing.assert_array_equal(after[index], expected[index])
