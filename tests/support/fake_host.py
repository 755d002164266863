"""A host of a TPU that runs the real startup script, with stand-ins for the programs of its image and for pip."""

import os
import pathlib
import stat
import subprocess
import sys

_PROGRAMS = pathlib.Path(__file__).parents[1] / "programs"


class Host:
    """A host.

    Attributes:
      folder: where it keeps everything; the files `requests`, `installed` and `trained` log HTTP requests (but for
        metadata), calls of pip, and calls of switch_tf.
    """

    def __init__(self, folder: pathlib.Path, buckets: pathlib.Path, worker: int = 0, endpoints: str = "10.0.0.1"):
        """Makes the host.

        Args:
          folder: to make it in.
          buckets: the folder that contains the buckets.
          worker: the index of the host in its TPU.
          endpoints: the metadata about all hosts of the TPU.
        """
        self.folder = folder
        self._environment = {
            "PATH": f"{folder}/bin:/usr/bin:/bin",
            "HOME": os.environ.get("HOME", "/"),
            "SWITCH_TF_WORK": str(folder / "work"),
            "FAKE_HOST": str(folder),
            "FAKE_BUCKETS": str(buckets),
            "FAKE_WORKER": str(worker),
            "FAKE_ENDPOINTS": endpoints,
        }
        (folder / "bin").mkdir(parents=True)
        (folder / "bin" / "curl").symlink_to(_PROGRAMS / "fake_curl.sh")
        (folder / "bin" / "python3.11").symlink_to(_PROGRAMS / "fake_python.sh")
        self._write("bin/gsutil", f'exec {sys.executable} {_PROGRAMS}/fake_gsutil.py "$@"')
        self.set_training("exit 0")

    def set_training(self, *lines: str) -> None:
        """Sets what training does: lines of bash."""
        self._write("training", *lines)

    def _write(self, name: str, *lines: str) -> None:
        path = self.folder / name
        path.write_text("\n".join(("#!/bin/bash", *lines)) + "\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def boot(self, script: str, pause: float = 0.05) -> subprocess.Popen:
        """Starts the startup script.

        Args:
          script: its text.
          pause: seconds between tries.

        Returns:
          Its process.
        """
        path = self.folder / "script"
        path.write_text(script)
        environment = self._environment | {"SWITCH_TF_PAUSE": str(pause)}
        return subprocess.Popen(["bash", str(path)], env=environment, stdin=subprocess.DEVNULL, start_new_session=True)

    def lines(self, name: str) -> list[str]:
        """Lines of one of the host's files; none if it does not exist."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []
