"""The annotated training step, partitioned by XLA, gives TensorFlow's losses, weights and slots."""

import collections
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.spmd import Partitioned
from tests.support.compilers import needs_pinned_jax
from tests.support.launch import ROOT

EXPERTS = "batch:data,experts:data"
HEADS = "heads:model,mlp:model,expert_mlp:model,vocab:model"
NUM_SPARSE_LAYERS = 2

pytestmark = needs_pinned_jax


@pytest.mark.parametrize(
    ("mesh_shape", "layout_rules", "num_microbatches"),
    [
        ("data:8", EXPERTS, 1),
        ("data:4,model:2", f"{EXPERTS},router_experts:data,{HEADS}", 2),
    ],
)
@pytest.mark.slow
def test_a_split_step_is_the_whole_step(tmp_path, mesh_shape, layout_rules, num_microbatches):
    file = tmp_path / "found.npz"
    command = [sys.executable, "-m", "tests.programs.partitioned", str(file), mesh_shape, layout_rules]
    command.append(str(num_microbatches))
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    found = np.load(file)
    names = [name.removeprefix("whole/") for name in found if name.startswith("whole/")]
    assert "losses" in names and len(names) > 60
    for name in names:
        split, whole = found[f"partitioned/{name}"], found[f"whole/{name}"]
        np.testing.assert_allclose(split, whole, rtol=1e-5, atol=1e-6, err_msg=name)

    table = json.loads(str(found["collectives"]))
    kinds = collections.Counter(collective["kind"] for collective in table)
    # To the experts and back, in the forward and in the backward pass.
    assert kinds["all-to-all"] == 4 * NUM_SPARSE_LAYERS
    assert kinds["all-reduce"] > 0
    if "model" not in mesh_shape:  # Counts of tokens, all gradients and losses together, the sizes of experts' updates.
        assert kinds == {"all-to-all": 4 * NUM_SPARSE_LAYERS, "all-reduce": 3}
    # No all-gather of expert weights, whole or sharded (d_model is 16, d_ff 32).
    gathered = [shape for collective in table if collective["kind"] == "all-gather" for shape in collective["shapes"]]
    assert not [shape for shape in gathered if re.search(r"\[(\d+,)?(16,(16|32)|(16|32),16)\]", shape)]


def test_the_order_of_a_compiler_changes_no_value():
    placement = Partitioned(Layout.parse("data:1", EXPERTS))
    tensor, others = tf.constant([1.5, -2.0], tf.bfloat16), [tf.constant([[-3.0, 4.0]]), tf.constant([0.5])]
    assert np.array_equal(placement.after(tensor, others), tensor) and placement.after(tensor, []) is tensor
    for value, again in zip(others, placement.reread(others, tf.constant(7))):
        assert np.array_equal(value, again)
