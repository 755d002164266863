"""What would make a step fit that does not: microbatches, a mesh, rematerialization, a larger slice. By estimate."""

import dataclasses
from collections.abc import Iterator

from switch_tf.errors import SettingError
from switch_tf.partitioning import axes
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.costs import layout_description
from switch_tf.planning.layout_checks import check_placement
from tpu.precompile.chips import chip_of
from tpu.precompile.plan import TRAIN, Plan
from tpu.topologies import Slice


def advice(plan: Plan, slice_: Slice, needed: int) -> str:
    """Names the smallest change after which the step should fit.

    What is there on a device whatever the batch is (weights, slots, a gradient as large as the weights) is known for
    every mesh; the rest of what was needed, the activations, is taken to shrink with the sequences in memory, and by
    half where blocks make them again (of Switch-C's on v6e 0.43 stay).

    Args:
      plan: the step.
      slice_: the TPUs.
      needed: bytes on one device, by the compiler.

    Returns:
      A sentence.
    """
    limit = chip_of(slice_.generation).device_bytes
    activations = max(needed - _fixed_bytes(plan), 0)
    for batch_size in _smaller_batches(plan):
        if _fixed_bytes(plan) + activations * batch_size / plan.batch_size <= limit:
            return f"lower BATCH_SIZE to {batch_size}"
    for num_microbatches in _more_microbatches(plan):
        if _fixed_bytes(plan) + activations * plan.num_microbatches / num_microbatches <= limit:
            return f"raise NUM_MICROBATCHES to {num_microbatches}"
    for other in _other_meshes(plan):
        # As many sequences on each device at a time as before.
        if _fixed_bytes(other) + activations <= limit:
            return (
                f"{_change(plan.layout, other.layout)} (MESH_SHAPE = '{_mesh_text(other.layout)}', NUM_MICROBATCHES = "
                f"{other.num_microbatches})"
            )
    for other in _by_blocks(plan):
        kept = (needed - _held_bytes(plan)) / 2 * plan.num_microbatches / other.num_microbatches
        if _held_bytes(other) + kept <= limit:
            more = f" and NUM_MICROBATCHES = {other.num_microbatches}" if other is not plan else ""
            return f"set REMATERIALIZATION = 'blocks'{more}"
    for larger in _larger_slices(slice_):
        factor = larger.num_devices // slice_.num_devices
        other = _with_data(plan, factor)
        if other is not None and _fixed_bytes(other) + activations <= limit:
            return (
                f"take {larger.accelerator_type}, with MESH_SHAPE = '{_mesh_text(other.layout)}' and "
                f"NUM_MICROBATCHES = {other.num_microbatches}"
            )
    held = "weights and gradients take" if plan.step == TRAIN else "weights take"
    return (
        f"no larger {slice_.generation.name} slice of this layout is sure to do: {held} "
        f"{_fixed_bytes(plan) / 2**30:.2f} GiB on each device"
    )


def _fixed_bytes(plan: Plan) -> int:
    held = layout_description(plan.config, plan.layout)["bytes_per_device"]
    return 2 * held["weights"] + held["slots"] if plan.step == TRAIN else held["weights"]


def _held_bytes(plan: Plan) -> int:
    """What is there in any case: gradients are whole only where microbatches add them up."""
    held = layout_description(plan.config, plan.layout)["bytes_per_device"]
    return held["weights"] + held["slots"] + (held["weights"] if plan.num_microbatches > 1 else 0)


def _fits(plan: Plan) -> bool:
    lengths = {"inputs": plan.inputs_length, "targets": plan.targets_length}
    try:
        check_placement(plan.layout, plan.config, plan.batch_size, lengths, plan.num_microbatches)
    except SettingError:
        return False
    return True


def _smaller_batches(plan: Plan) -> Iterator[int]:
    size = plan.batch_size // 2
    while plan.step != TRAIN and size >= 1:
        if _fits(dataclasses.replace(plan, batch_size=size)):
            yield size
        size //= 2


def _more_microbatches(plan: Plan) -> Iterator[int]:
    number = 2 * plan.num_microbatches
    while plan.step == TRAIN and number <= plan.batch_size:
        if _fits(dataclasses.replace(plan, num_microbatches=number)):
            yield number
        number *= 2


def _by_blocks(plan: Plan) -> Iterator[Plan]:
    """Yields the step with blocks that keep nothing, unless something is made again already."""
    if plan.step == TRAIN and plan.config.rematerialization == "none":
        yield plan
        for number in _more_microbatches(plan):
            yield dataclasses.replace(plan, num_microbatches=number)


def _home(layout: Layout) -> str | None:
    """The mesh dimension of the batch."""
    return layout.dimension_of(axes.BATCH)


def _split_dimension(layout: Layout) -> str:
    """The mesh dimension that splits layers."""
    return next((name for name in layout.mesh if name != _home(layout)), "model")


def _other_meshes(plan: Plan) -> Iterator[Plan]:
    """Yields the step on as many devices, with more of them to each layer."""
    home, split = _home(plan.layout), _split_dimension(plan.layout)
    factor = 2
    while home is not None and split in plan.layout.mesh and plan.layout.mesh[home] % factor == 0:
        mesh = dict(plan.layout.mesh)
        mesh[home] //= factor
        mesh[split] *= factor
        number = plan.num_microbatches * factor if plan.step == TRAIN else 1
        other = dataclasses.replace(plan, layout=Layout(mesh, plan.layout.rules), num_microbatches=number)
        if _fits(other):
            yield other
        factor *= 2


def _larger_slices(slice_: Slice) -> Iterator[Slice]:
    for shape in slice_.generation.shapes:
        larger = slice_.generation.slice(shape)
        if larger.num_devices > slice_.num_devices and larger.num_devices % slice_.num_devices == 0:
            yield larger


def _with_data(plan: Plan, factor: int) -> Plan | None:
    """The step with so many times the devices along the batch's dimension."""
    home = _home(plan.layout)
    if home is None:
        return None
    mesh = dict(plan.layout.mesh)
    mesh[home] *= factor
    other = dataclasses.replace(
        plan,
        layout=Layout(mesh, plan.layout.rules),
        num_microbatches=max(plan.num_microbatches // factor, 1),
    )
    return other if _fits(other) else None


def _mesh_text(layout: Layout) -> str:
    return ",".join(f"{name}:{size}" for name, size in layout.mesh.items())


def _change(before: Layout, after: Layout) -> str:
    name = _split_dimension(before)
    return f"raise {name} to {after.mesh[name]}"
