"""What each expert knows: the tokens that it gets more often than chance, from counts over held-out data."""

import itertools
import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

# A token counts for an expert if it comes at least so often, and at least so many times as often as by chance.
LEAST_COUNT = 5
LEAST_RATIO = 2.0


class TokenOfExpert(NamedTuple):
    """A token that an expert gets more often than chance.

    piece: its text.
    times: how often the expert got it.
    ratio: that relative to chance; its logarithm is the pointwise mutual information of token and expert.
    """

    piece: str
    times: int
    ratio: float


class ExpertProfile(NamedTuple):
    """What an expert gets.

    share: of all tokens of the layer that have a slot.
    tokens: the most typical first, by count times pointwise mutual information.
    kinds: (kind, share of the expert's tokens, that relative to all experts), the most typical first.
    """

    share: float
    tokens: list[TokenOfExpert]
    kinds: list[tuple[str, float, float]]


class LayerProfile(NamedTuple):
    """What the experts of a layer get.

    experts: by index.
    mutual_information: of token and expert, in nats.
    chance_information: the same where experts are drawn by their shares alone; above 0, and more so with rare tokens.
    most_information: the entropy of the experts' shares, reached if the token alone decides; ln E for equal shares.
    """

    experts: list[ExpertProfile]
    mutual_information: float
    chance_information: float
    most_information: float

    @property
    def information(self) -> str:
        """The three in a sentence."""
        return (
            f"Mutual information of token and expert: {self.mutual_information:.2f} nats "
            f"({self.chance_information:.2f} by chance, at most {self.most_information:.2f})"
        )


class Following(NamedTuple):
    """How the experts of one layer follow those of the layer before it.

    mutual_information: of both choices, relative to the smaller entropy of the two; 1 if one decides the other.
    next_expert: int [E], the expert that most of an expert's tokens go to next.
    next_share: float [E], which share of them; NaN for an expert without tokens.
    """

    mutual_information: float
    next_expert: np.ndarray
    next_share: np.ndarray


def kind_of(piece: str) -> str:
    """Returns the kind of a piece: "sentinel", "control", "space", "digits", "punctuation", or by its first letter.

    By the letter: "name" (a capital at the start of a word), "capital", "word", "part of a word", or another script.
    """
    text = piece.lstrip("▁")
    if text.startswith("<extra_id_"):
        return "sentinel"
    if text.startswith("<") and text.endswith(">") and len(text) > 2:
        return "control"
    if not text:
        return "space"
    if text.isdigit():
        return "digits"
    if not any(character.isalpha() for character in text):
        return "punctuation"
    first = next(character for character in text if character.isalpha())
    script = unicodedata.name(first, "OTHER").split()[0].lower()
    if script != "latin":
        return script
    if first.isupper():
        return "name" if piece.startswith("▁") and len(text) > 1 else "capital"
    return "word" if piece.startswith("▁") else "part of a word"


def _information(joint: np.ndarray) -> float:
    """Mutual information in nats of a table of counts."""
    joint = joint / max(joint.sum(), 1)
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float(np.sum(joint[seen] * np.log(joint[seen] / expected[seen])))


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / max(counts.sum(), 1)
    return float(-np.sum(shares * np.log(shares)))


def layer_profile(
    tokens: np.ndarray, experts: np.ndarray, num_experts: int, pieces: Sequence[str], most: int = 12
) -> LayerProfile:
    """Sums up what the experts of a layer get.

    Args:
      tokens: int [N], ids of the tokens.
      experts: int [N, K], the experts of each token, -1 for none.
      num_experts: E.
      pieces: the text of every id.
      most: how many tokens to list for an expert.

    Returns:
      The profile.
    """
    ids = np.repeat(tokens, experts.shape[1])
    chosen = experts.ravel()
    ids, chosen = ids[chosen >= 0], chosen[chosen >= 0]
    known, columns = np.unique(ids, return_inverse=True)

    def table(experts: np.ndarray) -> np.ndarray:
        counts = np.bincount(experts * len(known) + columns, minlength=num_experts * len(known))
        return counts.reshape(num_experts, len(known))

    counts, by_chance = table(chosen), table(np.random.default_rng(0).permutation(chosen))
    total, of_expert, of_token = max(counts.sum(), 1), counts.sum(axis=1), counts.sum(axis=0)
    ratios = counts * total / np.maximum(np.outer(of_expert, of_token), 1)
    kinds = np.array([kind_of(pieces[index]) for index in known])
    of_kind = {kind: of_token[kinds == kind].sum() / total for kind in dict.fromkeys(kinds)}

    # Chernoff's bound of a count's probability under independence: of all cells, less than one passes it by chance.
    expected = np.outer(of_expert, of_token) / total
    is_no_chance = counts * np.log(np.maximum(ratios, 1.0)) - (counts - expected) > math.log(max(counts.size, 1))

    def profile(expert: int) -> ExpertProfile:
        typical = (counts[expert] >= LEAST_COUNT) & (ratios[expert] >= LEAST_RATIO) & is_no_chance[expert]
        weights = np.where(typical, counts[expert] * np.log(np.maximum(ratios[expert], 1.0)), -1.0)
        order = [index for index in np.argsort(-weights, kind="stable")[:most] if typical[index]]
        listed = [
            TokenOfExpert(pieces[known[index]], int(counts[expert, index]), float(ratios[expert, index]))
            for index in order
        ]
        shares = {kind: counts[expert][kinds == kind].sum() / max(of_expert[expert], 1) for kind in of_kind}
        typical_kinds = sorted(
            ((kind, float(share), float(share / of_kind[kind])) for kind, share in shares.items() if share > 0.02),
            key=lambda entry: -entry[1] * math.log(entry[2]),
        )
        return ExpertProfile(float(of_expert[expert] / total), listed, typical_kinds)

    return LayerProfile(
        [profile(expert) for expert in range(num_experts)],
        _information(counts),
        _information(by_chance),
        _entropy(of_expert),
    )


def following(first: np.ndarray, second: np.ndarray, num_experts: int) -> Following:
    """Compares the first choices of two layers for the same tokens: int [N] each, -1 for none."""
    both = (first >= 0) & (second >= 0)
    joint = np.bincount(first[both] * num_experts + second[both], minlength=num_experts**2)
    joint = joint.reshape(num_experts, num_experts)
    least = min(_entropy(joint.sum(axis=1)), _entropy(joint.sum(axis=0)))
    totals = joint.sum(axis=1)
    share = np.divide(joint.max(axis=1), totals, out=np.full(num_experts, np.nan), where=totals > 0)
    return Following(_information(joint) / least if least > 0 else 0.0, joint.argmax(axis=1), share)


def weight_similarity(weights: Sequence[np.ndarray]) -> np.ndarray:
    """Compares the experts of a layer: [E, ...] weights -> float [E, E], cosines of all weights of two experts."""
    rows = np.concatenate([np.reshape(weight, [len(weight), -1]) for weight in weights], axis=1)
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    return rows @ rows.T


def followings(first_choices: Mapping[str, np.ndarray], num_experts: int) -> dict[tuple[str, str], Following]:
    """Compares each layer with the next one of its stack: int [N] first choices by layer -> by (layer, next layer)."""
    layers = list(first_choices)
    return {
        (layer, later): following(first_choices[layer], first_choices[later], num_experts)
        for layer, later in itertools.pairwise(layers)
        if layer.split("/")[0] == later.split("/")[0]
    }
