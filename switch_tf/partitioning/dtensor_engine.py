"""The `dtensor` engine: data, expert and model parallelism on any mesh of CPUs, GPUs or TPUs, in one or many processes.

DTensor splits every operation by the layouts of what goes in and of what layers constrain. What it does silently wrong
is kept out in `relayout`.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from switch_tf.errors import SettingError
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import Axes, Block, check_axes
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes

# The mesh dimension of each dimension of a tensor, None where it is whole.
Split = tuple[str | None, ...]


def join_processes(processes: Processes) -> None:
    """Tells DTensor, which reads it from the environment, who takes part."""
    if processes.count > 1:
        os.environ["DTENSOR_JOBS"] = ",".join(processes.addresses)
        os.environ["DTENSOR_CLIENT_ID"] = str(processes.index)
        os.environ["DTENSOR_NUM_CLIENTS"] = str(processes.count)
        os.environ["DTENSOR_JOB_NAME"] = "worker"


class DTensorEngine(Engine):
    """A partitioned program on a DTensor mesh."""

    is_partitioned = True

    def __init__(self, layout: Layout, num_logical_devices: int | None = None, processes: Processes | None = None):
        """Opens the mesh: before TensorFlow has done anything in this process.

        Args:
          layout: the mesh and the rules.
          num_logical_devices: see `Engine`.
          processes: see `Engine`.

        Raises:
          SettingError: if the devices do not make the mesh.
        """
        super().__init__(layout, num_logical_devices, processes)
        join_processes(self.processes)
        kind = "CPU" if num_logical_devices else dtensor.preferred_device_type()
        try:
            dtensor.initialize_accelerator_system(kind, num_logical_cpu_devices=num_logical_devices)
        except ValueError as error:
            raise SettingError(f"ENGINE = 'dtensor' must be first to use TensorFlow in its process: {error}") from error
        devices = dtensor.num_global_devices(kind)
        if layout.num_devices != devices:
            raise SettingError(
                f"MESH_SHAPE = {dict(layout.mesh)} has {layout.num_devices} devices and there are {devices} {kind}s in "
                f"{self.processes.count} process(es): choose a MESH_SHAPE of {devices}, or (on a CPU) "
                f"NUM_LOGICAL_DEVICES = {layout.num_devices // self.processes.count}."
            )
        # They take most of the first step's time on a mesh, and make no later step faster.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        self.mesh = dtensor.create_distributed_mesh(list(layout.mesh.items()) or [("data", 1)], device_type=kind)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with super().scope(), tf.variable_creator_scope(self._make_variable):
            yield

    def num_shards(self, axis: str) -> int:
        return self.layout.num_shards(axis)

    # Activations.

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        check_axes("An activation", tuple(tensor.shape), axes)
        return dtensor.relayout(tensor, self._layout(self.layout.split(axes)))

    def coordinates(self, axes: Axes, dimension: int, size: int) -> tf.Tensor:
        # Split before they grow to a tensor of noise: each device makes its own part.
        return dtensor.relayout(tf.range(size), self._layout(self.layout.split(axes)[dimension : dimension + 1]))

    def _layout(self, split: Split) -> dtensor.Layout:
        return dtensor.Layout([dimension or dtensor.UNSHARDED for dimension in split], self.mesh)

    # Blocks of tensors on devices.

    def _blocks(self, shape: tuple[int, ...], split: Split) -> list[Block]:
        """Returns what each of this process's devices holds of a tensor."""
        local = tuple(size // self.layout.mesh.get(dimension, 1) for size, dimension in zip(shape, split))
        return [
            Block(tuple(place.get(dimension, 0) * size for dimension, size in zip(split, local)), local)
            for place in self.mesh.local_device_locations()
        ]

    def _packed(self, shape: tuple[int, ...], split: Split, values: Callable[[Block], tf.Tensor]) -> tf.Tensor:
        """Makes a tensor of blocks, each on its device; blocks that several devices hold are made once."""
        made: dict[Block, tf.Tensor] = {}
        blocks = self._blocks(shape, split)
        with tf.device("/device:CPU:0"):
            for block in blocks:
                if block not in made:
                    made[block] = values(block)
        return dtensor.pack([made[block] for block in blocks], self._layout(split))

    def _make_variable(self, next_creator: Callable, **kwargs) -> dtensor.DVariable:
        """Makes a weight: no device and no host ever has a whole one that is split."""
        del next_creator
        dtype, made = kwargs.get("dtype"), axis_names.weight_being_made()
        if made is None:
            value = kwargs["initial_value"]
            value = tf.convert_to_tensor(value() if callable(value) else value, dtype)
            packed = self._packed(tuple(value.shape), (None,) * value.shape.rank, lambda _: value)
        else:
            split = self.layout.split(made.axes)
            packed = self._packed(made.shape, split, lambda block: tf.cast(made.initial_values(block), dtype))
        return dtensor.DVariable(packed, name=kwargs.get("name"), trainable=kwargs.get("trainable"))

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        def fed(array: np.ndarray) -> tf.Tensor:
            array = np.asarray(array)
            split = self.layout.split((axis_names.BATCH, axis_names.LENGTH))
            return self._packed(array.shape, split, lambda block: tf.constant(array[slices(block)]))

        return {name: fed(array) for name, array in batch.items()}

    def compile(self, function: Callable) -> Callable:
        compiled = tf.function(function, autograph=False)

        def run(*arguments):
            with dtensor.default_mesh(self.mesh):
                return compiled(*arguments)

        return run

    def fetch(self, tree):
        def fetched(tensor: tf.Tensor) -> np.ndarray:
            if not dtensor.fetch_layout(tensor).is_fully_replicated():
                tensor = dtensor.relayout(tensor, dtensor.Layout.replicated(self.mesh, tensor.shape.rank))
            return dtensor.unpack(tensor)[0].numpy()

        return tf.nest.map_structure(fetched, tree)

    # Checkpoints.

    def pieces(self, variable: dtensor.DVariable) -> list[tuple[Block, np.ndarray]]:
        split, shape = self._split_of(variable), tuple(variable.shape)
        copies = [dimension for dimension in self.layout.mesh if dimension not in split]
        parts = dtensor.unpack(variable.read_value())
        # Of devices that hold the same block, the first along each dimension that does not split it writes it.
        return [
            (block, part.numpy())
            for block, part, place in zip(self._blocks(shape, split), parts, self.mesh.local_device_locations())
            if all(place[dimension] == 0 for dimension in copies)
        ]

    def load(self, variable: dtensor.DVariable, read: Callable[[Block], np.ndarray]) -> None:
        values = self._packed(
            tuple(variable.shape),
            self._split_of(variable),
            lambda block: tf.constant(read(block), variable.dtype),
        )
        variable.assign(values)

    @staticmethod
    def _split_of(variable: dtensor.DVariable) -> Split:
        return tuple(
            None if dimension == dtensor.UNSHARDED else dimension for dimension in variable.layout.sharding_specs
        )


def slices(block: Block) -> tuple[slice, ...]:
    """Returns the index of a block in its tensor's array."""
    return tuple(slice(start, start + size) for start, size in zip(block.start, block.shape))
