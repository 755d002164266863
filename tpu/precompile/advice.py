"""Suggests a change that should make a step fit: microbatches, another mesh, rematerialization or a larger slice."""

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
    """Suggests the smallest change after which the step should fit. An estimate.

    The bytes that do not depend on the batch (weights, slots, gradients as large as the weights, a teacher's weights)
    are known for every mesh. The rest of the peak, the activations, is assumed to be proportional to the sequences per
    device in memory, and to halve when blocks are recomputed (for Switch-C on v6e, 0.43 of them remained).

    Args:
      plan: the step.
      slice_: the TPU slice.
      needed: peak bytes on one device, reported by the compiler.

    Returns:
      A clause in the imperative: "raise NUM_MICROBATCHES to 4".
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
        # Its microbatches keep the sequences per device in memory as they were.
        if _fixed_bytes(other) + activations <= limit:
            return (
                f"{_change(plan.layout, other.layout)} (MESH_SHAPE = '{_mesh_text(other.layout)}', NUM_MICROBATCHES = "
                f"{other.num_microbatches})"
            )
    for other in _with_rematerialization(plan):
        remaining = (needed - _minimal_bytes(plan)) / 2 * plan.num_microbatches / other.num_microbatches
        if _minimal_bytes(other) + remaining <= limit:
            more = f" and NUM_MICROBATCHES = {other.num_microbatches}" if other is not plan else ""
            return f"set REMATERIALIZATION = 'blocks'{more}"
    for larger in _larger_slices(slice_):
        factor = larger.num_devices // slice_.num_devices
        scaled = _with_data(plan, factor)
        if scaled is not None and _fixed_bytes(scaled) + activations <= limit:
            return (
                f"use {larger.accelerator_type}, with MESH_SHAPE = '{_mesh_text(scaled.layout)}' and "
                f"NUM_MICROBATCHES = {scaled.num_microbatches}"
            )
    subject = "weights, slots and gradients take" if plan.step == TRAIN else "weights take"
    return (
        f"no larger {slice_.generation.name} slice is certain to fit with this layout: {subject} "
        f"{_fixed_bytes(plan) / 2**30:.2f} GiB on each device"
    )


def _fixed_bytes(plan: Plan) -> int:
    """Bytes on one device that do not depend on the batch, with gradients of all weights."""
    held = layout_description(plan.config, plan.layout)["bytes_per_device"]
    return 2 * held["weights"] + held["slots"] + plan.teacher_bytes if plan.step == TRAIN else held["weights"]


def _minimal_bytes(plan: Plan) -> int:
    """The same, without gradients unless microbatches accumulate them: else they need not all exist at once."""
    held = layout_description(plan.config, plan.layout)["bytes_per_device"]
    gradients = held["weights"] if plan.num_microbatches > 1 else 0
    return held["weights"] + held["slots"] + plan.teacher_bytes + gradients


def _is_valid(plan: Plan) -> bool:
    lengths = {"inputs": plan.inputs_length, "targets": plan.targets_length}
    try:
        check_placement(plan.layout, plan.config, plan.batch_size, lengths, plan.num_microbatches)
    except SettingError:
        return False
    return True


def _smaller_batches(plan: Plan) -> Iterator[int]:
    size = plan.batch_size // 2
    while plan.step != TRAIN and size >= 1:
        if _is_valid(dataclasses.replace(plan, batch_size=size)):
            yield size
        size //= 2


def _more_microbatches(plan: Plan) -> Iterator[int]:
    number = 2 * plan.num_microbatches
    while plan.step == TRAIN and number <= plan.batch_size:
        if _is_valid(dataclasses.replace(plan, num_microbatches=number)):
            yield number
        number *= 2


def _with_rematerialization(plan: Plan) -> Iterator[Plan]:
    """Yields the step with blocks recomputed in the backward pass, unless it recomputes something already."""
    if plan.step == TRAIN and plan.config.rematerialization == "none":
        yield plan
        for number in _more_microbatches(plan):
            yield dataclasses.replace(plan, num_microbatches=number)


def _batch_dimension(layout: Layout) -> str | None:
    """The mesh dimension over which the batch is sharded."""
    return layout.dimension_of(axes.BATCH)


def _model_dimension(layout: Layout) -> str:
    """The mesh dimension over which layers are sharded."""
    return next((name for name in layout.mesh if name != _batch_dimension(layout)), "model")


def _other_meshes(plan: Plan) -> Iterator[Plan]:
    """Yields the step on as many devices, with each layer sharded over more of them."""
    batch, model = _batch_dimension(plan.layout), _model_dimension(plan.layout)
    factor = 2
    while batch is not None and model in plan.layout.mesh and plan.layout.mesh[batch] % factor == 0:
        mesh = dict(plan.layout.mesh)
        mesh[batch] //= factor
        mesh[model] *= factor
        number = plan.num_microbatches * factor if plan.step == TRAIN else 1
        other = dataclasses.replace(plan, layout=Layout(mesh, plan.layout.rules), num_microbatches=number)
        if _is_valid(other):
            yield other
        factor *= 2


def _larger_slices(slice_: Slice) -> Iterator[Slice]:
    for shape in slice_.generation.shapes:
        larger = slice_.generation.slice(shape)
        if larger.num_devices > slice_.num_devices and larger.num_devices % slice_.num_devices == 0:
            yield larger


def _with_data(plan: Plan, factor: int) -> Plan | None:
    """The step with `factor` times the devices along the dimension of the batch; None if that is not valid."""
    batch = _batch_dimension(plan.layout)
    if batch is None:
        return None
    mesh = dict(plan.layout.mesh)
    mesh[batch] *= factor
    other = dataclasses.replace(
        plan,
        layout=Layout(mesh, plan.layout.rules),
        num_microbatches=max(plan.num_microbatches // factor, 1),
    )
    return other if _is_valid(other) else None


def _mesh_text(layout: Layout) -> str:
    return ",".join(f"{name}:{size}" for name, size in layout.mesh.items())


def _change(before: Layout, after: Layout) -> str:
    name = _model_dimension(before)
    return f"raise {name} to {after.mesh[name]}"
