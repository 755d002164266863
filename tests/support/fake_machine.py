"""A machine of a TPU on which the real start-up script runs, with stand-ins for what Google's image and pip bring."""

import os
import pathlib
import stat
import subprocess
import sys

_GSUTIL = """#!{python}
import glob, pathlib, shutil, sys
words = [word for word in sys.argv[1:] if word not in ("-q", "-m", "-r")]
local = lambda name: name.replace("gs://", "{buckets}/")
if words[0] == "ls":
    found = glob.glob(local(words[1]))
    print("".join(name + "\\n" for name in found), end="")
    sys.exit(0 if found else 1)
assert words[0] == "cp", words
for source in map(pathlib.Path, glob.glob(local(words[1])) or sys.exit(1)):
    target = pathlib.Path(local(words[2]))
    if words[2].startswith("gs://"):
        target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        target = target / source.name
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
"""
_CURL = """#!/bin/bash
for last; do :; done
case $last in
  */agent-worker-number) echo {worker} ;;
  */worker-network-endpoints) echo {endpoints} ;;
  */token) echo '{{"access_token":"the-token","expires_in":3599,"token_type":"Bearer"}}' ;;
  *) echo "$@" >>{folder}/requests ;;
esac
"""
# `python3.11 -m venv venv` makes the interpreter of which the script asks everything else.
_PYTHON = """#!/bin/bash
mkdir -p venv/bin
cp {folder}/interpreter venv/bin/python
"""
_INTERPRETER = """#!/bin/bash
if [ "$2" = pip ]; then echo "$@" >>{folder}/installed; exit; fi
echo "$PYTHONPATH $SWITCH_TF_PROCESS $SWITCH_TF_PROCESSES $*" >>{folder}/trained
exec {folder}/training "$@"
"""


class Machine:
    """A machine.

    Attributes:
      folder: where it keeps everything; `requests`, `installed` and `trained` in it list what was asked of the network
        besides metadata, of pip and of switch_tf.
    """

    def __init__(self, folder: pathlib.Path, buckets: pathlib.Path, worker: int = 0, endpoints: str = "10.0.0.1"):
        """Makes the machine.

        Args:
          folder: to make it in.
          buckets: the folder in which buckets are.
          worker: which machine of the TPU it is.
          endpoints: what the metadata say of all of them.
        """
        self.folder = folder
        (folder / "bin").mkdir(parents=True)
        values = {"buckets": buckets, "folder": folder, "worker": worker, "endpoints": endpoints}
        for name, text in {"gsutil": _GSUTIL, "curl": _CURL, "python3.11": _PYTHON}.items():
            self._write(f"bin/{name}", text.format(python=sys.executable, **values))
        self._write("interpreter", _INTERPRETER.format(**values))
        self.train_by("exit 0")

    def train_by(self, *lines: str) -> None:
        """Says what training does: lines of bash."""
        self._write("training", "\n".join(("#!/bin/bash", *lines)) + "\n")

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def boot(self, script: str, pause: float = 0.05) -> subprocess.Popen:
        """Begins the script, with short pauses (seconds) between tries."""
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin",
            "SWITCH_TF_WORK": str(self.folder / "work"),
            "SWITCH_TF_PAUSE": str(pause),
            "HOME": os.environ.get("HOME", "/"),
        }
        path = self.folder / "script"
        path.write_text(script)
        return subprocess.Popen(["bash", str(path)], env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def lines(self, name: str) -> list[str]:
        """Lines of a file that the stand-ins write; none where it is not there."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []
