"""Checks that a mesh and its layout rules fit a model and its batch, before anything is built, and what they waste."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from switch_tf.errors import SettingError
from switch_tf.layers.moe import tokens_per_group
from switch_tf.models.config import ModelConfig
from switch_tf.partitioning import axes
from switch_tf.partitioning.layout import Layout, divisors
from switch_tf.planning.weight_specs import BYTES_PER_WEIGHT, Weight, weights_of

_LARGE = 64 * 2**20
_OF_ACTIVATIONS_ONLY = frozenset({axes.BATCH, axes.LENGTH, axes.GROUPS, axes.SLOTS})
# Axes by which to shard a large weight, those first whose matmuls need the least communication.
_SHARD_FIRST = (axes.EXPERTS, axes.VOCAB, axes.MLP, axes.EXPERT_MLP, axes.HEADS, axes.ROUTER_EXPERTS, axes.EMBED)
_OF_EXPERTS = (axes.EXPERTS, axes.ROUTER_EXPERTS)


class _Quantity(NamedTuple):
    """The size of an axis that a rule may shard evenly, and the setting that it depends on."""

    axis: str
    setting: str
    size: int


def check_placement(
    layout: Layout,
    config: ModelConfig,
    batch_size: int | None,
    lengths: Mapping[str, int],
    num_microbatches: int = 1,
    num_devices: int | None = None,
) -> None:
    """Checks that everything that the rules shard divides evenly, including groups of tokens.

    Args:
      layout: the mesh and the rules; with no mesh, batch, microbatches and groups are checked for one device.
      config: the model.
      batch_size: B; None to skip what depends on it.
      lengths: tokens of each task feature, {"inputs": 512, "targets": 114}.
      num_microbatches: the number of microbatches that a batch is split into.
      num_devices: the number of available devices; None if unknown.

    Raises:
      SettingError: with the sizes that do not fit and, if the mesh is the cause, a mesh that fits.
    """
    if batch_size is not None and (num_microbatches < 1 or batch_size % num_microbatches):
        raise SettingError(f"NUM_MICROBATCHES = {num_microbatches} must divide BATCH_SIZE = {batch_size} evenly.")
    quantities = _quantities(config, batch_size, num_microbatches)
    if num_devices is not None and num_devices < layout.num_devices:
        raise SettingError(
            f"{_mesh(layout)} needs {layout.num_devices} devices and finds {num_devices}: set MESH_SHAPE = "
            f"'{_nearest_mesh(layout, quantities, num_devices)}', NUM_LOGICAL_DEVICES = {layout.num_devices} to try it "
            "on this machine's CPU, or add --gin_file=gin/layouts/single.gin for one device."
        )
    if layout.num_shards(axes.LENGTH) > 1:
        raise SettingError("LAYOUT_RULES shard length, which is 1 in decoding: shard heads instead.")
    _check_all_to_all(layout, config)
    for axis, setting, size in quantities:
        shards = layout.num_shards(axis)
        if size % shards:
            raise SettingError(
                f"{_mesh(layout)} shards {axis} over {shards} devices, but {setting} = {size} is no multiple of "
                f"{shards}: make it one, or set MESH_SHAPE = '{_nearest_mesh(layout, quantities, layout.num_devices)}'."
            )
    if config.num_sparse_layers and config.group_size is not None and batch_size is not None:
        for length in lengths.values():
            for examples in {batch_size // num_microbatches, batch_size}:
                tokens_per_group(examples * length, config.group_size, layout.num_shards(axes.GROUPS))


def _mesh(layout: Layout) -> str:
    return "MESH_SHAPE = '" + ",".join(f"{name}:{size}" for name, size in layout.mesh.items()) + "'"


def _quantities(config: ModelConfig, batch_size: int | None, num_microbatches: int) -> list[_Quantity]:
    """Lists the sizes of all axes of the model."""
    sparse = [config.is_sparse(index) for index in range(config.num_encoder_layers)]
    sparse += [config.is_sparse(index, is_decoder=True) for index in range(config.num_decoder_layers)]
    found = []
    if any(sparse):
        found.append(_Quantity(axes.EXPERTS, "NUM_EXPERTS", config.num_experts))
        found.append(_Quantity(axes.ROUTER_EXPERTS, "NUM_EXPERTS", config.num_experts))
        found.append(_Quantity(axes.EXPERT_MLP, "ModelConfig.d_ff", config.d_ff))
    if not all(sparse):
        found.append(_Quantity(axes.MLP, "ModelConfig.d_ff", config.d_ff))
    found += [
        _Quantity(axes.HEADS, "ModelConfig.num_heads", config.num_heads),
        _Quantity(axes.KV, "ModelConfig.d_kv", config.d_kv),
        _Quantity(axes.EMBED, "ModelConfig.d_model", config.d_model),
        _Quantity(axes.VOCAB, "VOCAB_SIZE", config.vocab_size),
    ]
    if batch_size is not None:
        setting, part = "BATCH_SIZE", batch_size // num_microbatches
        if num_microbatches > 1:
            setting = f"BATCH_SIZE / NUM_MICROBATCHES = {batch_size} / {num_microbatches}"
        found.append(_Quantity(axes.BATCH, setting, part))
        if any(sparse) and config.group_size is None:
            found.append(_Quantity(axes.GROUPS, setting, part))
    return found


def _check_all_to_all(layout: Layout, config: ModelConfig) -> None:
    """Checks that an all-to-all along one mesh dimension can send tokens from their groups to their experts."""
    if not config.num_sparse_layers:
        return
    if layout.num_shards(axes.SLOTS) > 1:
        raise SettingError(
            "LAYOUT_RULES shard slots, whose number differs between training and evaluation and is not always a "
            f"multiple of {layout.num_shards(axes.SLOTS)}: shard expert_mlp instead."
        )
    tokens = axes.GROUPS if axes.GROUPS in layout.rules else axes.BATCH
    home, experts = layout.dimension_of(tokens), layout.dimension_of(axes.EXPERTS)
    if home != experts and min(layout.num_shards(tokens), layout.num_shards(axes.EXPERTS)) > 1:
        raise SettingError(
            f"LAYOUT_RULES map {tokens} to '{home}' and experts to '{experts}', but an all-to-all is along one "
            f"mesh dimension: map both to the same one, '{tokens}:{home},experts:{home}'."
        )


def _nearest_mesh(layout: Layout, quantities: Sequence[_Quantity], most_devices: int) -> str:
    """Finds the largest mesh over which all quantities divide evenly; of several, the most similar one."""

    def sizes(dimension: str, asked: int) -> list[int]:
        split = [quantity.size for quantity in quantities if layout.dimension_of(quantity.axis) == dimension]
        common = math.gcd(*split) if split else asked
        return [size for size in divisors(common) if size <= most_devices]

    def merit(mesh: Sequence[int]) -> tuple[int, float]:
        change = sum(abs(math.log2(size / asked)) for size, asked in zip(mesh, layout.mesh.values()))
        return math.prod(mesh), -change

    meshes = itertools.product(*(sizes(dimension, asked) for dimension, asked in layout.mesh.items()))
    best = max((mesh for mesh in meshes if math.prod(mesh) <= most_devices), key=merit)
    return ",".join(f"{name}:{size}" for name, size in zip(layout.mesh, best))


def placement_notes(layout: Layout, config: ModelConfig) -> list[str]:
    """Reports what is allowed but may be unintended.

    Args:
      layout: the mesh and the rules.
      config: the model.

    Returns:
      A sentence for each rule that no weight uses, each mesh dimension without a rule, each kind of weight with two
      axes mapped to one mesh dimension, and each kind of large weight that is replicated.
    """
    kinds: dict[axes.Axes, list[Weight]] = {}
    for weight in weights_of(config):
        kinds.setdefault(weight.axes, []).append(weight)
    return [
        *_unused_rules(layout, kinds),
        *_unused_dimensions(layout),
        *itertools.chain.from_iterable(_contested(layout, kind) for kind in kinds.values()),
        *itertools.chain.from_iterable(_large_and_replicated(layout, kind) for kind in kinds.values()),
    ]


def _unused_rules(layout: Layout, kinds: Mapping[axes.Axes, object]) -> Iterator[str]:
    present = _OF_ACTIVATIONS_ONLY.union(*kinds)
    for axis, dimension in layout.rules.items():
        if axis not in present:
            yield f"The rule '{axis}:{dimension}' shards nothing: no weight of this model has the axis {axis}."


def _unused_dimensions(layout: Layout) -> Iterator[str]:
    for dimension, size in layout.mesh.items():
        if size > 1 and dimension not in layout.rules.values():
            yield f"No rule uses '{dimension}': the {size} devices along it hold and compute the same values."


def _named(kind: Sequence[Weight]) -> str:
    """Describes weights with the same axes by the first of them."""
    shape, axis_names = " x ".join(map(str, kind[0].shape)), ", ".join(axis or "-" for axis in kind[0].axes)
    others = f" and {len(kind) - 1} like it" if len(kind) > 1 else ""
    return f"{kind[0].name}{others} ({axis_names}: {shape})"


def _contested(layout: Layout, kind: Sequence[Weight]) -> Iterator[str]:
    for dimension, size in layout.mesh.items():
        rivals = [axis for axis in kind[0].axes if axis is not None and layout.dimension_of(axis) == dimension]
        if len(rivals) > 1 and size > 1:
            yield f"{_named(kind)}: {' and '.join(rivals)} map to '{dimension}', which shards {rivals[0]} only."


def _large_and_replicated(layout: Layout, kind: Sequence[Weight]) -> Iterator[str]:
    large = [weight for weight in kind if BYTES_PER_WEIGHT * weight.size >= _LARGE]
    if large and layout.num_devices > 1 and layout.local_shape(large[0].shape, large[0].axes) == large[0].shape:
        total = BYTES_PER_WEIGHT * sum(weight.size for weight in large) / 2**20
        yield f"{_named(large)}: replicated on every device, {total:,.0f} MiB; {_remedy(layout, large[0])}."


def _remedy(layout: Layout, weight: Weight) -> str:
    """Suggests what would shard a weight: a rule for this mesh, or a mesh."""
    candidates = [axis for axis in _SHARD_FIRST if axis in weight.axes]
    for axis in candidates:
        size = weight.shape[weight.axes.index(axis)]
        for dimension, shards in layout.mesh.items():
            # Experts and their routers are sharded over the mesh dimension of the groups, other axes over another one.
            is_home = dimension == layout.dimension_of(axes.GROUPS)
            if shards > 1 and size % shards == 0 and is_home == (axis in _OF_EXPERTS):
                return f"the rule '{axis}:{dimension}' would shard it"
    axis = next(axis for axis in candidates if axis != axes.EXPERTS)
    mapped = layout.dimension_of(axis)
    if mapped is not None:
        return f"a mesh in which '{mapped}' is larger than 1 would shard it"
    return f"another mesh dimension, such as 'model:2', and the rule '{axis}:model' would shard it"
