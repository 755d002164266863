"""The engines' one interface: make weights, constrain activations, feed a batch, run a step, save and restore."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from switch_tf.partitioning.axes import BATCH, Axes, Placement, check_axes, placed_by
from switch_tf.partitioning.layout import Layout


class Engine(Placement, abc.ABC):
    """Where weights live, how a batch gets there, and how a step runs. A model's code does not know which one it is."""

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

    @property
    def batch_multiple(self) -> int:
        """The rows of a batch must be a multiple of this."""
        return self.layout.num_shards(BATCH)

    def local_rows(self, batch_size: int) -> slice:
        """Returns which rows of the whole batch this process feeds."""
        return slice(0, batch_size)

    @abc.abstractmethod
    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        """Takes one host batch (int32 [B, L] arrays) to the devices."""

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

    def save(self, variables: Mapping[str, tf.Variable], objects: Mapping[str, object], prefix: str) -> None:
        """Writes variables and trackable objects (a data iterator) to the checkpoint files `prefix`*."""
        checkpoint = tf.train.Checkpoint(variables=dict(variables), **objects)
        checkpoint.write(prefix, options=tf.train.CheckpointOptions(enable_async=False))

    def restore(self, variables: Mapping[str, tf.Variable], objects: Mapping[str, object], prefix: str) -> None:
        """Reads into `variables` and `objects` what `save` wrote; every one of them must be there."""
        checkpoint = tf.train.Checkpoint(variables=dict(variables), **objects)
        # The files may hold more (optimizer slots, which evaluation does not need).
        checkpoint.read(prefix).assert_existing_objects_matched().expect_partial()


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
