"""The `dtensor` engine: data, expert and model parallelism on any mesh of CPUs, GPUs or TPUs, in one or many processes.

What DTensor gets silently wrong, and how it is kept out, is in `constrain`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf
from tensorflow.experimental import dtensor

from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import Axes, Block, check_axes
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.layout import Layout


class DTensorEngine(Engine):
    """A partitioned program: DTensor splits every operation over the mesh by the layouts of what goes in."""

    is_partitioned = True

    def __init__(self, layout: Layout, num_logical_devices: int | None = None):
        """Opens the mesh."""
        super().__init__(layout, num_logical_devices)
        # They take most of the first step's time here, and make no later step faster.
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        dtensor.initialize_accelerator_system("CPU", num_logical_cpu_devices=num_logical_devices)
        self.mesh = dtensor.create_distributed_mesh(list(layout.mesh.items()), device_type="CPU")

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with super().scope(), tf.variable_creator_scope(self._make_variable):
            yield

    def _layout(self, axes: Axes) -> dtensor.Layout:
        names = [dtensor.UNSHARDED if dimension is None else dimension for dimension in self.layout.split(axes)]
        return dtensor.Layout(names, self.mesh)

    def _make_variable(self, next_creator: Callable, **kwargs) -> dtensor.DVariable:
        """Makes a weight of blocks, each on its device: no device ever has a whole one that is split."""
        del next_creator
        made = axis_names.weight_being_made()
        if made is None:
            value = kwargs["initial_value"]
            value = tf.convert_to_tensor(value() if callable(value) else value, kwargs.get("dtype"))
            packed = dtensor.copy_to_mesh(value, dtensor.Layout.replicated(self.mesh, value.shape.rank))
        else:
            packed = self._pack(made.shape, made.axes, lambda block: tf.cast(made.initial_values(block), kwargs["dtype"]))
        return dtensor.DVariable(packed, name=kwargs.get("name"), trainable=kwargs.get("trainable"))

    def _pack(self, shape: tuple[int, ...], axes: Axes, values: Callable[[Block], tf.Tensor]):
        blocks, parts = {}, []
        for device in self.local_devices:
            block = self.layout.block(shape, axes, device)
            if block not in blocks:
                blocks[block] = values(block)
            parts.append(blocks[block])
        return dtensor.pack(parts, self._layout(axes))

    @property
    def local_devices(self) -> list[int]:
        return list(range(self.layout.num_devices))

    def constrain(self, tensor: tf.Tensor, axes: Axes) -> tf.Tensor:
        check_axes("An activation", tuple(tensor.shape), axes)
        return dtensor.relayout(tensor, self._layout(axes))

    def num_shards(self, axis: str) -> int:
        return self.layout.num_shards(axis)

    def coordinates(self, axes: Axes, dimension: int, size: int) -> tf.Tensor:
        split = self.layout.split(axes)[dimension]
        return dtensor.relayout(tf.range(size), dtensor.Layout([split or dtensor.UNSHARDED], self.mesh))

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, tf.Tensor]:
        def fed(array):
            array = np.asarray(array)
            axes = (axis_names.BATCH, axis_names.LENGTH)
            def part(block):
                return tf.convert_to_tensor(array[tuple(slice(a, a + n) for a, n in zip(block.start, block.shape))])
            return self._pack(array.shape, axes, part)
        return {name: fed(array) for name, array in batch.items()}

    def compile(self, function: Callable) -> Callable:
        compiled = tf.function(function, autograph=False)

        def run(*arguments):
            with dtensor.default_mesh(self.mesh):
                return compiled(*arguments)

        return run

    def fetch(self, tree):
        def fetched(tensor):
            layout = dtensor.fetch_layout(tensor)
            if not layout.is_fully_replicated():
                tensor = dtensor.relayout(tensor, dtensor.Layout.replicated(self.mesh, tensor.shape.rank))
            return dtensor.unpack(tensor)[0].numpy()
        return tf.nest.map_structure(fetched, tree)
