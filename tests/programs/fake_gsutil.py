"""Stands in for gsutil on a host (tests/support/fake_host.py): `ls` and `cp` on the folder FAKE_BUCKETS."""

import glob
import os
import pathlib
import shutil
import sys


def local(name: str) -> str:
    """The local path of a name, which may be a gs:// URL."""
    return name.replace("gs://", os.environ["FAKE_BUCKETS"] + "/")


def main(command: str, *names: str) -> int:
    """Runs one command; returns its exit status."""
    found = glob.glob(local(names[0]))
    if command == "ls":
        print("".join(name + "\n" for name in found), end="")
    else:
        assert command == "cp", command
        for source in map(pathlib.Path, found):
            target = pathlib.Path(local(names[1]))
            if names[1].startswith("gs://"):
                target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                target = target / source.name
            (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(*(word for word in sys.argv[1:] if word not in ("-q", "-m", "-r"))))
