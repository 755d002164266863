"""The guard for folders that two distributions own."""

import importlib.metadata

import pytest

from switch_tf import installation
from switch_tf.runs.model_directory import versions


def distribution_with(monkeypatch, tmp_path, contents: bytes) -> None:
    """Lets every distribution be one that has recorded the hash of b"hello" for seqio/version.py."""
    record = tmp_path / "seqio-0.0.20.dist-info" / "RECORD"
    file = tmp_path / "seqio" / "version.py"
    for path in (record, file):
        path.parent.mkdir(exist_ok=True)
    record.write_text(
        "seqio/__init__.py,sha256=9t6hRY4sZNvpKTgYHxx4dkwRAvA5t7fNO7Hvgr4bmbI,12\n"
        "seqio/version.py,sha256=LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ,5\n"
        "seqio/__pycache__/version.pyc,,\n"
    )
    file.write_bytes(contents)
    installed = importlib.metadata.PathDistribution(record.parent)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: installed)


def test_this_installation_is_whole():
    installation.check_installation()


def test_an_overwritten_file_is_found(monkeypatch, tmp_path):
    distribution_with(monkeypatch, tmp_path, b"hello")
    assert not installation.is_overwritten("seqio", "seqio/version.py")
    distribution_with(monkeypatch, tmp_path, b"__version__ = '0.0.18.dev20250227'")
    assert installation.is_overwritten("seqio", "seqio/version.py")
    assert not installation.is_overwritten("seqio", "seqio/__pycache__/version.pyc")
    with pytest.raises(installation.InstallationError, match="pip uninstall -y tfds-nightly seqio-nightly"):
        installation.check_installation()


def test_an_absent_distribution_is_not_overwritten():
    assert not installation.is_overwritten("no-such-distribution", "x.py")


def test_versions_are_those_of_a_tpu_too(monkeypatch):
    """There the distribution tensorflow-tpu brings TensorFlow, and `tensorflow` is not installed."""
    version = importlib.metadata.version

    def without_tensorflow(name: str) -> str:
        if name == "tensorflow":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", without_tensorflow)
    assert versions()["tensorflow"].startswith("2.")
