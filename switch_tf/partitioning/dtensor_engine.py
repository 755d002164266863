"""The `dtensor` engine: data, expert and model parallelism on any mesh of CPUs, GPUs or TPUs, in one or many processes.

DTensor partitions every operation by the layouts of its inputs and of the activations that layers constrain.
`resharded` works around relayouts that DTensor computes wrong, without an error.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from switch_tf import compat
from switch_tf.errors import SettingError
from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import Axes, ShardIndex, check_axes
from switch_tf.partitioning.engine import Engine, covering_rows
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes

# The mesh dimension of each dimension of a tensor; None for one that is not sharded.
Split = tuple[str | None, ...]

# A process may stand still for so long, as on a host that swaps. One that has ended is found by `Processes` at once.
_STANDSTILL_SECONDS = 600


def join_processes(processes: Processes) -> None:
    """Sets up what DTensor is to know of the processes: in environment variables, and how they watch each other."""
    if processes.count > 1:
        os.environ["DTENSOR_JOBS"] = ",".join(processes.addresses)
        os.environ["DTENSOR_CLIENT_ID"] = str(processes.index)
        os.environ["DTENSOR_NUM_CLIENTS"] = str(processes.count)
        os.environ["DTENSOR_JOB_NAME"] = "worker"
        compat.coordinate_processes("/job:worker/replica:0/task:0", _STANDSTILL_SECONDS)


def _on_devices(tensor: tf.Tensor) -> list[tf.Tensor]:
    """Returns what each device has of a tensor."""
    # `unpack` would wait while it holds Python's lock, which the thread needs that looks out for lost processes.
    compat.wait_for_operations()
    return dtensor.unpack(tensor)


class DTensorEngine(Engine):
    """A partitioned program on a DTensor mesh."""

    is_partitioned = True

    def __init__(self, layout: Layout, num_logical_devices: int | None = None, processes: Processes | None = None):
        """Opens the mesh, before anything else in the process uses TensorFlow.

        Args:
          layout: the mesh and the rules.
          num_logical_devices: see `Engine`.
          processes: see `Engine`.

        Raises:
          SettingError: if the devices do not fit the mesh.
        """
        super().__init__(layout, num_logical_devices, processes)
        join_processes(self.processes)
        kind = "CPU" if num_logical_devices else dtensor.preferred_device_type()
        try:
            dtensor.initialize_accelerator_system(
                kind, num_logical_cpu_devices=num_logical_devices, enable_coordination_service=False
            )
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
        # Grappler takes most of the first step's time on a mesh and makes no later step faster.
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
        source_split, target_split = self.layout.split(source), self.layout.split(target)
        return resharded(self.constrain(tensor, source), source_split, target_split, self._layout)

    def global_indices(self, axes: Axes, dimension: int, size: int) -> tf.Tensor:
        # Sharded before they are expanded to a tensor of noise: each device makes its own shard.
        return dtensor.relayout(tf.range(size), self._layout(self.layout.split(axes)[dimension : dimension + 1]))

    def _layout(self, split: Split) -> dtensor.Layout:
        # A mesh dimension of size 1 shards nothing, but DTensor would insert collectives along it.
        return dtensor.Layout(
            [name if self.layout.size_of(name) > 1 else dtensor.UNSHARDED for name in split], self.mesh
        )

    # Shards on devices.

    def _shards(
        self, shape: tuple[int, ...], split: Split, places: Sequence[Mapping[str | None, int]] | None = None
    ) -> list[ShardIndex]:
        """Returns the shard of each device at `places` (by default those of this process)."""
        local = tuple(size // self.layout.size_of(dimension) for size, dimension in zip(shape, split))
        return [
            ShardIndex(tuple(place.get(dimension, 0) * size for dimension, size in zip(split, local)), local)
            for place in places or self.mesh.local_device_locations()
        ]

    def _packed(self, shape: tuple[int, ...], split: Split, values: Callable[[ShardIndex], tf.Tensor]) -> tf.Tensor:
        """Makes a tensor from its shards; a shard that several devices hold is made once."""
        made: dict[ShardIndex, tf.Tensor] = {}
        shards = self._shards(shape, split)
        with tf.device("/device:CPU:0"):
            for shard in shards:
                if shard not in made:
                    made[shard] = values(shard)
        return dtensor.pack([made[shard] for shard in shards], self._layout(split))

    def _make_variable(self, next_creator: Callable[..., tf.Variable], **kwargs: Any) -> dtensor.DVariable:
        """Makes a variable shard by shard: no device and no host holds all of a sharded one."""
        del next_creator
        dtype, made = kwargs.get("dtype"), axis_names.weight_being_made()
        if made is None:
            value = kwargs["initial_value"]
            value = tf.convert_to_tensor(value() if callable(value) else value, dtype)
            packed = self._packed(tuple(value.shape), (None,) * value.shape.rank, lambda _: value)
        else:
            split = self.layout.split(made.axes)
            packed = self._packed(made.shape, split, lambda shard: tf.cast(made.initial_values(shard), dtype))
        return dtensor.DVariable(packed, name=kwargs.get("name"), trainable=kwargs.get("trainable"))

    def rows(self, batch_size: int, process: int) -> slice:
        # Devices are numbered process by process; only the mesh knows the coordinates of a TPU's cores.
        slice_spec, here = self.mesh.unravel_index(), self.mesh.num_local_devices()
        places = [slice_spec[device] for device in range(process * here, (process + 1) * here)]
        return covering_rows(self._shards((batch_size,), self.layout.split((axis_names.BATCH,)), places))

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        split = self.layout.split((axis_names.BATCH, axis_names.LENGTH))

        def fed(array: np.ndarray) -> tf.Tensor:
            array = np.asarray(array)
            # All processes have equally many devices, and so equally many rows.
            shards = self.layout.num_shards(axis_names.BATCH)
            here = self.local_rows(shards)
            shape = (array.shape[0] // (here.stop - here.start) * shards, *array.shape[1:])
            first = self.local_rows(shape[0]).start

            def values(shard: ShardIndex) -> tf.Tensor:
                (row, column), (height, width) = shard
                return tf.constant(array[row - first : row - first + height, column : column + width])

            return self._packed(shape, split, values)

        return {name: fed(array) for name, array in batch.items()}

    def compile(self, function: Callable[..., Any], gather: bool = False) -> Callable[..., Any]:
        del gather  # A result is one global tensor.
        compiled = tf.function(function, autograph=False)

        def run(*arguments: Any) -> Any:
            with dtensor.default_mesh(self.mesh):
                return compiled(*arguments)

        return run

    def fetch(self, tree: Any) -> Any:
        def fetched(tensor: tf.Tensor) -> np.ndarray:
            if not dtensor.fetch_layout(tensor).is_fully_replicated():
                tensor = dtensor.relayout(tensor, dtensor.Layout.replicated(self.mesh, tensor.shape.rank))
            return _on_devices(tensor)[0].numpy()

        return tf.nest.map_structure(fetched, tree)

    # Checkpoints.

    def shards(self, variable: dtensor.DVariable) -> list[tuple[ShardIndex, np.ndarray]]:
        split, shape = self._split_of(variable), tuple(variable.shape)
        replicated = [dimension for dimension in self.layout.mesh if dimension not in split]
        values = _on_devices(variable.read_value())
        # Of the devices that hold the same shard, the first one along each replicated mesh dimension saves it.
        return [
            (shard, value.numpy())
            for shard, value, place in zip(self._shards(shape, split), values, self.mesh.local_device_locations())
            if all(place[dimension] == 0 for dimension in replicated)
        ]

    def load(self, variable: dtensor.DVariable, read: Callable[[ShardIndex], np.ndarray]) -> None:
        values = self._packed(
            tuple(variable.shape),
            self._split_of(variable),
            lambda shard: tf.constant(read(shard), variable.dtype),
        )
        variable.assign(values)

    @staticmethod
    def _split_of(variable: dtensor.DVariable) -> Split:
        return tuple(
            None if dimension == dtensor.UNSHARDED else dimension for dimension in variable.layout.sharding_specs
        )


def resharded(
    tensor: tf.Tensor, source: Split, target: Split, layout_of: Callable[[Split], dtensor.Layout]
) -> tf.Tensor:
    """Changes the dimension along which a tensor is sharded. All such relayouts go through this function.

    DTensor's all-to-all on CPUs (and, by its source code, on GPUs) gives wrong numbers without an error, unless the
    first of the two dimensions is the tensor's first or its middle one. Other tensors are transposed to make it the
    first.

    Args:
      tensor: with the layout of `source`.
      source: the mesh dimension of each of its dimensions.
      target: the mesh dimensions after the change.
      layout_of: makes DTensor's layout of mesh dimensions.

    Returns:
      The same values with the layout of `target`.
    """
    changing = [dimension for dimension, (before, after) in enumerate(zip(source, target)) if before != after]
    rank = len(source)
    if not changing or changing[0] == 0 or rank == 2 * changing[0] + 1:
        return dtensor.relayout(tensor, layout_of(target))
    order = [changing[0], *(dimension for dimension in range(rank) if dimension != changing[0])]
    back = [order.index(dimension) for dimension in range(rank)]
    first = dtensor.relayout(tf.transpose(tensor, order), layout_of(tuple(target[dimension] for dimension in order)))
    return dtensor.relayout(tf.transpose(first, back), layout_of(target))
