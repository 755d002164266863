"""The interface of all engines: make weights, shard activations, feed a batch, run a step, save and load shards."""

import abc
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from switch_tf.partitioning.axes import BATCH, Axes, Placement, ShardIndex, check_axes, placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes


class Engine(Placement, abc.ABC):
    """Holds weights on devices, feeds batches and runs steps. No model's code depends on which engine it is."""

    def __init__(self, layout: Layout, num_logical_devices: int | None = None, processes: Processes | None = None):
        """Opens the devices.

        Args:
          layout: the mesh, and what is split over it.
          num_logical_devices: the number of logical devices to split this machine's CPU into, to try a mesh without
            accelerators; None: use the physical devices.
          processes: the connected processes of the run; None: a single process. Each holds equally many consecutive
            devices of the mesh.
        """
        self.processes = processes or Processes()
        self.layout = layout
        self.num_logical_devices = num_logical_devices

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Inside of it, the engine makes the weights and shards the activations."""
        with placed_by(self):
            yield

    @property
    def batch_multiple(self) -> int:
        """The number of rows in a batch must be a multiple of this."""
        return self.layout.num_shards(BATCH)

    @abc.abstractmethod
    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        """Moves this process's rows of a batch (int32 [rows, L] arrays) to the devices."""

    @abc.abstractmethod
    def compile(self, function: Callable[..., Any], gather: bool = False) -> Callable[..., Any]:
        """Compiles a function that reads and assigns variables.

        Args:
          function: takes what `feed` returns.
          gather: whether the function returns rows of the batch, which are then gathered from the replicas; otherwise
            it returns values that are equal on all replicas.
        """

    @abc.abstractmethod
    def fetch(self, tree: Any) -> Any:
        """Copies a nest of device tensors to the host, as numpy arrays."""

    def run(self, compiled: Callable[..., Any], batch: Mapping[str, np.ndarray]) -> Any:
        """Runs a compiled function on a batch that every process has whole, and fetches the results.

        Args:
          compiled: by `compile`, of one argument.
          batch: all rows, int32 [B, L] arrays; B is a multiple of `batch_multiple`.

        Returns:
          What the function returned, as a nest of numpy arrays on the host.
        """
        rows = self.local_rows(len(next(iter(batch.values()))))
        return self.fetch(self.run_rows(compiled, {name: array[rows] for name, array in batch.items()}))

    def run_rows(self, compiled: Callable[..., Any], rows: Mapping[str, np.ndarray]) -> Any:
        """Runs a compiled function on this process's rows of a batch; the results stay on the devices."""
        with self.scope():
            return compiled(self.feed(rows))

    @abc.abstractmethod
    def shards(self, variable: tf.Variable) -> list[tuple[ShardIndex, np.ndarray]]:
        """Copies the shards of a variable that this process saves to host memory, where later updates do not reach.

        The shards of all processes together hold every element once.
        """

    @abc.abstractmethod
    def load(self, variable: tf.Variable, read: Callable[[ShardIndex], np.ndarray]) -> None:
        """Fills a variable.

        Args:
          variable: to fill.
          read: returns the saved values of a shard; called for the shards that this process's devices hold.
        """

    @property
    def process_index(self) -> int:
        """The index of this process in the run."""
        return self.processes.index

    @property
    def num_processes(self) -> int:
        """The number of processes."""
        return self.processes.count

    @property
    def is_first_process(self) -> bool:
        """Whether this is the process that prints and writes for all."""
        return self.process_index == 0

    def say(self, line: str) -> None:
        """Prints a line, in the first process only."""
        if self.is_first_process:
            print(line, flush=True)

    def barrier(self) -> None:
        """Waits until all processes have called this."""
        self.processes.any_process(False)

    @contextlib.contextmanager
    def first_process_first(self) -> Iterator[None]:
        """Runs the block in the first process, and then in the other ones."""
        if not self.is_first_process:
            self.barrier()
        yield
        if self.is_first_process:
            self.barrier()

    def rows(self, batch_size: int, process: int) -> slice:
        """Returns the consecutive rows of a batch that the devices of a process hold; processes may share rows."""
        if self.num_processes == 1:
            return slice(0, batch_size)
        devices = self.layout.num_devices // self.num_processes
        return covering_rows(
            self.layout.shard_index((batch_size,), (BATCH,), device)
            for device in range(process * devices, (process + 1) * devices)
        )

    def local_rows(self, batch_size: int) -> slice:
        """Returns the rows of a batch that this process gives to `feed`."""
        return self.rows(batch_size, self.process_index)


class SingleEngine(Engine):
    """One device, TensorFlow's default."""

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        check_axes("An activation", tuple(tensor.shape), axes)
        return tensor

    def mean_square(self, tensor: tf.Tensor, dimensions: tuple[int, ...], keepdims: bool = False) -> tf.Tensor:
        # One pass over the tensor, and no temporary of its size. XLA has no such kernel, but fuses squares and means.
        norm = tf.math.reduce_euclidean_norm(tensor, dimensions, keepdims)
        return tf.square(norm) / math.prod(tensor.shape[dimension] for dimension in dimensions)

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        return {name: tf.convert_to_tensor(array) for name, array in batch.items()}

    def compile(self, function: Callable[..., Any], gather: bool = False) -> Callable[..., Any]:
        del gather  # One device has all rows.
        # Without AutoGraph: loops of the graph are explicit tf.while_loops.
        return tf.function(function, autograph=False)

    def fetch(self, tree: Any) -> Any:
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), tree)

    def shards(self, variable: tf.Variable) -> list[tuple[ShardIndex, np.ndarray]]:
        return [(whole(variable), variable.numpy())]

    def load(self, variable: tf.Variable, read: Callable[[ShardIndex], np.ndarray]) -> None:
        variable.assign(read(whole(variable)))


def whole(variable: tf.Variable) -> ShardIndex:
    """Returns the shard that is all of a variable."""
    return ShardIndex((0,) * len(variable.shape), tuple(variable.shape))


def covering_rows(shards: Iterable[ShardIndex]) -> slice:
    """Returns the rows from the first to the last that the shards of a batch hold."""
    bounds = [(shard.start[0], shard.start[0] + shard.shape[0]) for shard in shards]
    return slice(min(start for start, _ in bounds), max(stop for _, stop in bounds))
