"""The engines' one interface: make weights, constrain activations, feed a batch, run a step, give and take blocks."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from switch_tf.partitioning.axes import BATCH, Axes, Placement, ShardIndex, check_axes, placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes


class Engine(Placement, abc.ABC):
    """Where weights live, how a batch gets there, and how a step runs. A model's code does not know which one it is."""

    def __init__(self, layout: Layout, num_logical_devices: int | None = None, processes: Processes | None = None):
        """Opens the devices.

        Args:
          layout: the mesh, and what is split over it.
          num_logical_devices: into how many devices this machine's CPU is cut, to try a mesh without one; None to take
            the devices that there are.
          processes: the processes of the run, found already; None for this one alone. Each holds as many consecutive
            devices of the mesh.
        """
        self.processes = processes or Processes()
        self.layout = layout
        self.num_logical_devices = num_logical_devices

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Inside of it, weights are made and activations constrained as the engine places them."""
        with placed_by(self):
            yield

    @property
    def batch_multiple(self) -> int:
        """The rows of a batch must be a multiple of this."""
        return self.layout.num_shards(BATCH)

    @abc.abstractmethod
    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        """Takes this process's rows of a batch (int32 [rows, L] arrays) to the devices."""

    @abc.abstractmethod
    def compile(self, function: Callable, gather: bool = False) -> Callable:
        """Makes a step out of a function that reads and assigns variables.

        Args:
          function: takes what `feed` returns.
          gather: what the function returns: rows of the batch, which are to be put together where replicas have parts
            of it; or else numbers that all replicas have alike.
        """

    @abc.abstractmethod
    def fetch(self, tree):
        """Brings a nest of device tensors to the host as numpy arrays."""

    @abc.abstractmethod
    def shards(self, variable: tf.Variable) -> list[tuple[ShardIndex, np.ndarray]]:
        """Returns the blocks of a variable that this process is to save, in host memory that later updates leave alone.

        The blocks of all processes together are every element once.
        """

    @abc.abstractmethod
    def load(self, variable: tf.Variable, read: Callable[[ShardIndex], np.ndarray]) -> None:
        """Fills a variable.

        Args:
          variable: to fill.
          read: gives the saved values of a block; called for those blocks alone that this process's devices hold.
        """

    @property
    def process_index(self) -> int:
        """Which of the processes of the run this is."""
        return self.processes.index

    @property
    def num_processes(self) -> int:
        """How many processes there are."""
        return self.processes.count

    @property
    def is_first_process(self) -> bool:
        """Whether this process speaks and writes for all of them."""
        return self.process_index == 0

    def say(self, line: str) -> None:
        """Prints a line, once for all processes."""
        if self.is_first_process:
            print(line, flush=True)

    def barrier(self) -> None:
        """Waits until all processes are here."""
        self.processes.any_process(False)

    @contextlib.contextmanager
    def first_process_first(self) -> Iterator[None]:
        """Lets the other processes do what is in the block when the first one has done it."""
        if not self.is_first_process:
            self.barrier()
        yield
        if self.is_first_process:
            self.barrier()

    def rows(self, batch_size: int, process: int) -> slice:
        """Returns which consecutive rows of a batch the devices of a process hold; several may hold the same ones."""
        if self.num_processes == 1:
            return slice(0, batch_size)
        devices = self.layout.num_devices // self.num_processes
        blocks = [
            self.layout.shard_index((batch_size,), (BATCH,), device)
            for device in range(process * devices, (process + 1) * devices)
        ]
        return slice(min(block.start[0] for block in blocks), max(block.start[0] + block.shape[0] for block in blocks))

    def local_rows(self, batch_size: int) -> slice:
        """Returns which rows of a batch this process gives to `feed`."""
        return self.rows(batch_size, self.process_index)


class SingleEngine(Engine):
    """One device, which TensorFlow chooses."""

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        check_axes("An activation", tuple(tensor.shape), axes)
        return tensor

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        return {name: tf.convert_to_tensor(array) for name, array in batch.items()}

    def compile(self, function: Callable, gather: bool = False) -> Callable:
        del gather  # All rows are here.
        # Loops here are tf.while_loop where they are loops of the graph; nothing is for AutoGraph to find.
        return tf.function(function, autograph=False)

    def fetch(self, tree):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), tree)

    def shards(self, variable: tf.Variable) -> list[tuple[ShardIndex, np.ndarray]]:
        return [(_whole(variable), variable.numpy())]

    def load(self, variable: tf.Variable, read: Callable[[ShardIndex], np.ndarray]) -> None:
        variable.assign(read(_whole(variable)))


def _whole(variable: tf.Variable) -> ShardIndex:
    return ShardIndex((0,) * len(variable.shape), tuple(variable.shape))
