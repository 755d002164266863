"""How fast a compiled step could be at the very best: its products and its exchanges at the chip's published rates."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from switch_tf.layers.context import ForwardContext
from switch_tf.partitioning.axes import placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.spmd import Partitioned
from switch_tf.planning.costs import forward_flops
from tpu.precompile.chips import chip_of
from tpu.precompile.hlo import Collective
from tpu.precompile.plan import DECODE, TRAIN, Plan
from tpu.topologies import Slice


class Exchange(NamedTuple):
    """All collectives of one kind along the same mesh dimensions, in one step.

    kind: "all-to-all", ...
    dimension: along which dimensions of the mesh: "data", "data+model".
    number: how many there are.
    num_bytes: of all their results on one device.
    seconds: that it takes at least, with all links of the chips busy.
    largest: the largest array among them, as HLO writes it.
    """

    kind: str
    dimension: str
    number: int
    num_bytes: int
    seconds: float
    largest: str


def exchanges(collectives: Sequence[Collective], layout: Layout, slice_: Slice) -> list[Exchange]:
    """Adds collectives up by kind and mesh dimension.

    Args:
      collectives: of the compiled program.
      layout: the mesh.
      slice_: whose links carry them.

    Returns:
      One row for each kind and dimension, the largest first.
    """
    everybody = tuple(range(layout.num_devices))
    rows: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for collective in collectives:
        rows[collective.kind, _dimension(_group(collective, everybody), layout)].append(collective)
    found = [
        Exchange(
            kind,
            dimension,
            sum(each.executions for each in row),
            sum(each.executions * each.num_bytes for each in row),
            sum(each.executions * _seconds(each, _group(each, everybody), slice_) for each in row),
            max(each.largest for each in row)[1],
        )
        for (kind, dimension), row in rows.items()
    ]
    return sorted(found, key=lambda row: -row.num_bytes)


def _group(collective: Collective, everybody: tuple[int, ...]) -> tuple[int, ...]:
    return collective.groups[0] if collective.groups else everybody


def _dimension(group: Sequence[int], layout: Layout) -> str:
    """Names the mesh dimensions along which the devices of a group differ."""
    places = [layout.coordinates_of(device) for device in group]
    return "+".join(name for name in layout.mesh if len({place[name] for place in places}) > 1) or "none"


def _seconds(collective: Collective, group: Sequence[int], slice_: Slice) -> float:
    """Returns how long a collective takes at least: what each chip must send to others, over all of its links.

    All chips do the same at the same time. Devices of one chip need no link between them, and share those to others.
    """
    of_chip = slice_.generation.devices_per_chip
    chips = len({device // of_chip for device in group})
    others = (chips - 1) / chips
    members, size = len(group) / chips, collective.num_bytes
    sent_by_chip = {
        "all-to-all": of_chip * size * others,
        "all-gather": of_chip * size * others,
        # Added up inside of the chip first; each part is added up on one chip, and goes from there to all others.
        "all-reduce": of_chip / members * 2 * size * others,
        # The result is one part of what went in.
        "reduce-scatter": of_chip / members * size * len(group) * others,
        "collective-permute": of_chip * size * (chips > 1),
    }[collective.kind]
    return sent_by_chip / chip_of(slice_.generation).link_bytes


class Flops(NamedTuple):
    """Products of one step on one device, 2 FLOPs for each multiply-add.

    of_tokens: those of the model's own mathematics, each token through its experts alone.
    of_slots: with every slot of every expert, taken or not: what a step that dispatches for nothing would take.
    compiled: those of the program.
    """

    of_tokens: float
    of_slots: float
    compiled: float


def step_flops(plan: Plan, compiled: float) -> Flops:
    """Counts the FLOPs of one step on one device.

    A training step takes three times the forward pass: the gradient has two products for each of its products.

    Args:
      plan: the step.
      compiled: those of the program.
    """
    config, passes = plan.config, 3 if plan.step == TRAIN else 1
    logits = 2 * plan.targets_length * config.d_model * config.vocab_size
    tokens = plan.batch_size * (forward_flops(config, plan.inputs_length, plan.targets_length) + logits)
    matrices = 3 if config.activation.startswith("gated") else 2
    empty = _empty_slots(plan) * matrices * 2 * config.d_model * config.d_ff
    devices = max(plan.layout.num_devices, 1)
    return Flops(passes * tokens / devices, passes * (tokens + empty) / devices, compiled)


def _empty_slots(plan: Plan) -> float:
    """Counts the slots of a step's sparse feed-forward layers beyond those that its tokens need."""
    model, parts = plan.model(), plan.num_microbatches
    context = ForwardContext(training=plan.step == TRAIN, dropless=plan.step == DECODE)
    empty = 0.0
    with placed_by(Partitioned(plan.layout)):
        for stack, length in ((model.encoder, plan.inputs_length), (model.decoder, plan.targets_length)):
            is_decoder = stack is model.decoder
            for index, block in enumerate(stack.blocks):
                if not plan.config.is_sparse(index, is_decoder):
                    continue
                if plan.step == DECODE:
                    # The encoder takes whole sequences, the decoder one token of each after the other.
                    steps, size = (length, 1) if is_decoder else (1, length)
                    slots = steps * block.feed_forward.num_slots(plan.batch_size, size, context)
                else:
                    slots = parts * block.feed_forward.num_slots(plan.batch_size // parts, length, context)
                empty += slots - plan.batch_size * length * plan.config.experts_per_token(is_decoder)
    return empty
