"""Runs modules of tests/programs where they may mount file systems that nobody else sees."""

import functools
import json
import shutil
import subprocess
import sys

from tests.support import launch

_UNSHARE = ("unshare", "--map-root-user", "--mount")


@functools.cache
def are_allowed() -> bool:
    """Whether this system lets its users make mount namespaces."""
    return shutil.which("unshare") is not None and subprocess.run([*_UNSHARE, "true"], check=False).returncode == 0


def results_of(program: str, *arguments: str) -> dict:
    """Runs a program in a mount namespace of its own; returns the JSON object that is its last line."""
    done = subprocess.run(
        [*_UNSHARE, sys.executable, "-m", program, *arguments],
        cwd=launch.ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])
