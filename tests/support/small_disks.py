"""File systems in memory, small ones that are filled or read-only ones, in a mount namespace of this process's own."""

import contextlib
import errno
import io
import os
import pathlib
import subprocess
from collections.abc import Iterator

import gin

from switch_tf.cli import main as command_line


def mount(folder: pathlib.Path, megabytes: int) -> None:
    """Mounts an empty file system of a size."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)


def mount_read_only(folder: pathlib.Path, target: pathlib.Path) -> None:
    """Mounts a folder at a second place, where it cannot be written."""
    target.mkdir()
    for options in ("bind", "remount,bind,ro"):
        subprocess.run(["mount", "-o", options, str(folder), str(target)], check=True)


def fill(disk: pathlib.Path) -> None:
    """Writes to a file on a disk until no byte more fits."""
    descriptor = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for size in (1 << 20, 4096, 1):
        try:
            while True:
                os.write(descriptor, bytes(size))
        except OSError as error:
            assert error.errno == errno.ENOSPC
    os.close(descriptor)


@contextlib.contextmanager
def full(disk: pathlib.Path) -> Iterator[None]:
    """A disk is full meanwhile."""
    fill(disk)
    try:
        yield
    finally:
        free(disk)


def free(disk: pathlib.Path) -> None:
    """Removes what `fill` has written, if it has."""
    (disk / "filler").unlink(missing_ok=True)


def call(*arguments: str) -> tuple[int, str]:
    """Runs a command in this process; returns its status and what it wrote as errors."""
    gin.clear_config()
    errors, status = io.StringIO(), 0
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            command_line.main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
    return status, errors.getvalue()
