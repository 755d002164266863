"""Writes checkpoints while training goes on: in a thread of each process."""

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor

import tensorflow as tf

from switch_tf import storage
from switch_tf.checkpoints import tensor_bundle
from switch_tf.checkpoints.folder import CheckpointFolder, write_error
from switch_tf.checkpoints.manifest import Manifest
from switch_tf.checkpoints.tensor_bundle import Shard
from switch_tf.errors import SettingError
from switch_tf.partitioning.engine import Engine

# Seconds between two listings of the other processes' files (a bucket's owner pays for each), and how long those may
# take after the first process's.
_POLL_SECONDS = 0.1
_BUCKET_POLL_SECONDS = 1.0
_TIMEOUT_SECONDS = 1800.0


class CheckpointWriter:
    """Writes one checkpoint at a time, asynchronously to the training loop.

    Every process writes its shards of the tensors into the checkpoint's folder. The first one waits for the files of
    all, merges them and completes the checkpoint. Files are the only signal between the threads, so that no two
    processes can deadlock.
    """

    def __init__(self, folder: CheckpointFolder, engine: Engine):
        """Writes nothing yet.

        Args:
          folder: where checkpoints go; the same for all processes.
          engine: knows the processes.
        """
        self.folder = folder
        self.engine = engine
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._writing: Future | None = None

    def start(self, step: int, shards: list[Shard], manifest: Manifest) -> None:
        """Waits for the checkpoint that is being written, if there is one, and starts writing this one.

        All processes call this at the same step.

        Args:
          step: updates that have been made.
          shards: what this process writes, in memory that nobody else writes to; the writer empties the list.
          manifest: for `CheckpointFolder.complete`.

        Raises:
          SettingError: if the folder, or the checkpoint before, could not be written.
        """
        self.wait()
        if self.engine.process_index == 0:
            self.folder.prepare(step)
        # From here on the folder is there, and no file of an earlier attempt is in it.
        self.engine.barrier()
        self._writing = self._thread.submit(self._write, step, shards, manifest)

    def check(self) -> None:
        """Raises the error of a write that has failed; does not wait for one that is going on.

        Raises:
          SettingError: if a checkpoint could not be written. What was saved before has been left alone.
        """
        if self._writing is not None and self._writing.done():
            self.wait()

    def wait(self) -> None:
        """Waits until this process has written its shards; see `check`."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def finish(self) -> None:
        """Waits until the last checkpoint is complete, in all processes; see `check`."""
        self.wait()
        # A process that left now could be taken for one that failed, while the first one still merges.
        self.engine.barrier()

    def close(self) -> None:
        """Ends the thread once it has written what it was given; does not wait for it, nor raise its error."""
        self._thread.shutdown(wait=False)

    def _write(self, step: int, shards: list[Shard], manifest: Manifest) -> None:
        prefix = self.folder.prefix(step)
        is_first = self.engine.process_index == 0
        try:
            tensor_bundle.write_shards(prefix, self.engine.process_index, shards)
            if is_first:
                self._await_shards(step)
                tensor_bundle.merge_shards(prefix, self.engine.num_processes)
                self.folder.complete(step, manifest)
        except (OSError, tf.errors.OpError) as error:
            if is_first:
                # What cannot be removed either has no manifest and is no checkpoint.
                with contextlib.suppress(OSError, tf.errors.OpError):
                    self.folder.remove(step)
            raise write_error(self.folder.path(step), error, self.folder) from error

    def _await_shards(self, step: int) -> None:
        if self.engine.num_processes == 1:
            return
        prefix, processes = self.folder.prefix(step), set(range(self.engine.num_processes))
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while missing := processes - tensor_bundle.processes_written(prefix):
            if time.monotonic() > deadline:
                raise SettingError(
                    f"The checkpoint {self.folder.path(step)} lacks the shards of process {min(missing)}: look at "
                    "that process's output, and check that MODEL_DIR is one folder for all processes."
                )
            time.sleep(_BUCKET_POLL_SECONDS if storage.in_bucket(prefix) else _POLL_SECONDS)
