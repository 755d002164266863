"""The Switch layers that `make bench` compares compute the same from the same weights."""

import importlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import peers
from tests.support.peer_layer import SIZES


def expected() -> np.ndarray:
    """The layer in numpy, a token after the other (Sec. 2.1 and 2.2 of the paper)."""
    weights, x = SIZES.weights(), SIZES.inputs().astype(np.float64)
    y = np.zeros_like(x)
    for group, tokens in enumerate(x):
        filled = np.zeros(SIZES.num_experts, int)
        for index, token in enumerate(tokens):
            scores = np.exp(token @ weights["router"])
            expert = scores.argmax()
            if filled[expert] < SIZES.capacity:
                hidden = np.maximum(token @ weights["wi"][expert], 0.0)
                y[group, index] = scores[expert] / scores.sum() * (hidden @ weights["wo"][expert])
            filled[expert] += 1
    return y


@pytest.mark.parametrize(
    ("system", "package"),
    [("switch_tf", "tensorflow"), ("mesh_tensorflow", "mesh_tensorflow"), ("jax", "jax"), ("huggingface", "torch")],
)
def test_a_layer_computes_what_the_paper_says(system, package, tmp_path):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    path = tmp_path / "y.npy"
    # In a process of its own: Mesh TensorFlow turns eager execution off.
    subprocess.run([sys.executable, "-m", "tests.programs.layer_of_a_peer", system, str(path)], check=True)
    y, dropped = np.load(path), np.abs(expected()).max(axis=-1) == 0
    assert 0 < dropped.sum() < dropped.size / 2
    np.testing.assert_allclose(y, expected(), rtol=1e-4, atol=1e-5)


def test_a_system_whose_process_fails_is_named():
    """Ours trains Hugging Face's weights, which nobody has written here."""
    with pytest.raises(SystemExit, match="The process of switch_tf has ended"):
        peers.measure(8, 1, ["step"], ["switch_tf"])
