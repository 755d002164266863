"""Sizes, batches and weights that all systems of `benchmarks.peers` share. No system's library is imported here."""

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

# Of activations; weights are float32 in both.
DTYPES = ("float32", "bfloat16")
BATCH, INPUTS, TARGETS = 16, 256, 64
# Rows and beams of each generation; one beam is greedy decoding.
GENERATIONS = {"greedy of 1": (1, 1), "generate": (BATCH, 1), "beams of 1": (1, 4), "beams": (BATCH, 4)}
# All cores of the machine, for every system.
THREADS = os.cpu_count() or 1


class Layer(NamedTuple):
    """The sizes of one Switch layer: those of `benchmarks.feed_forward`."""

    num_experts: int
    d_model: int = 512
    d_ff: int = 2048
    num_groups: int = 16
    group_size: int = 1024
    capacity_factor: float = 1.0

    @property
    def capacity(self) -> int:
        """Slots of an expert in a group."""
        return max(4, int(self.group_size * self.capacity_factor / self.num_experts))

    def weights(self) -> dict[str, np.ndarray]:
        """Weights of the router [M, E] and of the experts, wi [E, M, H] and wo [E, H, M]: the same each time."""
        shapes = {
            "router": (self.d_model, self.num_experts),
            "wi": (self.num_experts, self.d_model, self.d_ff),
            "wo": (self.num_experts, self.d_ff, self.d_model),
        }
        random = np.random.default_rng(1)
        return {
            name: random.standard_normal(shape, np.float32) / np.float32(np.sqrt(shape[-2]))
            for name, shape in shapes.items()
        }

    def inputs(self) -> np.ndarray:
        """Tokens [G, S, M]: the same each time."""
        random = np.random.default_rng(0)
        return random.standard_normal((self.num_groups, self.group_size, self.d_model), np.float32)


def features() -> dict[str, np.ndarray]:
    """A batch without padding."""
    random = np.random.default_rng(0)
    targets = random.integers(2, 4096, [BATCH, TARGETS], dtype=np.int32)
    shifted = np.concatenate([np.zeros([BATCH, 1], np.int32), targets[:, :-1]], axis=1)
    return {
        "encoder_input_tokens": random.integers(2, 4096, [BATCH, INPUTS], dtype=np.int32),
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
    }


def on_first_call(build: Callable[[], Callable[[], object]]) -> Callable[[], object]:
    """Returns what `build` returns, but builds it when it is called, so that it takes no memory before."""
    build_once = functools.cache(build)
    return lambda: build_once()()
