"""Finds out, before anything heavy is imported, whether two distributions have overwritten each other's files.

t5 depends on seqio-nightly and, through it, on tfds-nightly; these unpack into the same folders as seqio and
tensorflow-datasets, and whichever came last wins. The nightlies of 2023 cannot read today's data sets.
"""

import base64
import hashlib
import importlib.metadata

REPAIR = (
    "pip uninstall -y tfds-nightly seqio-nightly && "
    "pip install --force-reinstall --no-deps tensorflow-datasets==4.9.10 seqio==0.0.20"
)
# A file of each shared folder that differs between the release and the nightly.
_TELLTALES = {"seqio": "seqio/version.py", "tensorflow-datasets": "tensorflow_datasets/version.py"}


class InstallationError(ImportError):
    """Two distributions that own one folder were installed in the wrong order."""


def is_overwritten(distribution: str, file: str) -> bool:
    """Whether `file` on disk is not the one that `distribution` was installed with.

    False where pip keeps no hash of it (a development install).
    """
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        return False
    for path in files:
        if str(path) == file and path.hash is not None:
            digest = hashlib.new(path.hash.mode, path.locate().read_bytes()).digest()
            return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != path.hash.value
    return False


def check_installation() -> None:
    """Checks that the folders of seqio and tensorflow_datasets hold the releases and not the nightlies.

    Raises:
      InstallationError: with the line that repairs it.
    """
    overwritten = [name for name, file in _TELLTALES.items() if is_overwritten(name, file)]
    if overwritten:
        raise InstallationError(f"{' and '.join(overwritten)} was overwritten by a nightly. Repair: {REPAIR}")
