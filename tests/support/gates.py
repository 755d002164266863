"""The gates, derived once more from the formulas, in numpy, token by token: what the routers are compared with.

Each takes probabilities or logits of one group and returns what Mesh TensorFlow calls the combine tensor, [S, E, C];
dispatch is where it is not zero.
"""

import numpy as np


def softmax(logits: np.ndarray, axis: int = -1) -> np.ndarray:
    exponents = np.exp(logits - logits.max(axis, keepdims=True))
    return exponents / exponents.sum(axis, keepdims=True)


class Experts:
    """Experts of one group that fill up."""

    def __init__(self, size: int, experts: int, capacity: int):
        self.combine = np.zeros([size, experts, capacity])
        self.used = [0] * experts

    def take(self, token: int, expert: int, gate: float) -> bool:
        if self.used[expert] == self.combine.shape[-1]:
            return False
        self.combine[token, expert, self.used[expert]] = gate
        self.used[expert] += 1
        return True


def ranking(probabilities: np.ndarray) -> list[int]:
    """Experts by falling probability, the lower index first among equals."""
    return sorted(range(len(probabilities)), key=lambda expert: -probabilities[expert])


def arrivals(probabilities: np.ndarray, mask: np.ndarray, by_gate: bool) -> list[int]:
    """Real tokens in the order in which they are served."""
    tokens = [token for token in range(len(mask)) if mask[token]]
    return sorted(tokens, key=lambda token: -probabilities[token].max()) if by_gate else tokens


def switch(probabilities: np.ndarray, mask: np.ndarray, capacity: int, by_gate: bool = False) -> np.ndarray:
    experts = Experts(*probabilities.shape, capacity)
    for token in arrivals(probabilities, mask, by_gate):
        best = ranking(probabilities[token])[0]
        experts.take(token, best, probabilities[token, best])
    return experts.combine


def top_n(
    probabilities: np.ndarray, mask: np.ndarray, capacity: int, n: int, policy: str, threshold: float, by_gate=False
) -> np.ndarray:
    experts = Experts(*probabilities.shape, capacity)
    for choice in range(n):
        for token in arrivals(probabilities, mask, by_gate):
            best = ranking(probabilities[token])[:n]
            gate = probabilities[token, best[choice]] / (probabilities[token, best].sum() + 1e-9)
            is_tried = {"all": True, "none": False, "threshold": gate > threshold}[policy]
            if choice == 0 or is_tried:
                experts.take(token, best[choice], gate)
    return experts.combine


def no_token_left_behind(probabilities: np.ndarray, mask: np.ndarray, capacity: int, tries: int) -> np.ndarray:
    experts = Experts(*probabilities.shape, capacity)
    waiting = arrivals(probabilities, mask, False)
    for choice in range(min(tries, probabilities.shape[1])):
        still_waiting = []
        for token in waiting:
            expert = ranking(probabilities[token])[choice]
            if not experts.take(token, expert, probabilities[token, expert]):
                still_waiting.append(token)
        waiting = still_waiting
    return experts.combine


def expert_choice(affinity: np.ndarray, mask: np.ndarray, capacity: int) -> np.ndarray:
    experts = Experts(*affinity.shape, capacity)
    real = [token for token in range(len(mask)) if mask[token]]
    for expert in range(affinity.shape[1]):
        for token in sorted(real, key=lambda token: -affinity[token, expert])[:capacity]:
            experts.take(token, expert, affinity[token, expert])
    return experts.combine


def expert_selection(logits: np.ndarray, mask: np.ndarray, capacity: int) -> np.ndarray:
    combine = expert_choice(over_tokens(logits, mask), mask, capacity)
    times_taken = (combine > 0).sum((1, 2), keepdims=True)
    return combine / np.maximum(times_taken, 1)


def over_tokens(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Softmax over the real tokens; [S, E], 0 for padding."""
    affinity = np.zeros(logits.shape)
    if mask.any():
        affinity[mask > 0] = softmax(logits[mask > 0], axis=0)
    return affinity


def balance_loss(probabilities: np.ndarray, mask: np.ndarray) -> float:
    """Eq. 4 to 6 over the real tokens of one group."""
    real = probabilities[mask > 0]
    first = np.eye(real.shape[1])[real.argmax(-1)]
    return real.shape[1] * np.sum(first.mean(0) * real.mean(0))


def expert_selection_loss(logits: np.ndarray, mask: np.ndarray) -> float:
    """Mesh TensorFlow's, over the real tokens of one group."""
    return mask.sum() * np.sum(over_tokens(logits, mask).mean(1) ** 2)


def z_loss(logits: np.ndarray, mask: np.ndarray) -> float:
    """Over the real tokens of all groups, [G, S, E] and [G, S]."""
    return np.mean(np.log(np.exp(logits).sum(-1))[mask > 0] ** 2)
