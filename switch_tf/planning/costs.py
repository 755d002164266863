"""What a model costs, counted without making it: parameters, FLOPs, bytes, and bytes on each device of a mesh."""

import json
import math

from switch_tf.models.config import ModelConfig
from switch_tf.partitioning import axes
from switch_tf.partitioning.layout import Layout
from switch_tf.planning.layout_checks import check_placement, placement_notes
from switch_tf.planning.weight_specs import BYTES_PER_WEIGHT, Weight, weights_of
from switch_tf.runs import gin_config
from switch_tf.training.adafactor import Adafactor

# T5's lengths in pre-training, where the experiment names no others.
DEFAULT_LENGTHS = {"inputs": 512, "targets": 114}


def forward_flops(config: ModelConfig, inputs_length: int, targets_length: int) -> int:
    """FLOPs of one sequence's forward pass, 2 for each multiply-add.

    Counted: all projections, the products of attention, the feed-forward layers that a token uses. Not counted:
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

    def products(queries: int, keys: int) -> int:
        return 2 * 2 * queries * keys * width

    def block(index: int, length: int, is_decoder: bool) -> float:
        is_sparse = config.is_sparse(index, is_decoder)
        feed_forwards = config.experts_per_token(is_decoder) if is_sparse else 1
        projections = (switch_projections if is_sparse else 3 * projection) + projection
        return length * (projections + feed_forwards * feed_forward) + products(length, length)

    cross_attention = (2 * targets_length + 2 * inputs_length) * projection + products(targets_length, inputs_length)
    encoder = sum(block(index, inputs_length, False) for index in range(config.num_encoder_layers))
    decoder = sum(block(index, targets_length, True) for index in range(config.num_decoder_layers))
    return round(encoder + decoder + config.num_decoder_layers * cross_attention)


def active_parameters(config: ModelConfig, weights: list[Weight]) -> int:
    """Counts the weights that a token uses: all that no expert has, and those of its experts in each sparse layer."""
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


def layout_description(config: ModelConfig, layout: Layout) -> dict[str, dict]:
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
            "weights": _bytes_per_device(layout, weight.shape, weight.axes),
            "slots": sum(_bytes_per_device(layout, *slot) for slot in slots),
        }
        for name, size in parts.items():
            held[name] += size
            held[f"expert_{name}"] += size if axes.EXPERTS in weight.axes else 0
    return {
        "bytes_per_device": {**held, "total": held["weights"] + held["slots"]},
        "layout": {weight.name: list(layout.split(weight.axes)) for weight in weights},
    }


def _bytes_per_device(layout: Layout, shape: tuple[int, ...], axis_names: axes.Axes) -> int:
    return BYTES_PER_WEIGHT * math.prod(layout.local_shape(shape, axis_names))


def configured_layout(config: ModelConfig, lengths: dict[str, int]) -> Layout:
    """Returns the layout that the macros set, of no mesh where they set none.

    Raises:
      SettingError: if it cannot be read, or does not fit the model or (where one is set) the batch.
    """
    layout = Layout.parse(gin_config.macro("MESH_SHAPE", ""), gin_config.macro("LAYOUT_RULES", ""))
    if layout.mesh:
        batch_size, num_microbatches = gin_config.macro("BATCH_SIZE"), gin_config.macro("NUM_MICROBATCHES", 1)
        check_placement(layout, config, batch_size, lengths, num_microbatches)
    return layout


def describe(as_json: bool) -> None:
    """Prints the description of the configured model, and of its layout where a mesh is set: tables or a JSON object.

    Raises:
      SettingError: if the mesh does not fit.
    """
    config = ModelConfig()
    lengths = gin_config.macro("TASK_FEATURE_LENGTHS", DEFAULT_LENGTHS)
    layout = configured_layout(config, lengths)
    values = description(config, lengths["inputs"], lengths["targets"])
    placed = layout_description(config, layout) if layout.mesh else {}
    if as_json:
        print(json.dumps(values | placed, indent=2))
        return
    _print_counts(config, lengths, values)
    if placed:
        _print_layout(config, layout, placed["bytes_per_device"])


def _print_counts(config: ModelConfig, lengths: dict[str, int], values: dict[str, int]) -> None:
    experts = f"{config.num_experts} experts in {config.num_sparse_layers} of them" if config.num_experts else "dense"
    layers = f"{config.num_encoder_layers} + {config.num_decoder_layers} layers"
    print(f"{layers}, {experts}; d_model {config.d_model}, d_ff {config.d_ff}, {config.num_heads} heads")
    rows = {
        "parameters": ("parameters", ""),
        "  of experts": ("expert_parameters", ""),
        "  used by one token": ("active_parameters_per_token", ""),
        f"forward FLOPs of {lengths['inputs']} + {lengths['targets']} tokens": ("forward_flops_per_sequence", ""),
        "bytes of weights (float32)": ("weight_bytes", "B"),
        "bytes of Adafactor's slots": ("slot_bytes", "B"),
    }
    for label, (key, unit) in rows.items():
        print(f"{label:<36}{values[key]:>28,}   {human(values[key], unit)}")


def _print_layout(config: ModelConfig, layout: Layout, bytes_per_device: dict[str, int]) -> None:
    mesh = " x ".join(f"{name} {size}" for name, size in layout.mesh.items())
    print(f"\neach weight's layout over {layout.num_devices} devices ({mesh}), and its bytes on one of them")
    rows = [
        (
            weight.name,
            " x ".join(map(str, weight.shape)),
            " ".join(
                f"{axis or '-'}{':' if dimension else ''}{dimension or ''}"
                for axis, dimension in zip(weight.axes, layout.split(weight.axes))
            ),
            f"{_bytes_per_device(layout, weight.shape, weight.axes):,}",
        )
        for weight in weights_of(config)
    ]
    name, shape, axis, size = (max(map(len, column)) for column in zip(*rows))
    for row in rows:
        print(f"{row[0]:<{name}}  {row[1]:<{shape}}  {row[2]:<{axis}}  {row[3]:>{size}}")
    print(f"\nbytes on each of {layout.num_devices} devices")
    for label, key in (
        ("weights (float32)", "weights"),
        ("  of experts", "expert_weights"),
        ("Adafactor's slots", "slots"),
        ("  of experts", "expert_slots"),
        ("together", "total"),
    ):
        print(f"{label:<36}{bytes_per_device[key]:>28,}   {human(bytes_per_device[key], 'B')}")
    for note in placement_notes(layout, config):
        print(f"note: {note}")
