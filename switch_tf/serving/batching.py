"""Dynamic batching: requests that wait go through the model together."""

import collections
import concurrent.futures
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Inputs = Mapping[str, Sequence[bytes]]
Outputs = dict[str, np.ndarray]
Run = Callable[[str, Inputs], Outputs]


class QueueFull(Exception):
    """As many texts wait as may."""


class _Request(NamedTuple):
    signature: str
    inputs: Inputs
    rows: int
    answer: "concurrent.futures.Future[Outputs]"


class Batcher:
    """Runs requests in a thread: those that wait together, of one signature, in one batch.

    A request is never split, so that a large one makes a large batch.

    Attributes:
      num_batches: how many batches have been run.
    """

    def __init__(self, run: Run, max_batch_size: int = 16, timeout: float = 0.005, max_waiting: int = 1024):
        """Starts the thread.

        Args:
          run: (signature, inputs of n texts) -> outputs with n rows.
          max_batch_size: texts in a batch; 1: no batching.
          timeout: seconds that the first request of a batch waits for others.
          max_waiting: texts that may wait.
        """
        self._run = run
        self._max_batch_size = max_batch_size
        self._timeout = timeout
        self._max_waiting = max_waiting
        self._waiting: collections.deque[_Request] = collections.deque()
        self._num_waiting = 0
        self._changed = threading.Condition()
        self._is_closed = False
        self.num_batches = 0
        self._thread = threading.Thread(target=self._work, name="batcher", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """How many texts wait."""
        return self._num_waiting

    def submit(self, signature: str, inputs: Inputs) -> "concurrent.futures.Future[Outputs]":
        """Queues a request.

        Args:
          signature: of the model.
          inputs: equally many texts for each input, at least one.

        Returns:
          The future outputs of its rows.

        Raises:
          QueueFull: if there is no room for it.
        """
        rows = len(next(iter(inputs.values())))
        answer: concurrent.futures.Future[Outputs] = concurrent.futures.Future()
        with self._changed:
            # One that is larger than the queue may enter an empty one.
            if self._is_closed or (self._waiting and self._num_waiting + rows > self._max_waiting):
                raise QueueFull
            self._waiting.append(_Request(signature, inputs, rows, answer))
            self._num_waiting += rows
            self._changed.notify()
        return answer

    def close(self) -> None:
        """Answers what waits, and stops."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while taken := self._next_batch():
            # Whoever has gone is not waited for, and cannot cancel from here on.
            batch = [request for request in taken if request.answer.set_running_or_notify_cancel()]
            if not batch:
                continue
            names = batch[0].inputs
            inputs = {name: [text for request in batch for text in request.inputs[name]] for name in names}
            try:
                outputs = self._run(batch[0].signature, inputs)
            except Exception as error:  # Whatever happens, whoever waits is told.
                for request in batch:
                    request.answer.set_exception(error)
                continue
            self.num_batches += 1
            first = 0
            for request in batch:
                rows = slice(first, first + request.rows)
                request.answer.set_result({name: array[rows] for name, array in outputs.items()})
                first += request.rows

    def _next_batch(self) -> list[_Request]:
        """Waits for a request and those that come soon after it; returns none at the end."""
        with self._changed:
            while not self._waiting and not self._is_closed:
                self._changed.wait()
            if not self._waiting:
                return []
            end = time.monotonic() + self._timeout
            while self._num_waiting < self._max_batch_size and not self._is_closed:
                left = end - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            return self._taken()

    def _taken(self) -> list[_Request]:
        """Takes the oldest request and others of its signature, as many as fit a batch."""
        batch = [self._waiting.popleft()]
        rows = batch[0].rows
        for request in list(self._waiting):
            if request.signature == batch[0].signature and rows + request.rows <= self._max_batch_size:
                self._waiting.remove(request)
                batch.append(request)
                rows += request.rows
        self._num_waiting -= rows
        return batch
