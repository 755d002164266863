"""Batches for training: endless, shuffled, deterministic, resumable, and the same however many processes read them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import Any, NamedTuple

import numpy as np
import seqio
import tensorflow as tf

from switch_tf import compat
from switch_tf.data.batches import Batch, example_dataset
from switch_tf.data.cached_tasks import Cache
from switch_tf.data.task_lookup import empty_split
from switch_tf.data.teacher_cache import cached_examples
from switch_tf.errors import SettingError

# Seconds to wait for the first batch before checking that the stream has an example at all.
_FIRST_BATCH_TIMEOUT = 60.0

# By TensorFlow's readers, and by Python code in the pipeline.
_MISSING_FILE = re.compile(r"(?s)(?:.*NotFoundError: |from checkpoint: (?!Error in user-defined))([^;]+);")


def training_dataset(
    mixture_or_task: str,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    split: str = "train",
    shard: seqio.ShardInfo | None = None,
    pack: bool = False,
    cache: Cache | None = None,
    teacher_cache: str | None = None,
) -> tf.data.Dataset:
    """Endless shuffled batches, the same for the same seed.

    Args:
      mixture_or_task: a seqio name.
      lengths: tokens of each task feature, {"inputs": 512, "targets": 114}.
      batch_size: examples in a batch.
      seed: of the order and of the noise of preprocessors.
      split: which split.
      shard: which shard of the split; None for all of it. If there are fewer files than shards, seqio gives each shard
        every num_shards-th example instead of files of its own; the shards are disjoint only if they have one seed.
      pack: whether to put several short examples, kept apart by their segment ids, into one.
      cache: where tokens are cached; None to tokenize the text.
      teacher_cache: the folder of a teacher's predictions, whose examples are read instead of the task's.

    Returns:
      Dataset of dicts of int32 [batch_size, length], and with a teacher's predictions float32.

    Raises:
      SettingError: for an unknown task, a missing split, or lengths that do not fit the task.
    """
    if teacher_cache is not None:
        dataset = cached_examples(teacher_cache, seed, shard)
    else:
        dataset = example_dataset(
            mixture_or_task,
            lengths,
            split,
            pack=pack,
            cache=cache,
            shuffle=True,
            num_epochs=None,
            seed=seed,
            shard_info=shard,
        )
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2)


class _Stream(NamedTuple):
    """A shard of the data, as one process reads it.

    Attributes:
      iterator: over batches of the shard's rows.
      shard: which shard; None if there is only one.
      rows: which rows of them the process keeps.
      name: of its position in a checkpoint.
      is_saved_here: whether this process saves the position.
    """

    iterator: tf.data.Iterator
    shard: seqio.ShardInfo | None
    rows: slice
    name: str
    is_saved_here: bool


class TrainingBatches:
    """Endless batches, the same however many processes read them, whose positions checkpoints keep.

    The data are read as `num_shards` streams, each shuffled on its own; stream s provides the rows of each batch from
    s * B / num_shards on. A process reads only the streams that its rows come from.
    """

    def __init__(
        self,
        mixture_or_task: str,
        lengths: Mapping[str, int],
        batch_size: int,
        seed: int,
        num_shards: int = 1,
        rows: Sequence[slice] | None = None,
        process_index: int = 0,
        pack: bool = False,
        cache: Cache | None = None,
        teacher_cache: str | None = None,
    ):
        """Opens the streams at their start.

        Args:
          mixture_or_task: a seqio name.
          lengths: tokens of each task feature.
          batch_size: B, examples in a batch of all processes.
          seed: of the order and of the noise of preprocessors.
          num_shards: number of streams; divides B.
          rows: for each process, which rows of a batch it feeds; None if there is one process.
          process_index: which of them this is.
          pack: whether to put several short examples, kept apart by their segment ids, into one.
          cache: where tokens are cached; None to tokenize the text.
          teacher_cache: the folder of a teacher's predictions, whose examples are read instead of the task's.

        Raises:
          SettingError: for an unknown task, a missing split, or lengths that do not fit the task.
        """
        self._task, self._num_shards = mixture_or_task, num_shards
        self._options: dict[str, Any] = {"lengths": lengths, "seed": seed, "pack": pack, "cache": cache}
        self._has_begun = False
        rows = rows or [slice(0, batch_size)]
        mine, size = rows[process_index], batch_size // num_shards
        self._streams = []
        for stream in range(mine.start // size, -(-mine.stop // size)):
            first = stream * size
            shard = None if num_shards == 1 else seqio.ShardInfo(stream, num_shards)
            dataset = training_dataset(
                mixture_or_task, batch_size=size, shard=shard, teacher_cache=teacher_cache, **self._options
            )
            saved_by = next(process for process, theirs in enumerate(rows) if theirs.start <= first < theirs.stop)
            self._streams.append(
                _Stream(
                    iter(dataset),
                    shard,
                    slice(max(mine.start - first, 0), min(mine.stop - first, size)),
                    f"data/stream_{stream:05d}",
                    saved_by == process_index,
                )
            )

    def __next__(self) -> Batch:
        """Returns this process's rows of the next batch: int32 [rows, length] by feature.

        Raises:
          SettingError: if the data, or a stream of them, have no example.
        """
        take = (lambda stream: next(stream.iterator)) if self._has_begun else self._first
        batches = [(stream.rows, take(stream)) for stream in self._streams]
        self._has_begun = True
        parts = [{name: tensor.numpy()[rows] for name, tensor in batch.items()} for rows, batch in batches]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def pass_over(self, count: int) -> None:
        """Takes so many batches and drops them."""
        for _ in range(count):
            next(self)

    def _first(self, stream: _Stream) -> dict[str, tf.Tensor]:
        """Takes the first batch of a stream, or finds that it has no example.

        An endless dataset without examples ends at once, but one whose examples are all dropped by a filter neither
        ends nor yields: it repeats forever. After a timeout, one epoch of a second dataset is therefore checked; an
        iterator over the first one would advance the random generator that orders the training data.
        """
        with ThreadPool(1) as thread:
            taking = thread.apply_async(next, (stream.iterator, None))
            taking.wait(_FIRST_BATCH_TIMEOUT)
            never = not taking.ready() and self._is_empty(stream.shard)
            batch = None if never else taking.get()
        if batch is None:
            raise empty_split(self._task, "train", self._num_shards)
        return batch

    def _is_empty(self, shard: seqio.ShardInfo | None) -> bool:
        epoch = example_dataset(
            self._task, split="train", shuffle=False, num_epochs=1, shard_info=shard, **self._options
        )
        return next(iter(epoch), None) is None

    def positions(self) -> dict[str, tf.Tensor]:
        """Returns copies of the positions of the streams that this process saves, by name: scalar variants."""
        return {
            stream.name: compat.iterator_position(stream.iterator) for stream in self._streams if stream.is_saved_here
        }

    def restore(self, read: Callable[[str], tf.Tensor]) -> None:
        """Goes to saved positions.

        Args:
          read: returns the saved position of a name, whichever process saved it.

        Raises:
          SettingError: if a file that was being read no longer exists, or the input pipeline has changed.
        """
        # All are read before any is used: one that cannot be read leaves the streams where they were.
        positions = [read(stream.name) for stream in self._streams]
        for stream, position in zip(self._streams, positions):
            try:
                compat.restore_iterator(stream.iterator, position)
            except (tf.errors.NotFoundError, tf.errors.UnknownError) as error:
                missing = _MISSING_FILE.search(error.message)
                if missing is None:
                    raise SettingError(
                        f"The position in '{self._task}' was saved by another version of its input pipeline: go on "
                        "with the version of the code and of the packages that began the run, or use another MODEL_DIR."
                    ) from error
                raise SettingError(
                    f"The run was reading {missing[1]} of '{self._task}', which no longer exists: put it back, or use "
                    "another MODEL_DIR."
                ) from error
