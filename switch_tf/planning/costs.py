"""What a model costs, counted without allocating it: parameters, FLOPs, bytes, and bytes on each device of a mesh."""

import math
from collections.abc import Sequence
from typing import Any

from switch_tf.models.config import ModelConfig
from switch_tf.partitioning import axes
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.weight_specs import BYTES_PER_WEIGHT, Weight, weights_of
from switch_tf.training.adafactor import Adafactor


def forward_flops(config: ModelConfig, inputs_length: int, targets_length: int) -> int:
    """FLOPs of one sequence's forward pass, 2 for each multiply-add.

    Counted: all projections, the matmuls of attention, the feed-forward layers that a token uses. Not counted:
    logits, routers, norms, softmaxes, empty slots. Cross-attention's keys and values count on the encoder's tokens,
    where they are computed; Table 9 (124 billion for Base) seems to count them on the decoder's, which gives 9 % less.

    Args:
      config: the model.
      inputs_length: encoder tokens.
      targets_length: decoder tokens.

    Returns:
      FLOPs.
    """
    width = config.num_heads * config.d_kv
    projection = 2 * config.d_model * width
    matrices = 3 if config.activation.startswith("gated") else 2
    feed_forward = matrices * 2 * config.d_model * config.d_ff
    # A query, and a key that is the value as well.
    switch_projections = {
        "none": 3 * projection,
        "linear": 2 * projection,
        "feed_forward": 2 * config.d_model * config.d_ff + 2 * 2 * config.d_ff * width,
    }[config.switch_attention]

    def attention_matmuls(queries: int, keys: int) -> int:
        return 2 * 2 * queries * keys * width

    def block(index: int, length: int, is_decoder: bool) -> float:
        is_sparse = config.is_sparse(index, is_decoder)
        feed_forwards = config.experts_per_token(is_decoder) if is_sparse else 1
        projections = (switch_projections if is_sparse else 3 * projection) + projection
        return length * (projections + feed_forwards * feed_forward) + attention_matmuls(length, length)

    cross_attention = (2 * targets_length + 2 * inputs_length) * projection + attention_matmuls(
        targets_length, inputs_length
    )
    encoder = sum(block(index, inputs_length, False) for index in range(config.num_encoder_layers))
    decoder = sum(block(index, targets_length, True) for index in range(config.num_decoder_layers))
    return round(encoder + decoder + config.num_decoder_layers * cross_attention)


def active_parameters(config: ModelConfig, weights: Sequence[Weight]) -> int:
    """Counts the weights that a token uses: all but those of the experts that it is not sent to."""
    active = 0.0
    for weight in weights:
        share = 1.0
        if axes.EXPERTS in weight.axes:
            share = config.experts_per_token(weight.name.startswith("decoder/")) / config.num_experts
        active += share * weight.size
    return round(active)


def description(config: ModelConfig, inputs_length: int, targets_length: int) -> dict[str, int]:
    """Counts everything.

    Args:
      config: the model.
      inputs_length: encoder tokens of a sequence.
      targets_length: decoder tokens of a sequence.

    Returns:
      parameters: all weights; expert_parameters: those of experts; active_parameters_per_token: those that a token
      uses; forward_flops_per_sequence; weight_bytes (float32); slot_bytes (Adafactor).
    """
    weights = weights_of(config)
    optimizer = Adafactor()
    slots = [slot for weight in weights for slot in optimizer.slot_shapes(weight.shape, weight.axes).values()]
    parameters = sum(weight.size for weight in weights)
    return {
        "parameters": parameters,
        "expert_parameters": sum(weight.size for weight in weights if axes.EXPERTS in weight.axes),
        "active_parameters_per_token": active_parameters(config, weights),
        "forward_flops_per_sequence": forward_flops(config, inputs_length, targets_length),
        "weight_bytes": BYTES_PER_WEIGHT * parameters,
        "slot_bytes": BYTES_PER_WEIGHT * sum(math.prod(slot.shape) for slot in slots),
    }


def human(number: float, unit: str = "") -> str:
    """Writes 7415217408 as `7.42 billion`, and bytes with binary prefixes."""
    if unit == "B":
        exponent = min(5, int(math.log(max(number, 1), 1024)))
        return f"{number / 1024**exponent:.2f} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[exponent]}"
    exponent = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**exponent:.2f} {('', 'thousand', 'million', 'billion', 'trillion')[exponent]}".strip()


def layout_description(config: ModelConfig, layout: Layout) -> dict[str, Any]:
    """Counts what each device of a mesh holds.

    Args:
      config: the model.
      layout: a mesh that fits it.

    Returns:
      bytes_per_device: {"weights", "slots", "expert_weights", "expert_slots", "total"}, those of experts being among
      the others; layout: for each weight, the mesh dimension (or None) of each of its dimensions.
    """
    optimizer = Adafactor()
    held = dict.fromkeys(("weights", "slots", "expert_weights", "expert_slots"), 0)
    weights = weights_of(config)
    for weight in weights:
        slots = optimizer.slot_shapes(weight.shape, weight.axes).values()
        parts = {
            "weights": bytes_per_device(layout, weight.shape, weight.axes),
            "slots": sum(bytes_per_device(layout, *slot) for slot in slots),
        }
        for name, size in parts.items():
            held[name] += size
            held[f"expert_{name}"] += size if axes.EXPERTS in weight.axes else 0
    return {
        "bytes_per_device": {**held, "total": held["weights"] + held["slots"]},
        "layout": {weight.name: list(layout.split(weight.axes)) for weight in weights},
    }


def bytes_per_device(layout: Layout, shape: tuple[int, ...], axis_names: axes.Axes) -> int:
    """Returns the bytes of one device's shard of a weight or slot."""
    return BYTES_PER_WEIGHT * math.prod(layout.local_shape(shape, axis_names))
