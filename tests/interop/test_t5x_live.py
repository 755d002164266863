"""What we write in T5X's format, read by T5X itself: make test-all, where T5X is installed (from its repository)."""

import numpy as np
import pytest

from switch_tf.interop import t5x
from switch_tf.interop.lazy_tensors import DTYPES
from tests.support.random_weights import CONFIG, lazy, random_weights

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_load_t5x_checkpoint_reads_every_weight(tmp_path, dtype):
    theirs = pytest.importorskip("t5x.checkpoints", reason="T5X is not installed")
    weights = random_weights(CONFIG, DTYPES[dtype])
    t5x.write_t5x(str(tmp_path), lazy(weights), 1000)
    tree = theirs.load_t5x_checkpoint(str(tmp_path))
    assert int(tree["state"]["step"]) == 1000
    target, leaves = tree["target"], []

    def walk(node):
        for value in node.values():
            walk(value) if isinstance(value, dict) else leaves.append(np.asarray(value))

    walk(target)
    assert sum(leaf.size for leaf in leaves) == sum(array.size for array in weights.values())
    experts = target["encoder"]["layers_3"]["mlp"]["expert"]
    for name in ("wi", "wo"):
        assert experts[name]["kernel"].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(
            experts[name]["kernel"], weights[f"encoder/layer_3/feed_forward/experts/{name}"], err_msg=name
        )
    np.testing.assert_array_equal(
        target["decoder"]["relpos_bias"]["rel_embedding"], weights["decoder/position_bias/embedding"].T
    )
    np.testing.assert_array_equal(target["token_embedder"]["embedding"], weights["token_embedder/embedding"])
