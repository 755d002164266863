"""Detects, before anything heavy is imported, that one distribution has overwritten the files of another.

t5 depends on seqio-nightly and, through it, on tfds-nightly. They install into the same folders as seqio and
tensorflow-datasets, and whichever is installed last wins. The nightlies of 2023 cannot read today's data sets.
"""

import base64
import hashlib
import importlib.metadata
import pathlib
import re

REPAIR = (
    "pip uninstall -y tfds-nightly seqio-nightly && "
    "pip install --force-reinstall --no-deps tensorflow-datasets==4.9.10 seqio==0.0.20"
)
# In each shared folder a file that differs between the release and the nightly.
_TELLTALES = {"seqio": "seqio/version.py", "tensorflow-datasets": "tensorflow_datasets/version.py"}


class InstallationError(ImportError):
    """A nightly was installed after the release whose folder it shares."""


def is_overwritten(distribution: str, file: str) -> bool:
    """Returns whether `file` on disk differs from the one that `distribution` installed.

    False if pip recorded no hash (a development install).
    """
    try:
        installed = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    # `Distribution.files` makes an object of each of the thousands of lines.
    recorded = re.search(rf"^{re.escape(file)},(\w+)=([^,]+),", installed.read_text("RECORD") or "", re.MULTILINE)
    if recorded is None:
        return False
    digest = hashlib.new(recorded[1], pathlib.Path(str(installed.locate_file(file))).read_bytes()).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != recorded[2]


def check_installation() -> None:
    """Checks that the folders of seqio and tensorflow_datasets contain the releases and not the nightlies.

    Raises:
      InstallationError: with the command that repairs the installation.
    """
    overwritten = [name for name, file in _TELLTALES.items() if is_overwritten(name, file)]
    if overwritten:
        raise InstallationError(f"{' and '.join(overwritten)} was overwritten by a nightly. Repair: {REPAIR}")
