"""Batches for evaluation: a split once, in order, its last batch padded."""

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from switch_tf.data.batches import Batch, example_dataset
from switch_tf.data.cached_tasks import Cache
from switch_tf.data.task_lookup import empty_split
from switch_tf.errors import SettingError

# Batches that are larger in total are not kept in memory; 20 of the paper's have half of it.
_KEPT_BYTES = 2**28


class EvaluationBatches:
    """The first batches of a split, in order; re-iterable, with at least one batch.

    They are kept in memory if they are small in total, and read again in each iteration otherwise.
    """

    def __init__(self, read: Callable[[], Iterator[Batch]], empty: SettingError):
        """Reads the first batch.

        Args:
          read: opens the split at its start.
          empty: what to raise if there is no batch.
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
        """Yields batches of int32 [batch_size, length]; all have the same shape."""
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
    cache: Cache | None = None,
) -> EvaluationBatches:
    """Opens a split for evaluation; examples are never packed.

    Args:
      mixture_or_task: a seqio name.
      lengths: tokens of each task feature.
      batch_size: examples in a batch; the last one is filled up with padding.
      num_batches: how many batches at most; None for all.
      split: which split.
      seed: of the noise of preprocessors.
      cache: where tokens are cached; None to tokenize the text.

    Returns:
      Its batches.

    Raises:
      SettingError: if the split has no example.
    """

    def read() -> Iterator[Batch]:
        # Built again: a second iterator over the same dataset could have another order.
        dataset = example_dataset(mixture_or_task, lengths, split, cache=cache, shuffle=False, num_epochs=1, seed=seed)
        batches = dataset.batch(batch_size).prefetch(2).as_numpy_iterator()
        for batch in itertools.islice(batches, num_batches):
            missing = batch_size - len(batch["decoder_target_tokens"])
            yield {name: np.pad(array, [(0, missing), (0, 0)]) for name, array in batch.items()}

    return EvaluationBatches(read, empty_split(mixture_or_task, split))
