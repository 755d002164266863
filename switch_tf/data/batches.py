"""Batches from seqio tasks and mixtures: deterministic, endless for training, padded at the end for evaluation."""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.pool import ThreadPool
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import seqio
import tensorflow as tf

from switch_tf.data.cached_tasks import Cache, cached_settings, tasks_of, use_cached
from switch_tf.errors import SettingError, nearest

Batch = dict[str, np.ndarray]

# A first batch that takes longer than that may never come.
_PATIENCE_SECONDS = 60.0

# Batches for evaluation together; 20 of the paper's are half of it.
_KEPT_BYTES = 2**28

_MISSING_FILE = re.compile(r"from checkpoint: ([^;]+);")

# What the model reads of what seqio's converter makes.
_FEATURES = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "encoder_segment_ids",
    "decoder_segment_ids",
)


def find_task(mixture_or_task: str, setting: str = "MIXTURE_OR_TASK") -> seqio.Task | seqio.Mixture:
    """Looks a name up in seqio's registries.

    Args:
      mixture_or_task: the name.
      setting: what the user set it by, for the error.

    Raises:
      SettingError: if nothing of that name is registered.
    """
    known = {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}
    if mixture_or_task not in known:
        hint = nearest(mixture_or_task, known)
        raise SettingError(
            f"{setting} = '{mixture_or_task}' is not registered{hint}; a gin file that imports the module "
            "which registers it is needed (`import tasks.all` for all of docs/tasks.md)."
        )
    return seqio.get_mixture_or_task(mixture_or_task)


@runtime_checkable
class Configured(Protocol):
    """A seqio source whose examples hang on settings of the run."""

    def settings(self) -> Mapping[str, object]:
        """Returns them by macro, as JSON can hold them."""


def data_settings(mixture_or_task: str) -> dict[str, object]:
    """Returns what the examples hang on beside the task's name, by macro, as JSON can hold it.

    Args:
      mixture_or_task: a seqio name.

    Returns:
      Whether tokens come from a cache, from which, or else the settings of the tasks' sources; and the rate of each
      task of a mixture.

    Raises:
      SettingError: if the data are not there.
    """
    provider = find_task(mixture_or_task)
    is_cached = Cache().use
    settings: dict[str, object] = {"USE_CACHED": is_cached}
    if is_cached:
        settings |= cached_settings(provider)
    for task in tasks_of(provider):
        if isinstance(task.source, Configured) and not is_cached:
            settings |= task.source.settings()
        if isinstance(provider, seqio.Mixture):
            settings[f"the rate of {task.name}"] = provider.get_rate(task)
    return settings


def check_split(task: seqio.Task | seqio.Mixture, split: str) -> None:
    """Checks that a task has a split.

    Raises:
      SettingError: if it has not.
    """
    if split not in task.splits:
        raise SettingError(f"{task.name} has no split '{split}': it has {', '.join(sorted(task.splits))}.")


def vocabulary_of(mixture_or_task: str) -> seqio.Vocabulary:
    """Returns the vocabulary of the task's targets."""
    return find_task(mixture_or_task).output_features["targets"].vocabulary


def check_vocabulary(mixture_or_task: str, vocab_size: int) -> None:
    """Checks that every id of the task's vocabulary has a row in a table of `vocab_size`.

    Raises:
      SettingError: if ids would fall outside of the table.
    """
    ids = vocabulary_of(mixture_or_task).vocab_size
    if ids > vocab_size:
        rounded = -(-ids // 128) * 128
        raise SettingError(
            f"VOCAB_SIZE = {vocab_size} is too small for the vocabulary of {mixture_or_task}, which has {ids} ids "
            f"with its sentinels: set VOCAB_SIZE = {rounded}."
        )


def _dataset(mixture_or_task: str, lengths: Mapping[str, int], split: str, **options) -> tf.data.Dataset:
    task = find_task(mixture_or_task)
    missing = sorted(set(task.output_features) - set(lengths))
    if missing:
        raise SettingError(f"TASK_FEATURE_LENGTHS = {dict(lengths)} names no length for {', '.join(missing)}.")
    check_split(task, split)
    try:
        dataset = seqio.get_dataset(
            mixture_or_task,
            task_feature_lengths=dict(lengths),
            dataset_split=split,
            # Span corruption fills its examples to the brim; packing would cost time and gain nothing.
            feature_converter=seqio.EncDecFeatureConverter(pack=False),
            verbose=False,
            use_cached=use_cached(task, split),
            **options,
        )
    except SettingError:
        raise
    except ValueError as error:
        # t5's span corruption checks its target length while the pipeline is built.
        if "targets" not in str(error) and "length" not in str(error):
            raise
        raise SettingError(f"TASK_FEATURE_LENGTHS = {dict(lengths)}: {' '.join(str(error).split())}") from error
    return dataset.map(lambda example: {name: example[name] for name in _FEATURES if name in example})


def training_dataset(
    mixture_or_task: str,
    lengths: Mapping[str, int],
    batch_size: int,
    seed: int,
    split: str = "train",
    shard: seqio.ShardInfo | None = None,
) -> tf.data.Dataset:
    """Endless shuffled batches, the same for the same seed.

    Args:
      mixture_or_task: a seqio name.
      lengths: tokens of each task feature, {"inputs": 512, "targets": 114}.
      batch_size: examples in a batch.
      seed: of the order and of the noise of preprocessors.
      split: which split.
      shard: which part of the split; None for all of it. seqio gives each shard files of its own where there are as
        many files, and every so manyth example where there are not: of one order, so of one seed.

    Returns:
      Dataset of dicts of int32 [batch_size, length].

    Raises:
      SettingError: for an unknown task, a missing length or a missing split.
    """
    dataset = _dataset(mixture_or_task, lengths, split, shuffle=True, num_epochs=None, seed=seed, shard_info=shard)
    return dataset.batch(batch_size, drop_remainder=True).prefetch(2)


class _Stream(NamedTuple):
    """A shard of the data, as one process reads it.

    Attributes:
      iterator: over batches of the shard's rows.
      shard: which; None where there is one alone.
      rows: which of them the process keeps.
      name: of its position in a checkpoint.
      is_saved_here: whether this is the process that saves the position.
    """

    iterator: Iterator[dict[str, tf.Tensor]]
    shard: seqio.ShardInfo | None
    rows: slice
    name: str
    is_saved_here: bool


class TrainingBatches:
    """Endless batches, the same however many processes read them, from a position that checkpoints keep.

    The data are read as `num_shards` streams, each shuffled for itself; stream s gives the rows from s * B / num_shards
    on. A process reads the streams that its rows come from and no others.
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
    ):
        """Opens the streams, at their beginning.

        Args:
          mixture_or_task: a seqio name.
          lengths: tokens of each task feature.
          batch_size: B, examples in a batch of all processes.
          seed: of the order and of the noise of preprocessors.
          num_shards: how many streams; divides B.
          rows: of each process, which rows of a batch it feeds; None where there is one process.
          process_index: which of them this is.

        Raises:
          SettingError: for an unknown task or a missing length.
        """
        self._task, self._lengths, self._seed, self._num_shards = mixture_or_task, lengths, seed, num_shards
        self._has_begun = False
        rows = rows or [slice(0, batch_size)]
        mine, size = rows[process_index], batch_size // num_shards
        self._streams = []
        for stream in range(mine.start // size, -(-mine.stop // size)):
            first = stream * size
            shard = None if num_shards == 1 else seqio.ShardInfo(stream, num_shards)
            dataset = training_dataset(mixture_or_task, lengths, size, seed, shard=shard)
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
          SettingError: if the data, or a stream of them, yield no example.
        """
        take = (lambda stream: next(stream.iterator)) if self._has_begun else self._first
        batches = [(stream.rows, take(stream)) for stream in self._streams]
        self._has_begun = True
        parts = [{name: tensor.numpy()[rows] for name, tensor in batch.items()} for rows, batch in batches]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _first(self, stream: _Stream) -> dict[str, tf.Tensor]:
        """Takes the first batch of a stream, or finds that there is none.

        Without examples an endless data set ends at once; where a filter drops them all anew in each epoch, it neither
        ends nor yields. So it is given some time. Then one epoch is looked at, of another data set: whatever else reads
        of the one that is trained on takes numbers from the generator of its order.
        """
        with ThreadPool(1) as thread:
            taking = thread.apply_async(next, (stream.iterator, None))
            taking.wait(_PATIENCE_SECONDS)
            never = not taking.ready() and self._is_empty(stream.shard)
            batch = None if never else taking.get()
        if batch is None:
            raise empty_split(self._task, "train", self._num_shards)
        return batch

    def _is_empty(self, shard: seqio.ShardInfo | None) -> bool:
        once = _dataset(
            self._task, self._lengths, "train", shuffle=False, num_epochs=1, seed=self._seed, shard_info=shard
        )
        return next(iter(once), None) is None

    def positions(self) -> dict[str, tf.Tensor]:
        """Returns the positions of the streams that this process saves, by name: variants, copies of what is there."""
        # What tf.train.Checkpoint does with an iterator, without its files.
        return {
            stream.name: tf.raw_ops.SerializeIterator(resource_handle=stream.iterator._iterator_resource)
            for stream in self._streams
            if stream.is_saved_here
        }

    def restore(self, read: Callable[[str], tf.Tensor]) -> None:
        """Goes to saved positions.

        Args:
          read: gives the saved position of a name, whichever process saved it.

        Raises:
          SettingError: if a file that was being read is no longer where it was.
        """
        for stream in self._streams:
            position = read(stream.name)
            try:
                tf.raw_ops.DeserializeIterator(resource_handle=stream.iterator._iterator_resource, serialized=position)
            except tf.errors.NotFoundError as error:
                missing = _MISSING_FILE.search(error.message)
                raise SettingError(
                    f"The run was reading {missing[1] if missing else 'a file'} of '{self._task}', which is no longer "
                    "there: put it back, or use another MODEL_DIR."
                ) from error


class EvaluationBatches:
    """The first batches of a split, in order, the same as often as they are gone through; at least one.

    They stay in memory while they are few, and are read anew each time where they are many.
    """

    def __init__(self, read: Callable[[], Iterator[Batch]], empty: SettingError):
        """Reads the first batch.

        Args:
          read: opens the split, at its beginning.
          empty: what to raise where there is no batch.
        """
        self._read = read
        self._kept: list[Batch] | None = None
        self._are_many = False
        opened = read()
        first = next(opened, None)
        if first is None:
            raise empty
        self._opened: Iterator[Batch] | None = itertools.chain([first], opened)

    def __iter__(self) -> Iterator[Batch]:
        """Yields batches of int32 [batch_size, length]; all have one shape."""
        if self._kept is not None:
            yield from self._kept
            return
        opened, self._opened = self._opened or self._read(), None
        kept: list[Batch] = []
        size = 0
        for batch in opened:
            size += sum(array.nbytes for array in batch.values())
            if size > _KEPT_BYTES:
                self._are_many = True
            if self._are_many:
                kept.clear()
            else:
                kept.append(batch)
            yield batch
        if not self._are_many:
            self._kept = kept


def evaluation_batches(
    mixture_or_task: str,
    lengths: Mapping[str, int],
    batch_size: int,
    num_batches: int | None,
    split: str = "validation",
    seed: int = 0,
) -> EvaluationBatches:
    """Opens a split for evaluation; its last batch is filled up with padding.

    Args:
      mixture_or_task: a seqio name.
      lengths: tokens of each task feature.
      batch_size: examples in a batch.
      num_batches: how many batches at most; None for all.
      split: which split.
      seed: of the noise of preprocessors.

    Returns:
      Its batches.

    Raises:
      SettingError: if the split has no example.
    """

    def read() -> Iterator[Batch]:
        # Built anew: a second iterator over one data set could have another order.
        dataset = _dataset(mixture_or_task, lengths, split, shuffle=False, num_epochs=1, seed=seed)
        batches = dataset.batch(batch_size).prefetch(2).as_numpy_iterator()
        for batch in itertools.islice(batches, num_batches):
            missing = batch_size - len(batch["decoder_target_tokens"])
            yield {name: np.pad(array, [(0, missing), (0, 0)]) for name, array in batch.items()}

    return EvaluationBatches(read, empty_split(mixture_or_task, split))


def empty_split(mixture_or_task: str, split: str, num_shards: int = 1) -> SettingError:
    """Returns the error for a split that yields nothing, or for one of whose shards one does not."""
    part = f" for one of NUM_DATA_SHARDS = {num_shards}" if num_shards > 1 else ""
    return SettingError(
        f"MIXTURE_OR_TASK = '{mixture_or_task}' yields no example in its split '{split}'{part}: is its text there, and "
        "long enough for TASK_FEATURE_LENGTHS?"
    )
