"""Writes what the layer of a system that `make bench` compares computes: `... SYSTEM OUTPUT`."""

import importlib
import sys

import numpy as np

from benchmarks import peers
from tests.support.peer_layer import SIZES


def main(system: str, output: str) -> None:
    """Runs the forward pass."""
    peers.prepare(system)
    forward, _ = importlib.import_module(f"benchmarks.peer_{system}").layer(SIZES, training=False)
    np.save(output, np.asarray(forward()))


if __name__ == "__main__":
    main(*sys.argv[1:])
