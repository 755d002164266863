"""The `tpu` engine: TensorFlow's distribution strategies, and XLA's partitioner where more than the batch is split."""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.partitioning.axes import BATCH, GROUPS, Axes, Placement, ShardIndex, placed_by
from switch_tf.partitioning.devices import cut_processor
from switch_tf.partitioning.engine import Engine
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.processes import Processes
from switch_tf.partitioning.spmd import Partitioned

_TPUSystem = tuple[tf.distribute.cluster_resolver.TPUClusterResolver, tf.tpu.experimental.Topology]


class _Rows(Placement):
    """A replica that has some of the batch's rows and asks nothing of the others: it decodes, say."""

    is_replicated = True

    def global_indices(self, axes: Axes, dimension: int, size: int) -> tf.Tensor:
        places = tf.range(size)
        if axes[dimension] not in (BATCH, GROUPS):
            return places
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        return places + tf.convert_to_tensor(replica) * size


class _Replica(_Rows):
    """A replica whose results are a part of the batch's: parts of all replicas add up."""

    def sum_over_replicas(self, tree):
        # All tensors of a nest go in one call: one after the other they would wait for each other's round trip.
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tree)


def _find_tpu() -> _TPUSystem | None:
    """Connects to the TPU: this machine's, or the one that the variable TPU_NAME names; None where there is none."""
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
            f"ENGINE = 'tpu' found no TPU that starts ({name or 'local'}: {str(error).splitlines()[0]}): set TPU_NAME "
            "right, or unset it to train on GPUs or CPUs."
        ) from error


def _join_processes(processes: Processes) -> None:
    """Tells TensorFlow, which reads it from the environment, who takes part."""
    cluster, task = {"worker": processes.addresses}, {"type": "worker", "index": processes.index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})


def _whole(variable: tf.Variable) -> ShardIndex:
    return ShardIndex((0,) * len(variable.shape), tuple(variable.shape))


class DistributeEngine(Engine):
    """Weights and steps by a `tf.distribute` strategy, which is chosen by what there is.

    A TPU: `TPUStrategy`. Several processes: `MultiWorkerMirroredStrategy`, over the GPUs of each (or one CPU of each,
    where there are none). Else `MirroredStrategy` over this machine's GPUs, or its CPUs.

    Where the layout rules split the batch alone, each device is a *replica*: it has all weights and a part of the
    batch, and gradients are added up. Where they split experts or more, the TPU's cores together run one program that
    XLA partitions. TensorFlow gives its partitioner no GPUs or CPUs: they are refused then (`dtensor` takes them).

    What TensorFlow 2.20's `TPUStrategy` does not do is to keep a variable in parts: with its `TPUReplicatedVariable`
    every core holds all of it. Activations, gradients and updates are parts; but at the end of a step each core
    fetches the weights and slots that others have updated, and all experts must fit into one core's memory. The
    `dtensor` engine keeps parts.
    """

    def __init__(self, layout: Layout, num_logical_devices: int | None = None, processes: Processes | None = None):
        """Opens the devices: before TensorFlow has done anything in this process.

        Args:
          layout: the mesh, and what is split over it.
          num_logical_devices: see `Engine`.
          processes: see `Engine`.

        Raises:
          SettingError: if the mesh does not fit the devices, or they cannot split what the rules split.
        """
        super().__init__(layout, num_logical_devices, processes)
        split = [axis for axis in layout.rules if axis not in (BATCH, GROUPS) and layout.num_shards(axis) > 1]
        if self.num_processes > 1 and tf.config.list_physical_devices("TPU_SYSTEM"):
            raise SettingError(
                "ENGINE = 'tpu' drives all hosts of a TPU from one process, and there are several: start one, with "
                "TPU_NAME, or set ENGINE = 'dtensor'."
            )
        tpu = _find_tpu() if num_logical_devices is None and self.num_processes == 1 else None
        if split and tpu is None:
            raise SettingError(
                f"ENGINE = 'tpu' without a TPU splits the batch alone, and LAYOUT_RULES split {', '.join(split)}: set "
                "ENGINE = 'dtensor'."
            )
        self._is_on_tpu = tpu is not None
        self.partitioned = Partitioned(layout) if split else None
        if not split and layout.num_shards(GROUPS) != layout.num_devices:
            raise SettingError(
                f"ENGINE = 'tpu' gives each of the {layout.num_devices} devices of MESH_SHAPE a part of the batch, and "
                f"LAYOUT_RULES split it over {layout.num_shards(BATCH)}: set MESH_SHAPE = 'data:{layout.num_devices}' "
                "and LAYOUT_RULES = 'batch:data'."
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
        # One replica that has all cores, as many in each of the torus's dimensions as there are.
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
                    "NUM_LOGICAL_DEVICES cuts no CPU where ENGINE = 'tpu' has several processes, each of which has one "
                    "(or its GPUs): leave it None, or set ENGINE = 'dtensor'."
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
            # They take a third of the first step's time on as many devices as that, and a CPU gains little by them.
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

    def _make_variable(self, next_creator: Callable, **settings) -> tf.Variable:
        """Makes variables that each replica assigns for itself: all of them compute the same update."""
        if not self._is_on_tpu:  # There, a replica's assignment is its own as it is.
            # "Read by any replica, the first one's is as good as another's": no replica waits for the others, and
            # nothing is copied. TensorFlow has this for variables alone that its own tapes do not watch.
            settings["synchronization"] = tf.VariableSynchronization.ON_READ
            settings["aggregation"] = tf.VariableAggregation.ONLY_FIRST_REPLICA
            settings["trainable"] = False
        return next_creator(**settings)

    def feed(self, batch: Mapping[str, np.ndarray]) -> dict[str, object]:
        """Gives each of this process's replicas its rows of what `local_rows` says.

        Raises:
          SettingError: if the rows cannot be dealt out evenly.
        """
        num_replicas = self.strategy.num_replicas_in_sync // self.num_processes
        first = self.process_index * num_replicas

        def deal(array: np.ndarray):
            rows = len(array) // num_replicas
            if rows * num_replicas != len(array):
                raise SettingError(
                    f"{len(array)} examples cannot be spread over {num_replicas} devices: choose a BATCH_SIZE that is "
                    f"a multiple of {self.batch_multiple}."
                )

            def part(context: tf.distribute.experimental.ValueContext) -> tf.Tensor:
                start = (context.replica_id_in_sync_group - first) * rows
                return tf.convert_to_tensor(array[start : start + rows])

            return self.strategy.experimental_distribute_values_from_function(part)

        return {name: deal(array) for name, array in batch.items()}

    def compile(self, function: Callable, gather: bool = False) -> Callable:
        placement = self.partitioned or (_Rows() if gather else _Replica())

        def in_replica(*arguments):
            # MirroredStrategy runs its replicas in threads of their own, which do not know what was asked for here.
            with placed_by(placement):
                return function(*arguments)

        def outcome(result):
            return self.strategy.gather(result, 0) if gather else self.strategy.experimental_local_results(result)[0]

        def everywhere(*arguments):
            return tf.nest.map_structure(outcome, self.strategy.run(in_replica, arguments))

        return tf.function(everywhere, autograph=False)

    def fetch(self, tree):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), tree)

    def shards(self, variable: tf.Variable) -> list[tuple[ShardIndex, np.ndarray]]:
        """Returns the variable as one block, for the first process; nothing for the others, which have the same."""
        return [(_whole(variable), variable.numpy())] if self.is_first_process else []

    def load(self, variable: tf.Variable, read: Callable[[ShardIndex], np.ndarray]) -> None:
        """Fills every replica's copy."""
        variable.assign(read(_whole(variable)))
