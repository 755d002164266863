"""Initial values of weights."""

import contextvars

import numpy as np
import pytest

from switch_tf.layers.embedding import TokenEmbedder
from switch_tf.layers.initializers import weights_from_seed
from switch_tf.layers.normalization import RMSNorm


def table(name: str = "table") -> np.ndarray:
    embedder = TokenEmbedder(8, 4, name=name)
    embedder.build()
    return embedder.embedding.numpy()


def test_weights_depend_on_the_seed_and_on_the_path():
    with weights_from_seed(1):
        first, again, elsewhere = table(), table(), table("another")
        with weights_from_seed(2):
            other = table()
        restored = table()
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(first, restored)
    assert not np.array_equal(first, elsewhere) and not np.array_equal(first, other)


def test_a_weight_without_a_seed_is_an_error():
    with pytest.raises(RuntimeError, match=r"norm/scale has no seed: build the layer inside `with weights_from_seed"):
        contextvars.Context().run(RMSNorm(4, name="norm").build)
