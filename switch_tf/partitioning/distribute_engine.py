"""The `tpu` engine: `tf.distribute` strategies, with XLA's partitioner if more than the batch is sharded."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.partitioning.axes import BATCH, GROUPS, Axes, Placement, ShardIndex, placed_by
from switch_tf.partitioning.devices import cut_processor
from switch_tf.partitioning.engine import Engine, whole
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.partitioning.spmd import Partitioned

_TPUSystem = tuple[tf.distribute.cluster_resolver.TPUClusterResolver, tf.tpu.experimental.Topology]

_Nest = TypeVar("_Nest")


class _Rows(Placement):
    """A replica that computes on its rows of the batch independently of the other replicas, as in decoding."""

    is_replicated = True

    def global_indices(self, axes: Axes, dimension: int, size: int) -> tf.Tensor | np.ndarray:
        places = super().global_indices(axes, dimension, size)
        if axes[dimension] not in (BATCH, GROUPS):
            return places
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return tf.convert_to_tensor(replica) * size + places


class _Replica(_Rows):
    """A replica whose results are summed with those of the other replicas."""

    def sum_over_replicas(self, tree: _Nest) -> _Nest:
        # One call for all tensors of the nest, instead of one round trip for each.
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tree)


def _find_tpu() -> _TPUSystem | None:
    """Connects to this machine's TPU, or to the one that TPU_NAME names; returns None if there is no TPU."""
    name = os.environ.get("TPU_NAME")
    if name is None and not tf.config.list_physical_devices("TPU_SYSTEM"):
        return None
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name or "local")
        if name is not None:
            tf.config.experimental_connect_to_cluster(resolver)
        return resolver, tf.tpu.experimental.initialize_tpu_system(resolver)
    except (tf.errors.OpError, ValueError) as error:
        raise SettingError(
            f"ENGINE = 'tpu' cannot start the TPU '{name or 'local'}' ({str(error).splitlines()[0]}): correct "
            "TPU_NAME, or unset it to train on GPUs or CPUs."
        ) from error


def _join_processes(processes: Processes) -> None:
    """Sets the environment variable from which TensorFlow learns of the processes."""
    cluster, task = {"worker": processes.addresses}, {"type": "worker", "index": processes.index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})


class DistributeEngine(Engine):
    """Runs steps with the `tf.distribute` strategy that fits the hardware.

    On a TPU: `TPUStrategy`. With several processes: `MultiWorkerMirroredStrategy` over the GPUs of each process, or one
    CPU of each. Otherwise: `MirroredStrategy` over this machine's GPUs, or its CPUs.

    If the layout rules shard only the batch, each device is a *replica*: it holds all weights and some rows of the
    batch, and gradients are all-reduced. If they shard more, the TPU's cores run one program that XLA partitions.
    TensorFlow supports this on TPUs only; use `dtensor` on GPUs and CPUs.

    TensorFlow 2.20's `TPUStrategy` does not shard variables: a `TPUReplicatedVariable` is whole on every core.
    Activations, gradients and updates are sharded, but at the end of a step each core gathers the updated weights and
    slots, and all experts must fit into one core's memory. The `dtensor` engine shards variables.
    """

    def __init__(self, layout: Layout, num_logical_devices: int | None = None, processes: Processes | None = None):
        """Opens the devices, before anything else in the process uses TensorFlow.

        Args:
          layout: the mesh and the rules.
          num_logical_devices: see `Engine`.
          processes: see `Engine`.

        Raises:
          SettingError: if the mesh does not fit the devices, or they do not support the rules.
        """
        super().__init__(layout, num_logical_devices, processes)
        split = [axis for axis in layout.rules if axis not in (BATCH, GROUPS) and layout.num_shards(axis) > 1]
        if self.num_processes > 1 and tf.config.list_physical_devices("TPU_SYSTEM"):
            raise SettingError(
                "ENGINE = 'tpu' controls all hosts of a TPU from one process, and there are several: start one, with "
                "TPU_NAME, or set ENGINE = 'dtensor'."
            )
        tpu = _find_tpu() if num_logical_devices is None and self.num_processes == 1 else None
        if split and tpu is None:
            raise SettingError(
                f"ENGINE = 'tpu' without a TPU can shard only the batch, and LAYOUT_RULES shard {', '.join(split)}: "
                "set ENGINE = 'dtensor'."
            )
        self._is_on_tpu = tpu is not None
        self.partitioned = Partitioned(layout) if split else None
        if not split and layout.num_shards(GROUPS) != layout.num_devices:
            raise SettingError(
                f"ENGINE = 'tpu' shards the batch over all {layout.num_devices} devices of MESH_SHAPE, and "
                f"LAYOUT_RULES shard it over {layout.num_shards(BATCH)}: set MESH_SHAPE = "
                f"'data:{layout.num_devices}' and LAYOUT_RULES = 'batch:data'."
            )
        self.strategy = self._tpu_strategy(tpu) if tpu else self._mirrored_strategy()

    def _check_devices(self, num_devices: int) -> None:
        if num_devices != self.layout.num_devices:
            raise SettingError(
                f"MESH_SHAPE has {self.layout.num_devices} device(s), and there are {num_devices}: set MESH_SHAPE = "
                f"'data:{num_devices}', or NUM_LOGICAL_DEVICES = {self.layout.num_devices} to try it on this machine's "
                "CPU."
            )

    def _tpu_strategy(self, tpu: _TPUSystem) -> tf.distribute.Strategy:
        resolver, topology = tpu
        self._check_devices(topology.num_tasks * topology.num_tpus_per_task)
        if self.partitioned is None:
            return tf.distribute.TPUStrategy(resolver)
        # One replica of all cores, with the shape of the topology.
        assignment = tf.tpu.experimental.DeviceAssignment.build(
            topology, computation_shape=topology.mesh_shape, num_replicas=1
        )
        return tf.distribute.TPUStrategy(
            resolver, experimental_device_assignment=assignment, experimental_spmd_xla_partitioning=True
        )

    def _mirrored_strategy(self) -> tf.distribute.Strategy:
        if self.num_processes > 1:
            if self.num_logical_devices is not None:
                raise SettingError(
                    "NUM_LOGICAL_DEVICES cannot split CPUs if ENGINE = 'tpu' has several processes, each of which uses "
                    "one CPU (or its GPUs): leave it None, or set ENGINE = 'dtensor'."
                )
            _join_processes(self.processes)
            try:
                strategy = tf.distribute.MultiWorkerMirroredStrategy()
            except (RuntimeError, tf.errors.OpError) as error:
                where = self.processes.addresses[self.process_index]
                raise SettingError(f"ENGINE = 'tpu' cannot open its devices at {where}: {error}") from error
            self._check_devices(strategy.num_replicas_in_sync)
            return strategy
        devices = None
        if self.num_logical_devices is not None:
            devices = cut_processor(self.num_logical_devices)
            # Grappler takes a third of the first step's time on many devices, and CPUs gain little from it.
            tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        devices = devices or [device.name for kind in ("GPU", "CPU") for device in tf.config.list_logical_devices(kind)]
        kinds = [device for device in devices if "GPU" in device] or devices
        if len(kinds) < self.layout.num_devices:
            self._check_devices(len(kinds))
        return tf.distribute.MirroredStrategy(kinds[: self.layout.num_devices])

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        with self.strategy.scope(), tf.variable_creator_scope(self._make_variable), super().scope():
            yield

    def _make_variable(self, next_creator: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
        """Makes variables that each replica assigns by itself, as all of them compute the same update."""
        if not self._is_on_tpu:  # On a TPU, assignments in a replica are local already.
            # Replicas assign their own copies without synchronization, and reads outside of them use the first copy.
            # TensorFlow allows this only for variables that are not trainable (to its own tapes).
            settings["synchronization"] = tf.VariableSynchronization.ON_READ
            settings["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
            settings["trainable"] = False
        return next_creator(**settings)

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Gives each of this process's replicas its share of the rows of `local_rows`.

        Raises:
          SettingError: if the replicas cannot get equally many rows.
        """
        num_replicas = self.strategy.num_replicas_in_sync // self.num_processes
        first = self.process_index * num_replicas

        def distributed(array: np.ndarray) -> tf.distribute.DistributedValues:
            rows = len(array) // num_replicas
            if rows * num_replicas != len(array):
                raise SettingError(
                    f"{len(array)} examples cannot be sharded over {num_replicas} devices: choose a BATCH_SIZE that is "
                    f"a multiple of {self.batch_multiple}."
                )

            def local_rows(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
                start = (context.replica_id_in_sync_group - first) * rows
                return tf.convert_to_tensor(array[start : start + rows])

            return self.strategy.experimental_distribute_values_from_function(local_rows)

        return {name: distributed(array) for name, array in batch.items()}

    def compile(self, function: Callable[..., Any], gather: bool = False) -> Callable[..., Any]:
        placement = self.partitioned or (_Rows() if gather else _Replica())

        def in_replica(*arguments: Any) -> Any:
            # MirroredStrategy runs each replica in a thread, which does not inherit this thread's context variables.
            with placed_by(placement):
                return function(*arguments)

        def outcome(result: Any) -> Any:
            return self.strategy.gather(result, 0) if gather else self.strategy.experimental_local_results(result)[0]

        def everywhere(*arguments: Any) -> Any:
            return tf.nest.map_structure(outcome, self.strategy.run(in_replica, arguments))

        return tf.function(everywhere, autograph=False)

    def fetch(self, tree: Any) -> Any:
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), tree)

    def shards(self, variable: tf.Variable) -> list[tuple[ShardIndex, np.ndarray]]:
        """Returns the whole variable in the first process, and nothing in the others, whose copies are equal."""
        return [(whole(variable), variable.numpy())] if self.is_first_process else []

    def load(self, variable: tf.Variable, read: Callable[[ShardIndex], np.ndarray]) -> None:
        """Fills every replica's copy."""
        variable.assign(read(whole(variable)))
