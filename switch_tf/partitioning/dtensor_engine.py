"""The `dtensor` engine: data, expert and model parallelism on any mesh of CPUs, GPUs or TPUs, in one or many processes.

DTensor splits every operation by the layouts of what goes in and of what layers constrain. What it does silently wrong
is kept out in `moved`.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from switch_tf.errors import SettingError
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import Axes, ShardIndex, check_axes
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
        except (ValueError, RuntimeError, tf.errors.OpError) as error:
            where = f" at {self.processes.addresses[self.process_index]}" if self.num_processes > 1 else ""
            raise SettingError(f"ENGINE = 'dtensor' cannot open its devices{where}: {error}") from error
        devices = dtensor.num_global_devices(kind)
        if layout.num_devices != devices:
            of_each, rest = divmod(layout.num_devices, self.num_processes)
            or_cut = "" if rest else f", or (on a CPU) NUM_LOGICAL_DEVICES = {of_each}"
            raise SettingError(
                f"MESH_SHAPE = {dict(layout.mesh)} has {layout.num_devices} devices and there are {devices} {kind}s in "
                f"{self.num_processes} process(es): choose a MESH_SHAPE of {devices}{or_cut}."
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

    def reshard(self, tensor: tf.Tensor, source: Axes, target: Axes) -> tf.Tensor:
        return moved(self.constrain(tensor, source), self.layout.split(source), self.layout.split(target), self._layout)

    def global_indices(self, axes: Axes, dimension: int, size: int) -> tf.Tensor:
        # Split before they grow to a tensor of noise: each device makes its own part.
        return dtensor.relayout(tf.range(size), self._layout(self.layout.split(axes)[dimension : dimension + 1]))

    def _layout(self, split: Split) -> dtensor.Layout:
        # A dimension of one device splits nothing, but DTensor would exchange along it.
        sizes = self.layout.mesh
        return dtensor.Layout([name if sizes.get(name, 1) > 1 else dtensor.UNSHARDED for name in split], self.mesh)

    # Blocks of tensors on devices.

    def _blocks(
        self, shape: tuple[int, ...], split: Split, places: Sequence[Mapping[str, int]] | None = None
    ) -> list[ShardIndex]:
        """Returns what each device at `places` (by default: each of this process's) holds of a tensor."""
        local = tuple(size // self.layout.mesh.get(dimension, 1) for size, dimension in zip(shape, split))
        return [
            ShardIndex(tuple(place.get(dimension, 0) * size for dimension, size in zip(split, local)), local)
            for place in places or self.mesh.local_device_locations()
        ]

    def _packed(self, shape: tuple[int, ...], split: Split, values: Callable[[ShardIndex], tf.Tensor]) -> tf.Tensor:
        """Makes a tensor of blocks, each on its device; blocks that several devices hold are made once."""
        made: dict[ShardIndex, tf.Tensor] = {}
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

    def rows(self, batch_size: int, process: int) -> slice:
        # Devices are numbered from process to process; where a TPU's cores are in the mesh is known to the mesh alone.
        slice_spec, here = self.mesh.unravel_index(), self.mesh.num_local_devices()
        places = [slice_spec[device] for device in range(process * here, (process + 1) * here)]
        blocks = self._blocks((batch_size,), self.layout.split((axis_names.BATCH,)), places)
        return slice(min(block.start[0] for block in blocks), max(block.start[0] + block.shape[0] for block in blocks))

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        split = self.layout.split((axis_names.BATCH, axis_names.LENGTH))

        def fed(array: np.ndarray) -> tf.Tensor:
            array = np.asarray(array)
            # All processes have as many devices, and so as many rows.
            shards = self.layout.num_shards(axis_names.BATCH)
            here = self.local_rows(shards)
            shape = (array.shape[0] // (here.stop - here.start) * shards, *array.shape[1:])
            first = self.local_rows(shape[0]).start

            def part(block: ShardIndex) -> tf.Tensor:
                (row, column), (height, width) = block
                return tf.constant(array[row - first : row - first + height, column : column + width])

            return self._packed(shape, split, part)

        return {name: fed(array) for name, array in batch.items()}

    def compile(self, function: Callable, gather: bool = False) -> Callable:
        del gather  # A result is one tensor, wherever its parts are.
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

    def shards(self, variable: dtensor.DVariable) -> list[tuple[ShardIndex, np.ndarray]]:
        split, shape = self._split_of(variable), tuple(variable.shape)
        copies = [dimension for dimension in self.layout.mesh if dimension not in split]
        parts = dtensor.unpack(variable.read_value())
        # Of devices that hold the same block, the first along each dimension that does not split it writes it.
        return [
            (block, part.numpy())
            for block, part, place in zip(self._blocks(shape, split), parts, self.mesh.local_device_locations())
            if all(place[dimension] == 0 for dimension in copies)
        ]

    def load(self, variable: dtensor.DVariable, read: Callable[[ShardIndex], np.ndarray]) -> None:
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


def moved(tensor: tf.Tensor, source: Split, target: Split, layout_of: Callable[[Split], dtensor.Layout]) -> tf.Tensor:
    """Changes a tensor's layout, rightly: the one place where tensors change the dimension that they are split along.

    DTensor's all-to-all on CPUs (and by its source on GPUs) gives wrong numbers, without an error, unless the first of
    the two dimensions is the tensor's first, or has as many before it as after it. Here it is made the first.

    Args:
      tensor: laid out as `source`.
      source: the mesh dimension of each of its dimensions.
      target: those that it is to have.
      layout_of: makes DTensor's layout of them.

    Returns:
      The same values, laid out as `target`.
    """
    changing = [dimension for dimension, (before, after) in enumerate(zip(source, target)) if before != after]
    rank = len(source)
    if not changing or changing[0] == 0 or rank == 2 * changing[0] + 1:
        return dtensor.relayout(tensor, layout_of(target))
    order = [changing[0], *(dimension for dimension in range(rank) if dimension != changing[0])]
    back = [order.index(dimension) for dimension in range(rank)]
    first = dtensor.relayout(tf.transpose(tensor, order), layout_of(tuple(target[dimension] for dimension in order)))
    return dtensor.relayout(tf.transpose(first, back), layout_of(target))
