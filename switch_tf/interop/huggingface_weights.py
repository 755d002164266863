"""Our weights under Hugging Face's names and in their shapes, both ways, from one table. Without torch."""

from collections.abc import Iterator, Mapping

import numpy as np

from switch_tf.errors import SettingError
from switch_tf.interop.weight_names import NameTable, Rule, Theirs
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name

_ATTENTION = {"query": "q", "key": "k", "value": "v"}


def _attention(ours: str, theirs: str) -> list[Rule]:
    projections = [Rule(f"{ours}/{name}", f"{theirs}.{letter}.weight", 1, True) for name, letter in _ATTENTION.items()]
    return [*projections, Rule(f"{ours}/out", f"{theirs}.o.weight", 2, True)]


def _stack(stack: str) -> list[Rule]:
    ours, theirs = f"{stack}/layer_{{layer}}", f"{stack}.block.{{layer}}.layer"
    feed_forward = 2 if stack == "decoder" else 1
    cross_attention = [
        Rule(f"{ours}/cross_attention_norm/scale", f"{theirs}.1.layer_norm.weight"),
        *_attention(f"{ours}/cross_attention", f"{theirs}.1.EncDecAttention"),
    ]
    return [
        Rule(
            f"{stack}/position_bias/embedding",
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        ),
        Rule(f"{ours}/self_attention_norm/scale", f"{theirs}.0.layer_norm.weight"),
        *_attention(f"{ours}/self_attention", f"{theirs}.0.SelfAttention"),
        *(cross_attention if stack == "decoder" else []),
        Rule(f"{ours}/feed_forward_norm/scale", f"{theirs}.{feed_forward}.layer_norm.weight"),
        Rule(f"{ours}/feed_forward/{{matrix}}", f"{theirs}.{feed_forward}.{{mlp}}.{{matrix}}.weight", 1, True),
        Rule(f"{ours}/feed_forward/router/kernel", f"{theirs}.{feed_forward}.mlp.router.classifier.weight", 1, True),
        Rule(
            f"{ours}/feed_forward/experts/{{matrix}}",
            f"{theirs}.{feed_forward}.mlp.experts.expert_{{expert}}.{{matrix}}.weight",
            1,
            True,
        ),
        Rule(f"{stack}/final_norm/scale", f"{stack}.final_layer_norm.weight"),
    ]


# {mlp} is a dense layer's name: "mlp" in a Switch Transformer, "DenseReluDense" in T5.
NAMES = NameTable(
    [
        Rule("token_embedder/embedding", "shared.weight"),
        *_stack("encoder"),
        *_stack("decoder"),
        Rule("logits/kernel", "lm_head.weight", 1, True),
    ],
    {"mlp": "mlp|DenseReluDense"},
)


def their_name(config: ModelConfig, name: str) -> Theirs:
    """Looks up one of our weights.

    Args:
      config: of our model.
      name: of our weight, as `weight_name` has it.

    Returns:
      Their name, with {expert} left open where each expert has its own, and the rule.

    Raises:
      SettingError: if they have no such weight.
    """
    theirs = NAMES.theirs(name, mlp="mlp" if config.num_experts else "DenseReluDense")
    if theirs is None:
        raise SettingError(
            f"The weight '{name}' has no counterpart at Hugging Face: convert a model without that layer."
        )
    return theirs


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

    theirs, rule = their_name(config, name)
    if rule.is_table:
        yield from ((theirs.format(expert=index), rule.to_theirs(one)) for index, one in enumerate(array))
    else:
        yield theirs, rule.to_theirs(array)


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
        expected = rule.their_shape(shape)
        if tuple(array.shape) != expected:
            raise SettingError(
                f"{theirs} has the shape {tuple(array.shape)} where {expected} was due: convert weights together with "
                "the config that they were made with."
            )
        return rule.to_ours(array, shape)

    theirs, rule = their_name(config, name)
    if rule.is_table:
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
        theirs, _ = their_name(config, name)
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
