"""Lower bounds of a step's time: its matmuls and its collectives at the chip's published rates."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from switch_tf.layers.context import ForwardContext
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.axes import placed_by
from switch_tf.partitioning.layout import Layout
from switch_tf.partitioning.spmd import Partitioned
from switch_tf.planning.costs import forward_flops
from tpu.precompile.chips import chip_of
from tpu.precompile.hlo import Collective
from tpu.precompile.plan import DECODE, TRAIN, Plan, built
from tpu.topologies import Slice


class CollectiveTotal(NamedTuple):
    """All collectives of one kind along the same mesh dimensions, in one step.

    Attributes:
      kind: "all-to-all", ...
      dimension: the mesh dimensions along which they run: "data", "data+model".
      number: how many the step executes.
      asynchronous: how many of these run beside other instructions.
      num_bytes: of all their results on one device.
      seconds: lower bound of their time, with all links of the chips busy.
      exposed_seconds: the part of it that no matmul covers, at the chip's peak rate: all of it if they are synchronous.
      largest: the shape of the largest array among them, in HLO's notation.
    """

    kind: str
    dimension: str
    number: int
    asynchronous: int
    num_bytes: int
    seconds: float
    exposed_seconds: float
    largest: str


def total_collectives(collectives: Sequence[Collective], layout: Layout, slice_: Slice) -> list[CollectiveTotal]:
    """Adds collectives up by kind and mesh dimension.

    Args:
      collectives: of the compiled program.
      layout: the mesh.
      slice_: whose links carry them.

    Returns:
      One total for each kind and dimension, the one with most bytes first.
    """
    all_devices = tuple(range(layout.num_devices))
    device_flops = chip_of(slice_.generation).peak_flops / slice_.generation.devices_per_chip

    def seconds(each: Collective) -> float:
        return _seconds(each, _group(each, all_devices), slice_)

    def exposed_seconds(each: Collective) -> float:
        return max(seconds(each) - each.covering_flops / device_flops, 0.0)

    rows: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for collective in collectives:
        rows[collective.kind, _dimension(_group(collective, all_devices), layout)].append(collective)
    totals = [
        CollectiveTotal(
            kind,
            dimension,
            sum(each.executions for each in row),
            sum(each.executions for each in row if each.is_asynchronous),
            sum(each.executions * each.num_bytes for each in row),
            sum(each.executions * seconds(each) for each in row),
            sum(each.executions * exposed_seconds(each) for each in row),
            max(each.largest for each in row)[1],
        )
        for (kind, dimension), row in rows.items()
    ]
    return sorted(totals, key=lambda total: -total.num_bytes)


def _group(collective: Collective, all_devices: tuple[int, ...]) -> tuple[int, ...]:
    return collective.groups[0] if collective.groups else all_devices


def _dimension(group: Sequence[int], layout: Layout) -> str:
    """Names the mesh dimensions along which the devices of a group differ."""
    coordinates = [layout.coordinates_of(device) for device in group]
    return "+".join(name for name in layout.mesh if len({each[name] for each in coordinates}) > 1) or "none"


def _seconds(collective: Collective, group: Sequence[int], slice_: Slice) -> float:
    """Returns a lower bound of a collective's time: the bytes that each chip must send, over the rate of all its links.

    All chips send at the same time. Devices of one chip need no link between them, and share its links to other chips.
    """
    of_chip = slice_.generation.devices_per_chip
    chips = len({device // of_chip for device in group})
    others = (chips - 1) / chips
    members, size = len(group) / chips, collective.num_bytes
    sent_by_chip = {
        "all-to-all": of_chip * size * others,
        "all-gather": of_chip * size * others,
        # Reduced within each chip, then a reduce-scatter and an all-gather between chips.
        "all-reduce": of_chip / members * 2 * size * others,
        # The result is one shard of the operand.
        "reduce-scatter": of_chip / members * size * len(group) * others,
        "collective-permute": of_chip * size * (chips > 1),
    }[collective.kind]
    return sent_by_chip / chip_of(slice_.generation).link_bytes


class StepFlops(NamedTuple):
    """Matmul FLOPs of one step on one device, 2 for each multiply-add.

    Attributes:
      model: of the model, where each token goes through its own experts only.
      all_slots: of the model, where each expert computes all of its slots, empty ones too: a step with a free dispatch.
      compiled: of the compiled program.
    """

    model: float
    all_slots: float
    compiled: float


def step_flops(plan: Plan, compiled: float) -> StepFlops:
    """Counts the matmul FLOPs of one step on one device.

    A training step counts as three forward passes: the gradient has two matmuls for each matmul of the forward pass. A
    teacher's forward pass is added.

    Args:
      plan: the step.
      compiled: FLOPs of the compiled program on one device.

    Returns:
      The FLOPs of the model and of the program.
    """
    passes = 3 if plan.step == TRAIN else 1
    context = ForwardContext(training=plan.step == TRAIN, dropless=plan.step == DECODE)
    tokens, empty = (passes * flops for flops in _forward_flops(plan, plan.model(), context))
    if plan.teacher is not None and plan.teacher.config is not None:
        of_teacher = _forward_flops(plan, built(plan.teacher.config), ForwardContext())
        tokens, empty = tokens + of_teacher[0], empty + of_teacher[1]
    devices = max(plan.layout.num_devices, 1)
    return StepFlops(tokens / devices, (tokens + empty) / devices, compiled)


def _forward_flops(plan: Plan, model: EncoderDecoder, context: ForwardContext) -> tuple[float, float]:
    """Counts a forward pass of a batch: (FLOPs of the tokens, FLOPs of slots that no token fills)."""
    config = model.config
    logits = 2 * plan.targets_length * config.d_model * config.vocab_size
    forward = forward_flops(config, plan.inputs_length, plan.targets_length)
    tokens = plan.batch_size * (forward + logits + _router_flops(plan, config))
    matrices = 3 if config.activation.startswith("gated") else 2
    return tokens, _empty_slots(plan, model, context) * matrices * 2 * config.d_model * config.d_ff


def _router_flops(plan: Plan, config: ModelConfig) -> int:
    """Counts the FLOPs of one sequence's routers: 6 % of Switch-C's."""
    stacks = ((config.num_encoder_layers, plan.inputs_length), (config.num_decoder_layers, plan.targets_length))
    tokens = sum(
        length
        for is_decoder, (num_layers, length) in enumerate(stacks)
        for index in range(num_layers)
        if config.is_sparse(index, bool(is_decoder))
    )
    routers_per_layer = 1 if config.switch_attention == "none" else 2
    return 2 * tokens * routers_per_layer * config.d_model * config.num_experts


def _empty_slots(plan: Plan, model: EncoderDecoder, context: ForwardContext) -> float:
    """Counts the slots in the sparse feed-forward layers of a step that no token fills."""
    config, num_microbatches = model.config, plan.num_microbatches
    empty = 0.0
    with placed_by(Partitioned(plan.layout)):
        for stack, length in ((model.encoder, plan.inputs_length), (model.decoder, plan.targets_length)):
            is_decoder = stack is model.decoder
            for index, block in enumerate(stack.blocks):
                if not config.is_sparse(index, is_decoder):
                    continue
                if plan.step == DECODE:
                    # The encoder runs once on whole sequences, the decoder once for each token.
                    steps, size = (length, 1) if is_decoder else (1, length)
                    slots = steps * block.feed_forward.num_slots(plan.batch_size, size, context)
                else:
                    microbatch_size = plan.batch_size // num_microbatches
                    slots = num_microbatches * block.feed_forward.num_slots(microbatch_size, length, context)
                empty += slots - plan.batch_size * length * config.experts_per_token(is_decoder)
    return empty
