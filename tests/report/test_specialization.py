"""What experts know, on constructed choices."""

import math

import numpy as np
import pytest

from switch_tf.report.specialization import following, kind_of, layer_profile, weight_similarity

# Four kinds of documents with disjoint words, five words each.
PIECES = ["<pad>", *(f"▁{kind}{word}" for kind in ("fish", "bird", "tree", "rock") for word in "abcde")]


def test_experts_of_disjoint_kinds_are_named_by_their_words():
    """Expert k gets the words of kind k, but for a tenth of all tokens, which go anywhere."""
    generator = np.random.default_rng(0)
    tokens = generator.integers(1, 21, size=8000)
    experts = np.where(generator.random(8000) < 0.1, generator.integers(0, 4, size=8000), (tokens - 1) // 5)
    profile = layer_profile(tokens, experts.reshape(-1, 1), 4, PIECES)
    for expert, kind in enumerate(("fish", "bird", "tree", "rock")):
        listed = profile.experts[expert].tokens
        assert {token.piece for token in listed} == {f"▁{kind}{word}" for word in "abcde"}
        # 92.5 % of a word's tokens are at its expert, which gets a quarter of all.
        assert all(token.ratio == pytest.approx(0.925 * 4, rel=0.1) for token in listed)
    assert 0.7 * math.log(4) < profile.mutual_information < math.log(4)


def test_experts_that_choose_by_chance_know_nothing():
    generator = np.random.default_rng(1)
    tokens, experts = generator.integers(1, 21, size=8000), generator.integers(0, 4, size=[8000, 1])
    profile = layer_profile(tokens, experts, 4, PIECES)
    assert all(not expert.tokens for expert in profile.experts)
    assert profile.mutual_information < 0.01


def test_rare_tokens_of_many_experts_are_no_evidence():
    """With 64 experts and words as frequent as in texts, some of them fall on an expert many times by chance alone."""
    generator = np.random.default_rng(3)
    tokens = np.minimum(generator.zipf(1.2, size=60_000), 5_000)
    profile = layer_profile(tokens, generator.integers(0, 64, size=[60_000, 1]), 64, [f"▁{i}" for i in range(5_001)])
    assert sum(len(expert.tokens) for expert in profile.experts) <= 1


def test_tokens_without_a_slot_do_not_count():
    profile = layer_profile(np.array([1, 1, 2]), np.array([[0], [-1], [1]]), 2, PIECES)
    assert [expert.share for expert in profile.experts] == [0.5, 0.5]


def test_layers_that_agree_share_all_information():
    first = np.arange(400) % 4
    assert following(first, (first + 1) % 4, 4).mutual_information == pytest.approx(1.0)
    np.testing.assert_array_equal(following(first, (first + 1) % 4, 4).next_expert, [1, 2, 3, 0])
    assert following(first, np.arange(400) // 4 % 4, 4).mutual_information == pytest.approx(0.0, abs=1e-9)


def test_equal_experts_have_a_cosine_of_one():
    weights = np.random.default_rng(2).normal(size=[3, 4, 5])
    weights[2] = 2 * weights[0]
    similarity = weight_similarity([weights, weights])
    assert similarity[0, 2] == pytest.approx(1.0) and abs(similarity[0, 1]) < 0.9


@pytest.mark.parametrize(
    ("piece", "kind"),
    [
        ("▁<extra_id_3>", "sentinel"),
        ("<pad>", "control"),
        ("▁2024", "digits"),
        ("),", "punctuation"),
        ("▁Paris", "name"),
        ("▁house", "word"),
        ("ing", "part of a word"),
        ("▁дом", "cyrillic"),
        ("▁", "space"),
    ],
)
def test_kinds(piece, kind):
    assert kind_of(piece) == kind
