"""What a model costs, counted without making it: parameters, FLOPs, bytes."""

import contextlib
import json
import math
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from tensorflow.python.ops.resource_variable_ops import UninitializedVariable

from switch_tf import configuration
from switch_tf.model import EncoderDecoder, weight_name
from switch_tf.model_config import ModelConfig
from switch_tf.partitioning import axes
from switch_tf.training.adafactor import Adafactor

# T5's lengths in pre-training, where the experiment names no others.
DEFAULT_LENGTHS = {"inputs": 512, "targets": 114}
_BYTES_PER_WEIGHT = 4


class Weight(NamedTuple):
    """A weight that need not exist: its name, shape and axis names."""

    name: str
    shape: tuple[int, ...]
    axes: axes.Axes

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@contextlib.contextmanager
def without_allocation() -> Iterator[None]:
    """Inside of it, variables have a shape and a dtype but no value and no memory."""

    def creator(next_creator, **kwargs):
        del next_creator
        shape = axes.weight_being_made().shape
        return UninitializedVariable(shape=shape, dtype=kwargs["dtype"], trainable=kwargs["trainable"])

    with tf.variable_creator_scope(creator):
        yield


def weights_of(config: ModelConfig) -> list[Weight]:
    """Lists the weights of a model of any size, in the order in which it makes them."""
    with without_allocation():
        model = EncoderDecoder(config)
        model.build()
    return [Weight(weight_name(weight), tuple(weight.shape), weight.axes) for weight in model.weights]


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
        "weight_bytes": _BYTES_PER_WEIGHT * parameters,
        "slot_bytes": _BYTES_PER_WEIGHT * sum(math.prod(slot.shape) for slot in slots),
    }


def human(number: float, unit: str = "") -> str:
    """Writes 7415217408 as `7.42 billion`, and bytes with binary prefixes."""
    if unit == "B":
        exponent = min(5, int(math.log(max(number, 1), 1024)))
        return f"{number / 1024**exponent:.2f} {('B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB')[exponent]}"
    exponent = min(4, int(math.log10(max(number, 1)) // 3))
    return f"{number / 1000**exponent:.2f} {('', 'thousand', 'million', 'billion', 'trillion')[exponent]}".strip()


def describe(as_json: bool) -> None:
    """Prints the description of the configured model, as a table or as one JSON object."""
    config = ModelConfig()
    lengths = configuration.macro("TASK_FEATURE_LENGTHS", DEFAULT_LENGTHS)
    values = description(config, lengths["inputs"], lengths["targets"])
    if as_json:
        print(json.dumps(values, indent=2))
        return
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
