"""Files on disks and in buckets, `gs://bucket/path`: atomic writes, mirrored logs, and errors of a bucket explained.

In a bucket an object appears whole, once its upload has ended, and nothing can be appended to it. Folders are only
prefixes of names: they need not be made, and an account with all permissions on objects may not be able to make one.
"""

import contextlib
import errno
import functools
import glob
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator

import tensorflow as tf

from switch_tf.errors import SettingError

# Appended files are copied as a whole, so the copies are limited: to one in so many seconds, and in total to this share
# of the time.
_COPY_PERIOD = 60.0
_COPY_SHARE = 0.01

# What TensorFlow puts before the message of an operation.
_FUNCTION_NODE = re.compile(r"^\{\{.*?\}\} ")
_ADDRESS = re.compile(r"gs://([^/\s'\"]+)[^\s'\":;,]*")
_HTTP_ERROR = "Error executing an HTTP request: "
# What a file system says that is full, read-only, someone else's, or not the kind of thing that its name was taken for.
_OF_DISKS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR),
    *(errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ESTALE),
)
_NO_BUCKET = "specified bucket does not exist"


def in_bucket(path: str) -> bool:
    """Whether a path is one in an object store, not on a disk of this machine."""
    return "://" in path


@functools.cache
def _links() -> tempfile.TemporaryDirectory:
    """The folder of the links that `literal` makes; it is removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="switch_tf_")


@functools.cache
def _link_to(folder: str) -> str:
    link = os.path.join(_links().name, str(len(os.listdir(_links().name))))
    os.symlink(folder, link, target_is_directory=True)
    return link


def has_glob_characters(path: str) -> bool:
    """Whether TensorFlow's readers of checkpoints would take a path for a pattern; a backslash escapes in patterns."""
    return glob.has_magic(path) or "\\" in path


def literal(path: str) -> str:
    """Returns another name of a file, or of a prefix of files, for functions that take names for patterns.

    Args:
      path: local or in a bucket; its last component must be free of `*?[\\` itself.

    Returns:
      The path itself where it is plain; otherwise the same file in a link to its folder, for as long as this process.

    Raises:
      SettingError: for such a path in a bucket, which has no links.
    """
    if not has_glob_characters(path):
        return path
    if in_bucket(path):
        raise SettingError(f"'{path}' has one of * ? [ \\ in its name, a pattern in a bucket: choose another name.")
    folder, name = os.path.split(os.path.abspath(path))
    return os.path.join(_link_to(folder), name)


def make_folder(path: str) -> None:
    """Makes a folder and its parents; in a bucket there is nothing to make.

    Raises:
      OSError, tf.errors.OpError: if the disk cannot be written.
    """
    if not in_bucket(path):
        tf.io.gfile.makedirs(path)


def remove_folder(path: str) -> None:
    """Removes a folder and all in it; of a link only the link: TensorFlow's `rmtree` would remove what it leads to.

    Raises:
      OSError, tf.errors.OpError: if it cannot be removed.
    """
    if in_bucket(path):
        tf.io.gfile.rmtree(path)
    elif os.path.islink(path):
        os.unlink(path)
    else:
        shutil.rmtree(path)


def exists(path: str) -> bool:
    """Whether there is a file or a folder; in a bucket that does not exist, an error, where TensorFlow says False.

    Raises:
      tf.errors.OpError: if it cannot be looked up.
    """
    if not in_bucket(path):
        return tf.io.gfile.exists(path)
    try:
        tf.io.gfile.stat(path)
    except tf.errors.NotFoundError as error:
        if _NO_BUCKET in error.message:
            raise
        return False
    return True


def is_folder(path: str) -> bool:
    """Whether there is a folder.

    TensorFlow's `isdir` and `listdir` report a folder as absent if the bucket does not answer, and a run that cannot
    see its checkpoints would start from scratch.

    Raises:
      tf.errors.OpError: if it cannot be looked up, or there is no such bucket.
    """
    return exists(path) if in_bucket(path) else tf.io.gfile.isdir(path)


def list_folder(path: str) -> list[str]:
    """Lists a folder.

    Args:
      path: local or in a bucket.

    Returns:
      The names in it, without trailing slashes; an empty list if there is no such folder.

    Raises:
      tf.errors.OpError: if the folder cannot be looked up, or there is no such bucket.
    """
    return [name.rstrip("/") for name in tf.io.gfile.listdir(path)] if is_folder(path) else []


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[str]:
    """Writes a file atomically: readers see the old file or the whole new one, also when the process is killed.

    Args:
      path: local or in a bucket; its folder must exist.

    Yields:
      The path to write to, `path` with `.writing` appended. It is renamed to `path` unless an exception is raised.
        A link of either name is replaced, and what it leads to stays as it is.

    Raises:
      OSError, tf.errors.OpError: if the file cannot be renamed.
    """
    unfinished = os.fspath(path) + ".writing"
    if os.path.islink(unfinished):
        os.unlink(unfinished)
    yield unfinished
    tf.io.gfile.rename(unfinished, os.fspath(path), overwrite=True)


def write_atomically(path: str | os.PathLike[str], contents: str | bytes) -> None:
    """Writes text or bytes to a file atomically; see `replacing`.

    Args:
      path: local or in a bucket; its folder must exist.
      contents: the whole file.

    Raises:
      OSError, tf.errors.OpError: if the file cannot be written.
    """
    with (
        replacing(path) as unfinished,
        tf.io.gfile.GFile(unfinished, "wb" if isinstance(contents, bytes) else "w") as file,
    ):
        file.write(contents)


def reason_of(error: Exception) -> str:
    """Returns the system's reason in one line, without the operation and the file that TensorFlow puts around it."""
    return _said_of_disk(error) or " ".join(str(error).split("; ")[-1].split())[:200]


def _said_of_disk(error: Exception) -> str | None:
    """Finds one of the system's reasons in an error's message."""
    return next((reason for reason in map(os.strerror, _OF_DISKS) if reason in str(error)), None)


def refusal_of_disk(error: Exception) -> str | None:
    """Explains an error of this machine's file systems, as opposed to the program.

    Args:
      error: what Python or TensorFlow raised.

    Returns:
      "FILE: No space left on device", or the like; None for another error.
    """
    reason = _said_of_disk(error)
    if reason is None:
        return None
    message = _FUNCTION_NODE.sub("", str(error))
    named = re.search(rf"(/[^;]*); {re.escape(reason)}", message)
    file = error.filename if isinstance(error, OSError) else named and named[1]
    return f"{file}: {reason}" if file else reason


def without_link(path: str, flags: int) -> int:
    """Opens a file, but none that a link leads to: for the argument `opener` of `open`."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def address_in(error: Exception) -> str | None:
    """Returns the address, `gs://bucket/object`, that an error is about; None if it names none."""
    found = _ADDRESS.search(str(error))
    return found[0].rstrip("/.") if found else None


def refusal(error: Exception) -> str | None:
    """Explains an error that a bucket caused, as opposed to the file itself (damaged, not there).

    Args:
      error: what TensorFlow raised, or another error with its message.

    Returns:
      What the bucket does, and the remedy; None if the bucket is not the cause.
    """
    message = " ".join(str(error).split())
    found = _ADDRESS.search(message)
    if found is None or _HTTP_ERROR not in message:
        return None
    bucket = found[1]
    if _NO_BUCKET in message:
        return f"there is no bucket '{bucket}': make it, in the region of the machines, or name another"
    said = message.partition(_HTTP_ERROR)[2].partition(" when ")[0].strip()[:200]
    status = re.search(r"HTTP response code (\d+)", message)
    if status is not None and status[1] in ("401", "403"):
        return (
            f"the bucket '{bucket}' refuses this account ({said}): give it roles/storage.objectAdmin there, or log in "
            "by `gcloud auth application-default login`"
        )
    if status is not None and status[1] in ("404", "410"):
        return None
    return (
        f"the bucket '{bucket}' does not answer, after several retries ({said}): run the same command again once it "
        "does"
    )


class Mirror:
    """A folder with files that are appended to: on a disk, the folder itself; for a bucket, a local one that is copied.

    A copy replaces the whole object at once, so that readers see the file as it was at some moment.
    """

    def __init__(self, folder: str):
        """Opens a folder; nothing is copied yet.

        Args:
          folder: local or in a bucket.
        """
        self._folder = folder
        self._temporary = tempfile.TemporaryDirectory(prefix="switch_tf_") if in_bucket(folder) else None
        self._copied: dict[str, tuple[int, int]] = {}
        self._due = 0.0

    @property
    def path(self) -> str:
        """The folder on this machine's disk."""
        return self._folder if self._temporary is None else self._temporary.name

    def fetch(self, name: str) -> str:
        """Copies a file from the bucket, if it exists there.

        Returns:
          Its path on this machine's disk.

        Raises:
          tf.errors.OpError: if it cannot be read.
        """
        path, original = os.path.join(self.path, name), os.path.join(self._folder, name)
        if self._temporary is not None and exists(original):
            tf.io.gfile.copy(original, path, overwrite=True)
        return path

    def copy(self, names: Iterable[str] | None = None) -> None:
        """Copies the files that have changed into the bucket.

        Args:
          names: which files; None for all.

        Raises:
          OSError, tf.errors.OpError: if they cannot be read or written.
        """
        if self._temporary is None:
            return
        for name in sorted(os.listdir(self.path)) if names is None else names:
            path = os.path.join(self.path, name)
            status = os.stat(path)
            state = (status.st_size, status.st_mtime_ns)
            if self._copied.get(name) != state:
                tf.io.gfile.copy(path, os.path.join(self._folder, name), overwrite=True)
                self._copied[name] = state

    def copy_seldom(self) -> None:
        """Copies all files that have changed, unless the last copy was too recent; see `copy`."""
        start = time.monotonic()
        if start >= self._due:
            self.copy()
            end = time.monotonic()
            self._due = end + max(_COPY_PERIOD, (end - start) / _COPY_SHARE)
