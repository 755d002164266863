"""`switch-tf describe`."""

import argparse
import json
import typing
from collections.abc import Mapping
from typing import Any

from switch_tf.cli import flags

if typing.TYPE_CHECKING:  # These import TensorFlow, which `switch-tf --help` should not wait for.
    from switch_tf.models.config import ModelConfig
    from switch_tf.partitioning.layout import Layout


def add_parser(commands: flags.Commands) -> None:
    """Adds the command's flags."""
    parser = commands.add_parser("describe", help="count a model's parameters, FLOPs and bytes without allocating it")
    flags.add_gin(parser)
    flags.add_model_dir(parser)
    flags.add_json(parser)


def run(options: argparse.Namespace) -> None:
    """Prints what the configured model costs, and its layout where a mesh is set: tables or one JSON object.

    Raises:
      SettingError: if the mesh does not fit.
    """
    from switch_tf.models.config import ModelConfig
    from switch_tf.partitioning.processor import faster_dtype
    from switch_tf.planning.costs import description, layout_description
    from switch_tf.runs.experiment import configured_layout, configured_lengths
    from switch_tf.runs.teacher_settings import describe_teacher

    config, lengths = ModelConfig(), configured_lengths()
    layout = configured_layout(config)
    costs = description(config, lengths["inputs"], lengths["targets"])
    placed = layout_description(config, layout) if layout.mesh else {}
    teacher = describe_teacher(config, layout, lengths)
    if options.json:
        print(json.dumps(costs | placed | ({"teacher": teacher} if teacher else {}), indent=2))
        return
    _print_costs(config, lengths, costs)
    if placed:
        _print_layout(config, layout, placed["bytes_per_device"])
    if teacher:
        _print_teacher(teacher)
    print(f"note: {faster_dtype()}.")


def _print_table(rows: list[list[str]], alignment: tuple[str, ...]) -> None:
    from tabulate import tabulate

    # Indentation says what is part of what.
    print(tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=alignment, preserve_whitespace=True))


def _print_costs(config: "ModelConfig", lengths: Mapping[str, int], costs: Mapping[str, int]) -> None:
    from switch_tf.planning.costs import human

    experts = f"{config.num_experts} experts in {config.num_sparse_layers} of them" if config.num_experts else "dense"
    layers = f"{config.num_encoder_layers} + {config.num_decoder_layers} layers"
    print(f"{layers}, {experts}; d_model {config.d_model}, d_ff {config.d_ff}, {config.num_heads} heads")
    labels = {
        "parameters": ("parameters", ""),
        "  of experts": ("expert_parameters", ""),
        "  used by one token": ("active_parameters_per_token", ""),
        f"forward FLOPs of {lengths['inputs']} + {lengths['targets']} tokens": ("forward_flops_per_sequence", ""),
        "bytes of weights (float32)": ("weight_bytes", "B"),
        "bytes of Adafactor's slots": ("slot_bytes", "B"),
    }
    rows = [[label, f"{costs[key]:,}", human(costs[key], unit)] for label, (key, unit) in labels.items()]
    _print_table(rows, ("left", "right", "left"))


def _print_teacher(teacher: Mapping[str, Any]) -> None:
    from switch_tf.planning.costs import human

    print(f"\nteacher {teacher['checkpoint']}")
    labels = {
        "parameters": ("parameters", ""),
        "forward FLOPs of a sequence": ("forward_flops_per_sequence", ""),
        f"bytes of weights ({teacher['dtype']})": ("weight_bytes", "B"),
        "bytes of weights on each device": ("weight_bytes_per_device", "B"),
    }
    rows = [[label, f"{teacher[key]:,}", human(teacher[key], unit)] for label, (key, unit) in labels.items()]
    _print_table(rows, ("left", "right", "left"))


def _print_layout(config: "ModelConfig", layout: "Layout", bytes_per_device: Mapping[str, int]) -> None:
    from switch_tf.planning import costs
    from switch_tf.planning.layout_checks import placement_notes
    from switch_tf.planning.weight_specs import weights_of

    mesh = " x ".join(f"{name} {size}" for name, size in layout.mesh.items())
    print(f"\nlayout of each weight over {layout.num_devices} devices ({mesh}), and its bytes on one of them")
    rows = [
        [
            weight.name,
            " x ".join(map(str, weight.shape)),
            " ".join(
                f"{axis or '-'}{':' if dimension else ''}{dimension or ''}"
                for axis, dimension in zip(weight.axes, layout.split(weight.axes))
            ),
            f"{costs.bytes_per_device(layout, weight.shape, weight.axes):,}",
        ]
        for weight in weights_of(config)
    ]
    _print_table(rows, ("left", "left", "left", "right"))
    print(f"\nbytes on each of {layout.num_devices} devices")
    labels = {
        "weights (float32)": "weights",
        "  of experts": "expert_weights",
        "Adafactor's slots": "slots",
        "  of experts ": "expert_slots",
        "total": "total",
    }
    rows = [
        [label, f"{bytes_per_device[key]:,}", costs.human(bytes_per_device[key], "B")] for label, key in labels.items()
    ]
    _print_table(rows, ("left", "right", "left"))
    for note in placement_notes(layout, config):
        print(f"note: {note}")
