"""Settings that every test needs before TensorFlow is imported, and what many of them share."""

import os

from tests.support import bucket_server

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# As switch-tf does: runs in a test's process and in one of their own are compared bit by bit.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# A bucket that does not answer is asked again once, at once, not ten times over minutes.
os.environ.setdefault("GCS_RETRY_CONFIG_INIT_DELAY_TIME_US", "1000")
os.environ.setdefault("GCS_RETRY_CONFIG_MAX_RETRIES", "1")
os.environ.setdefault("GCS_READ_CACHE_BLOCK_SIZE_MB", "1")
os.environ.setdefault("GCS_READ_CACHE_MAX_SIZE_MB", "64")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# TensorFlow asks once for the account's token and keeps what it gets, nothing included.
os.environ["GOOGLE_AUTH_TOKEN_FOR_TESTING"] = bucket_server.TOKEN

import gin
import pytest

from switch_tf.models.config import ModelConfig
from tests.support.launch import ROOT


@pytest.fixture(autouse=True)
def _forget_gin():
    """No test sees another's bindings."""
    gin.clear_config()
    yield
    gin.clear_config()


@pytest.fixture(scope="module")
def at_the_root():
    """Finds gin files and the modules of tests by their names in the repository."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.syspath_prepend(str(ROOT))
        yield


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """A sparse model that builds in a second: one dense and one sparse block in each stack."""
    return ModelConfig(
        vocab_size=96,
        d_model=16,
        d_ff=32,
        d_kv=8,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
        num_experts=4,
        group_size=32,
        capacity_factor=1.0,
        initializer_scale=1.0,
    )


@pytest.fixture(scope="module")
def buckets(tmp_path_factory):
    """A server of buckets, to which TensorFlow's `gs://` leads, in this process and those that it starts."""
    with bucket_server.serving(tmp_path_factory.mktemp("buckets")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        yield server
