"""The guard for folders that two distributions own."""

import importlib.metadata

import pytest

from switch_tf import installation
from switch_tf.runs.model_directory import versions


class FakeFile(str):
    """What `importlib.metadata` tells of one installed file."""

    hash = importlib.metadata.FileHash("sha256=LPJNul-wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ")  # of b"hello"

    def locate(self):
        return self.path


def distribution_with(monkeypatch, tmp_path, contents: bytes) -> None:
    file = FakeFile("seqio/version.py")
    file.path = tmp_path / "version.py"
    file.path.write_bytes(contents)
    fake = type("Distribution", (), {"files": [file]})
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: fake)


def test_this_installation_is_whole():
    installation.check_installation()


def test_an_overwritten_file_is_found(monkeypatch, tmp_path):
    distribution_with(monkeypatch, tmp_path, b"hello")
    assert not installation.is_overwritten("seqio", "seqio/version.py")
    distribution_with(monkeypatch, tmp_path, b"__version__ = '0.0.18.dev20250227'")
    assert installation.is_overwritten("seqio", "seqio/version.py")
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
