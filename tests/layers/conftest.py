"""What the tests of layers share."""

import pytest

from switch_tf.layers.initializers import weights_from_seed


@pytest.fixture(autouse=True)
def _weights_from_a_seed():
    """Layers that a test builds by themselves, without a model, have weights of this seed."""
    with weights_from_seed(0):
        yield
