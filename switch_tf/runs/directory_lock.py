"""One run at a time in a model directory: a second one is refused, and the lock of a dead run is taken over."""

import contextlib
import dataclasses
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import IO

import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints.folder import checkpoints_of, write_error
from switch_tf.errors import SettingError
from switch_tf.partitioning.processes import Processes

_NAME = "run.lock"
# A bucket has no locks: a live run writes its record again after each period, and after so many without one it is dead.
_BEAT_SECONDS = 20.0
_DEAD_AFTER_BEATS = 4
# TensorFlow remembers for 5 seconds what it has seen in a bucket.
_SETTLE_SECONDS = 6.0


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who holds a model directory.

    Attributes:
      host: the machine's name.
      process: its number there.
      since: when it began, in UTC.
      id: of this holding; no other has it.
      beats: how often the record has been written.
    """

    host: str
    process: int
    since: str
    id: str
    beats: int = 0

    @classmethod
    def here(cls) -> "Holder":
        """Returns this process."""
        now = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
        return cls(socket.gethostname(), os.getpid(), now, uuid.uuid4().hex)

    def to_json(self) -> str:
        """Returns the text of the record."""
        return json.dumps(dataclasses.asdict(self))


@contextlib.contextmanager
def held(model_dir: str) -> Iterator[None]:
    """Holds a model directory for the run of which this is the first process; other processes hold nothing.

    Args:
      model_dir: local or in a bucket.

    Raises:
      SettingError: if a live run holds it.
    """
    if Processes.from_environment().index > 0:
        yield
    elif storage.in_bucket(model_dir):
        with _held_in_bucket(model_dir):
            yield
    else:
        with _held_on_disk(model_dir):
            yield


def _refusal(model_dir: str, holder: Holder | None) -> SettingError:
    by = f"process {holder.process} on {holder.host} since {holder.since}" if holder else "another process"
    return SettingError(f"MODEL_DIR = '{model_dir}' is being trained by {by}: wait for it, end it, or use another.")


def _parse(text: str) -> Holder | None:
    """Parses a record; None for one that is empty, or was cut off while it was written."""
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None


@contextlib.contextmanager
def _held_on_disk(model_dir: str) -> Iterator[None]:
    """The system ends a file's lock with the process, however that ends; the record is for the sentence."""
    path, is_new = os.path.join(model_dir, _NAME), not os.path.exists(model_dir)
    try:
        storage.make_folder(model_dir)
        file = _locked(path)
    except BlockingIOError as error:
        holder = None
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as record:
            holder = _parse(record.read())
        raise _refusal(model_dir, holder) from error
    except (OSError, tf.errors.OpError):
        yield  # The first write of the run says what is wrong with the folder.
        return
    with file:
        with contextlib.suppress(OSError):  # A full disk.
            file.truncate(0)
            file.write(Holder.here().to_json())
            file.flush()
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
                if is_new:
                    os.rmdir(model_dir)  # If the run has written nothing.


def _locked(path: str) -> IO[str]:
    """Opens and locks a file; where the file system has no locks, opens it.

    Raises:
      BlockingIOError: if another process holds the lock.
      OSError: if the file cannot be opened.
    """
    while True:
        if os.path.islink(path):
            os.unlink(path)  # What it leads to would be overwritten.
        file = open(path, "a", encoding="utf-8", opener=storage.without_link)  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return file
            file.close()
            raise
        # Its holder may have removed it between the two calls, and another one made it again.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(file.fileno())):
                return file
        file.close()


@contextlib.contextmanager
def _held_in_bucket(model_dir: str) -> Iterator[None]:
    path = os.path.join(model_dir, _NAME)
    _await_death(model_dir, _read(path))
    holder = Holder.here()
    try:
        storage.write_atomically(path, holder.to_json())
    except tf.errors.OpError as error:
        raise write_error(path, error, checkpoints_of(model_dir)) from error
    # Of several that wrote at once, the last one holds it.
    time.sleep(_SETTLE_SECONDS)
    found = _read(path)
    if found is None or found.id != holder.id:
        raise _refusal(model_dir, found)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, holder, ended), name="directory lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(tf.errors.OpError):
            found = _read(path)
            if found is not None and found.id == holder.id:
                tf.io.gfile.remove(path)


def _read(path: str) -> Holder | None:
    if not storage.exists(path):
        return None
    with tf.io.gfile.GFile(path) as file:
        return _parse(file.read())


def _await_death(model_dir: str, holder: Holder | None) -> None:
    """Returns once a holder is gone or dead: no clock is compared with another machine's, only its beats are counted.

    Raises:
      SettingError: if it is alive.
    """
    if holder is None or _has_ended(holder):
        return
    print(f"MODEL_DIR = '{model_dir}' was held by a run on {holder.host}: waiting for a sign of it ...", flush=True)
    deadline = time.monotonic() + _DEAD_AFTER_BEATS * _BEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_BEAT_SECONDS / 4)
        found = _read(os.path.join(model_dir, _NAME))
        if found is None:
            return
        if found != holder:
            raise _refusal(model_dir, found)


def _has_ended(holder: Holder) -> bool:
    """Whether a holder was a process of this machine that is gone."""
    if holder.host != socket.gethostname():
        return False
    try:
        os.kill(holder.process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _beat(path: str, holder: Holder, ended: threading.Event) -> None:
    while not ended.wait(_BEAT_SECONDS):
        with contextlib.suppress(tf.errors.OpError):  # A bucket that does not answer now may do so at the next beat.
            found = _read(path)
            if found is not None and found.id != holder.id:
                # This process slept for so long (a suspended machine) that another one has taken over.
                print(f"switch-tf: error: {_refusal(os.path.dirname(path), found)}", file=sys.stderr, flush=True)
                os._exit(2)
            holder = dataclasses.replace(holder, beats=holder.beats + 1)
            storage.write_atomically(path, holder.to_json())
