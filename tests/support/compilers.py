"""Marks for tests that need the pinned compilers of the [aot] extra."""

import importlib.metadata

import pytest

from switch_tf.compat import JAX_VERSION


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


_JAX_VERSION_HERE = importlib.metadata.version("jax")

needs_pinned_jax = pytest.mark.skipif(
    _JAX_VERSION_HERE != JAX_VERSION,
    reason=f"jax {_JAX_VERSION_HERE} is installed, and switch_tf/compat.py is true of {JAX_VERSION}",
)
needs_tpu_compiler = pytest.mark.skipif(
    not _is_installed("libtpu"), reason="libtpu is not installed: pip install 'switch-tf[aot]'"
)
