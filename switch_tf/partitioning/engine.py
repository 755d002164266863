"""The engines' one interface: make weights, constrain activations, feed a batch, run a step, give and take blocks."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from switch_tf.errors import SettingError, nearest
from switch_tf.partitioning.axes import BATCH, Axes, Block, Placement, check_axes, placed_by
from switch_tf.partitioning.layout import Layout


class Engine(Placement, abc.ABC):
    """Where weights live, how a batch gets there, and how a step runs. A model's code does not know which one it is.

    Attributes:
      process_index: which of the processes of the run this is. Processes hold consecutive devices of the mesh.
      num_processes: how many there are.
    """

    process_index = 0
    num_processes = 1

    def __init__(self, layout: Layout, num_logical_devices: int | None = None):
        """Opens the devices.

        Args:
          layout: the mesh, and what is split over it.
          num_logical_devices: into how many devices this machine's CPU is cut, to try a mesh without one; None to take
            the devices that there are.
        """
        self.layout = layout
        self.num_logical_devices = num_logical_devices

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Inside of it, weights are made and activations constrained as the engine places them."""
        with placed_by(self):
            yield

    @abc.abstractmethod
    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        """Takes this process's rows of a batch (int32 [rows, L] arrays; see `local_rows`) to the devices."""

    @abc.abstractmethod
    def compile(self, function: Callable) -> Callable:
        """Makes a step out of a function that reads and assigns variables."""

    @abc.abstractmethod
    def fetch(self, tree):
        """Brings a nest of device tensors to the host as numpy arrays."""

    @abc.abstractmethod
    def pieces(self, variable: tf.Variable) -> list[tuple[Block, np.ndarray]]:
        """Returns the blocks of a variable that this process is to save, in host memory that later updates leave alone.

        The blocks of all processes together are every element once.
        """

    @abc.abstractmethod
    def load(self, variable: tf.Variable, read: Callable[[Block], np.ndarray]) -> None:
        """Fills a variable.

        Args:
          variable: to fill.
          read: gives the saved values of a block; called for those blocks alone that this process's devices hold.
        """

    def barrier(self, name: str) -> None:
        """Waits until all processes are here; `name` says where, for messages. Alone, there is nobody to wait for."""
        del name

    def rows(self, batch_size: int, process: int) -> slice:
        """Returns which consecutive rows of a batch the devices of a process hold; several may hold the same ones."""
        if self.num_processes == 1:
            return slice(0, batch_size)
        devices = self.layout.num_devices // self.num_processes
        blocks = [
            self.layout.block((batch_size,), (BATCH,), device)
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

    def compile(self, function: Callable) -> Callable:
        # Loops here are tf.while_loop where they are loops of the graph; nothing is for AutoGraph to find.
        return tf.function(function, autograph=False)

    def fetch(self, tree):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), tree)

    def pieces(self, variable: tf.Variable) -> list[tuple[Block, np.ndarray]]:
        # Without the copy the array may be the variable's own memory.
        return [(_whole(variable), np.array(variable.numpy()))]

    def load(self, variable: tf.Variable, read: Callable[[Block], np.ndarray]) -> None:
        variable.assign(read(_whole(variable)))


def _whole(variable: tf.Variable) -> Block:
    return Block((0,) * len(variable.shape), tuple(variable.shape))


ENGINES: dict[str, type[Engine]] = {"single": SingleEngine}


def make_engine(
    name: str, mesh_shape: str = "", layout_rules: str = "", num_logical_devices: int | None = None
) -> Engine:
    """Makes the engine that `ENGINE` names.

    Args:
      name: "single", ...
      mesh_shape: "data:4,model:2".
      layout_rules: "batch:data,experts:data,heads:model".
      num_logical_devices: see `Engine`.

    Raises:
      SettingError: if there is no such engine, or the mesh or the rules cannot be read.
    """
    if name not in ENGINES:
        raise SettingError(f"ENGINE = '{name}' is unknown{nearest(name, ENGINES)}.")
    return ENGINES[name](Layout.parse(mesh_shape, layout_rules), num_logical_devices)
