"""Our weights under Hugging Face's names and in their shapes, both ways, from one table. Without torch."""

import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name

# Ours, theirs, and how many leading axes of ours are the inputs of a matrix: theirs is [outputs, inputs], all heads in
# one axis. 0: the same array. {ff} is the feed-forward layer's place in a block, {mlp} its name; the matrices of all
# experts are one table of ours.
_BLOCK_WEIGHTS = (
    ("self_attention_norm/scale", "0.layer_norm", 0),
    ("self_attention/query", "0.SelfAttention.q", 1),
    ("self_attention/key", "0.SelfAttention.k", 1),
    ("self_attention/value", "0.SelfAttention.v", 1),
    ("self_attention/out", "0.SelfAttention.o", 2),
    ("cross_attention_norm/scale", "1.layer_norm", 0),
    ("cross_attention/query", "1.EncDecAttention.q", 1),
    ("cross_attention/key", "1.EncDecAttention.k", 1),
    ("cross_attention/value", "1.EncDecAttention.v", 1),
    ("cross_attention/out", "1.EncDecAttention.o", 2),
    ("feed_forward_norm/scale", "{ff}.layer_norm", 0),
    ("feed_forward/{matrix}", "{ff}.{mlp}.{matrix}", 1),
    ("feed_forward/router/kernel", "{ff}.mlp.router.classifier", 1),
    ("feed_forward/experts/{matrix}", "{ff}.mlp.experts.expert_{expert}.{matrix}", 1),
)
_WEIGHTS = (
    ("token_embedder/embedding", "shared.weight", 0),
    ("{stack}/position_bias/embedding", "{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", 0),
    *(
        ("{stack}/layer_{layer}/" + ours, "{stack}.block.{layer}.layer." + theirs + ".weight", num_inputs)
        for ours, theirs, num_inputs in _BLOCK_WEIGHTS
    ),
    ("{stack}/final_norm/scale", "{stack}.final_layer_norm.weight", 0),
    ("logits/kernel", "lm_head.weight", 1),
)
_FIELDS = {"stack": "encoder|decoder", "layer": r"\d+", "matrix": "wi|wi_0|wi_1|wo"}


def _counterpart(config: ModelConfig, name: str) -> tuple[str, int]:
    """Looks up one of our weights: (its name there, with {expert} left open; its input axes)."""
    for ours, theirs, num_inputs in _WEIGHTS:
        pattern = re.sub(r"{(\w+)}", lambda field: f"(?P<{field[1]}>{_FIELDS[field[1]]})", ours)
        match = re.fullmatch(pattern, name)
        if match:
            fields = match.groupdict()
            fields["ff"] = 2 if fields.get("stack") == "decoder" else 1
            fields["mlp"] = "mlp" if config.num_experts else "DenseReluDense"
            return theirs.format(**fields, expert="{expert}"), num_inputs
    raise SettingError(f"The weight '{name}' has no counterpart at Hugging Face: convert a model without that layer.")


def token_table_copies(config: ModelConfig) -> list[str]:
    """Returns their further names of the token table, `shared.weight`."""
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    return [*copies, "lm_head.weight"] if config.tied_logits else copies


def to_their_weights(config: ModelConfig, name: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Says one of our weights (or its gradient) in their names and shapes, without copies.

    Args:
      config: of our model.
      name: of our weight, as `weight_name` has it.
      array: its value.

    Yields:
      (their name, array): one for each expert of an expert table, else a single one.

    Raises:
      SettingError: if they have no such weight.
    """

    def matrix(array):
        return array.reshape(math.prod(array.shape[:num_inputs]), -1).T if num_inputs else array

    theirs, num_inputs = _counterpart(config, name)
    if "{expert}" in theirs:
        yield from ((theirs.format(expert=index), matrix(one)) for index, one in enumerate(array))
    else:
        yield theirs, matrix(array)


def from_their_weights(
    config: ModelConfig, name: str, shape: tuple[int, ...], state: Mapping[str, np.ndarray]
) -> np.ndarray:
    """Puts one of our weights together from theirs.

    Args:
      config: of our model.
      name: of our weight, as `weight_name` has it.
      shape: of our weight.
      state: their weights (or gradients) by their names.

    Returns:
      The array of that shape.

    Raises:
      SettingError: if a weight is not there, or of another shape.
    """

    def read(theirs: str, shape: tuple[int, ...]) -> np.ndarray:
        if theirs not in state:
            raise SettingError(f"{theirs} is missing: convert a whole ...ForConditionalGeneration with its own config.")
        array = state[theirs]
        expected = (math.prod(shape[num_inputs:]), math.prod(shape[:num_inputs])) if num_inputs else shape
        if tuple(array.shape) != expected:
            raise SettingError(
                f"{theirs} has the shape {tuple(array.shape)} where {expected} was due: convert weights together with "
                "the config that they were made with."
            )
        return array.T.reshape(shape) if num_inputs else array

    theirs, num_inputs = _counterpart(config, name)
    if "{expert}" in theirs:
        table = np.empty(shape, np.float32)
        for index in range(shape[0]):
            table[index] = read(theirs.format(expert=index), shape[1:])
        return table
    return read(theirs, tuple(shape))


def load_weights(model: EncoderDecoder, state: Mapping[str, np.ndarray]) -> None:
    """Gives our model the weights of theirs, one table at a time.

    Args:
      model: ours, built.
      state: all of their weights by their names, as in their `state_dict()`.

    Raises:
      SettingError: if a weight is missing, left over or of another shape, or if their token tables differ.
    """
    config, unused = model.config, set(state)
    for weight in model.weights:
        name = weight_name(weight)
        weight.assign(from_their_weights(config, name, weight.shape, state))
        theirs, _ = _counterpart(config, name)
        unused -= {theirs.format(expert=index) for index in range(max(config.num_experts, 1))}
    for copy in unused & set(token_table_copies(config)):
        if not np.array_equal(state[copy], state["shared.weight"]):
            raise SettingError(
                f"{copy} and shared.weight differ, where our model has one token table: convert a model whose "
                "encoder, decoder and tied head share theirs."
            )
        unused.remove(copy)
    if unused:
        raise SettingError(f"Our model has no place for {min(unused)}: convert a model without it.")
