"""`benchmarks.accelerator` in small, on this machine's processor: what TensorFlow exports, JAX runs."""

import jax
import numpy as np
import pytest

from benchmarks import accelerator
from tests.support.compilers import needs_pinned_jax

pytestmark = needs_pinned_jax


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(accelerator, "GROUPS", 1)
    monkeypatch.setattr(accelerator, "LAYER", {"d_model": 8, "d_ff": 16})
    monkeypatch.setattr(accelerator, "LAYER_EXPERTS", (2,))
    monkeypatch.setattr(accelerator, "STEP_EXPERTS", ())
    monkeypatch.setattr(accelerator, "DEPTH", 1)
    small = {"vocab_size": 128, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2}
    monkeypatch.setattr(accelerator, "MODEL", small)
    for name, size in (("BATCH", 2), ("INPUTS", 8), ("TARGETS", 4), ("_CALLS", 2)):
        monkeypatch.setattr(accelerator, name, size)
    accelerator.export(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_programs_are_exported_and_timed(folder, capsys):
    rows = accelerator.timed(folder, rounds=2)
    names = [(row["what"], row["system"], row["experts"]) for row in rows]
    layers = [("layer", name, 2) for name in ("bound", "einsum", "gather")]
    assert sorted(names) == [("layer", "bound", 2), ("layer", "dense", 0), *layers[1:], ("step", "ours", 0)]
    assert all(row["seconds"] > 0 and row["ratio"] > 0 for row in rows)
    assert capsys.readouterr().out.count(" ms") == len(rows)

    gradients = {}
    for name in ("layer-gather-2", "layer-einsum-2"):
        arguments = accelerator._arguments(folder, name)
        gradients[name] = jax.tree.leaves(accelerator._exported(folder, name)(*arguments.values()))
    for gathered, masked in zip(*gradients.values()):
        np.testing.assert_allclose(*(np.asarray(each, np.float32) for each in (gathered, masked)), rtol=0.1, atol=0.05)
        assert np.any(np.asarray(gathered, np.float32) != 0)
