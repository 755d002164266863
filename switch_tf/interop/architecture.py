"""What a model is, read from the names and shapes of its weights, and which weights a model of ours has."""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from switch_tf.errors import SettingError
from switch_tf.interop.lazy_tensors import LazyTensor, LazyTensors, rows_of, stacked
from switch_tf.interop.weight_names import NameTable, Rule
from switch_tf.models.config import ModelConfig

STACKS = ("encoder", "decoder")
_LAYER = re.compile(r"(encoder|decoder)/layer_(\d+)/")


@dataclasses.dataclass(frozen=True)
class Found:
    """A weight of ours in their shape; of a table of experts, a tensor with rows."""

    rule: Rule
    tensor: LazyTensor

    @property
    def sides(self) -> tuple[int, ...]:
        """(inputs, outputs) of a matrix or of each expert's, the shape of anything else."""
        return self.rule.sides(self.tensor.shape[1:] if self.rule.is_table else self.tensor.shape)


def collect(tensors: LazyTensors, table: NameTable, source: str) -> dict[str, Found]:
    """Finds our weights among their tensors.

    Args:
      tensors: theirs by name, all of weights.
      table: of their format.
      source: what they are, for the error.

    Returns:
      Ours by name; experts of their own are rows of one table.

    Raises:
      SettingError: for a tensor that no model of ours has, or an expert that is missing or of another shape.
    """
    found: dict[str, Found] = {}
    experts: dict[str, dict[int, LazyTensor]] = {}
    for name, tensor in tensors.items():
        ours = table.ours(name)
        if ours is None:
            raise SettingError(f"{source} has the weight {name}, for which switch_tf has no place.")
        if ours.expert is not None:
            experts.setdefault(ours.name, {})[ours.expert] = tensor
        elif ours.rule.is_table:
            tensor = LazyTensor(tensor.shape, tensor.dtype, tensor.read, rows_of(tensor))
        found[ours.name] = Found(ours.rule, tensor)
    for name, rows in experts.items():
        for index in range(len(rows)):
            if index not in rows:
                raise SettingError(f"{source} lacks expert {index} of {name}: take a complete copy.")
            if rows[index].shape != rows[0].shape:
                raise SettingError(
                    f"{source} has experts of the shapes {rows[0].shape} and {rows[index].shape} in {name}: experts of "
                    "a layer must be equal."
                )
        found[name] = Found(found[name].rule, stacked([rows[index] for index in range(len(rows))]))
    return found


def settings_from_weights(found: Mapping[str, Found], source: str) -> dict[str, Any]:
    """Reads from names and shapes what they say of a `ModelConfig`.

    Args:
      found: the weights, as `collect` returns them.
      source: what they are, for the error.

    Returns:
      The settings that shape weights, and those that say which layers are sparse.

    Raises:
      SettingError: if they are not those of an encoder-decoder of ours.
    """
    sides = {name: weight.sides for name, weight in found.items()}

    def need(name: str) -> tuple[int, ...]:
        if name not in sides:
            raise SettingError(f"{source} lacks {name}: it is no complete T5 or Switch Transformer.")
        return sides[name]

    vocab_size, d_model = need("token_embedder/embedding")
    buckets, num_heads = need("encoder/position_bias/embedding")
    _, heads = need("encoder/layer_0/self_attention/query")
    num_layers = {stack: 1 + max((layer for layer in _layers(sides, stack)), default=-1) for stack in STACKS}
    hidden = {
        shape[-1] for name, shape in sides.items() if re.search(r"feed_forward/(experts/)?wi(_0)?$", name) and shape
    }
    if len(hidden) != 1:
        raise SettingError(f"{source} has feed-forward layers of the widths {sorted(hidden)}: ours have one, d_ff.")
    settings: dict[str, Any] = {
        "vocab_size": vocab_size,
        "d_model": d_model,
        "d_ff": hidden.pop(),
        "d_kv": heads // num_heads,
        "num_heads": num_heads,
        "num_encoder_layers": num_layers["encoder"],
        "num_decoder_layers": num_layers["decoder"],
        "activation": "gated_gelu" if any(name.endswith("/wi_0") for name in sides) else "relu",
        "tied_logits": "logits/kernel" not in sides,
        "relative_position_buckets": buckets,
    }
    sparse = {stack: sorted(_layers([n for n in sides if "/experts/" in n], stack)) for stack in STACKS}
    if not any(sparse.values()):
        return settings
    numbers = {weight.tensor.shape[0] for weight in found.values() if weight.rule.is_table}
    if len(numbers) != 1:
        raise SettingError(f"{source} has layers of {sorted(numbers)} experts: ours have one number of experts.")
    settings["num_experts"] = numbers.pop()
    return settings | sparse_settings(sparse["encoder"], sparse["decoder"], settings)


def _layers(names: Iterable[str], stack: str) -> set[int]:
    found = (_LAYER.match(name) for name in names)
    return {int(match[2]) for match in found if match and match[1] == stack}


def sparse_settings(encoder: Sequence[int], decoder: Sequence[int], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Finds the settings that make the given layers sparse, and no others.

    Args:
      encoder: indices of the encoder's sparse layers.
      decoder: of the decoder's.
      settings: of the `ModelConfig`, the sizes at least.

    Returns:
      `sparse_layout`, `sparse_every` and `decoder_sparse_every`.

    Raises:
      SettingError: if none do.
    """
    counts = (settings["num_encoder_layers"], settings["num_decoder_layers"])

    def step(layout: str, wanted: Sequence[int], is_decoder: bool) -> int | None:
        for every in range(counts[is_decoder] + 1):
            config = ModelConfig(**{**settings, "sparse_layout": layout, "sparse_every": every})
            if [i for i in range(counts[is_decoder]) if config.is_sparse(i, is_decoder)] == list(wanted):
                return every
        return None

    for layout in ("every", "every_from_second", "every_from_first", "all", "bottom", "top"):
        steps = step(layout, encoder, False), step(layout, decoder, True)
        if None not in steps:
            every, decoder_every = steps
            return {
                "sparse_layout": layout,
                "sparse_every": every,
                "decoder_sparse_every": None if decoder_every == every else decoder_every,
            }
    raise SettingError(
        f"The layers {list(encoder)} of the encoder and {list(decoder)} of the decoder are sparse, which no "
        "ModelConfig.sparse_layout and sparse_every say."
    )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Lists the weights of a model, without making it.

    Args:
      config: of a T5 or a Switch Transformer.

    Returns:
      Shapes by name.

    Raises:
      SettingError: if the model has Switch attention, which no other system has.
    """
    if config.switch_attention != "none":
        raise SettingError(
            f"switch_attention = '{config.switch_attention}' is in no other system: convert a model with "
            "ModelConfig.switch_attention = 'none'."
        )
    d_model, heads, d_kv = config.d_model, config.num_heads, config.d_kv
    inputs = ("wi",) if config.activation == "relu" else ("wi_0", "wi_1")
    shapes: dict[str, tuple[int, ...]] = {"token_embedder/embedding": (config.vocab_size, d_model)}
    if not config.tied_logits:
        shapes["logits/kernel"] = (d_model, config.vocab_size)
    for stack, num_layers in zip(STACKS, (config.num_encoder_layers, config.num_decoder_layers)):
        shapes[f"{stack}/position_bias/embedding"] = (config.relative_position_buckets, heads)
        shapes[f"{stack}/final_norm/scale"] = (d_model,)
        for layer, attention in itertools.product(range(num_layers), ("self_attention", "cross_attention")):
            if attention == "cross_attention" and stack == "encoder":
                continue
            prefix = f"{stack}/layer_{layer}/{attention}"
            shapes[f"{prefix}_norm/scale"] = (d_model,)
            shapes |= {f"{prefix}/{name}": (d_model, heads, d_kv) for name in ("query", "key", "value")}
            shapes[f"{prefix}/out"] = (heads, d_kv, d_model)
        for layer in range(num_layers):
            prefix = f"{stack}/layer_{layer}/feed_forward"
            shapes[f"{prefix}_norm/scale"] = (d_model,)
            batch: tuple[int, ...] = ()
            if config.is_sparse(layer, is_decoder=stack == "decoder"):
                shapes[f"{prefix}/router/kernel"] = (d_model, config.num_experts)
                if config.balance_bias_rate:
                    shapes[f"{prefix}/router/balance_bias"] = (config.num_experts,)
                prefix, batch = f"{prefix}/experts", (config.num_experts,)
            shapes |= {f"{prefix}/{name}": (*batch, d_model, config.d_ff) for name in inputs}
            shapes[f"{prefix}/wo"] = (*batch, config.d_ff, d_model)
    return shapes


def our_weights(found: Mapping[str, Found], config: ModelConfig, source: str) -> dict[str, LazyTensor]:
    """Gives the weights that were found our shapes.

    Args:
      found: as `collect` returns them.
      config: of the model that they must be.
      source: what they are, for the error.

    Returns:
      All weights of the model by name, and no others.

    Raises:
      SettingError: for a weight that is missing, left over or of another shape.
    """
    shapes = expected_shapes(config)
    for name in sorted(shapes.keys() ^ found.keys()):
        problem = "lacks" if name in shapes else "has no layer for"
        raise SettingError(f"{source} {problem} {name}: the model that its other weights make needs a complete copy.")
    return {name: _in_our_shape(name, weight, shapes[name], source) for name, weight in found.items()}


def _in_our_shape(name: str, weight: Found, shape: tuple[int, ...], source: str) -> LazyTensor:
    rule, one = weight.rule, shape[1:] if weight.rule.is_table else shape
    theirs = rule.their_shape(one)
    if rule.is_table:
        theirs = (shape[0], *theirs)
    if weight.tensor.shape != theirs:
        raise SettingError(
            f"{source} has {name} in the shape {weight.tensor.shape}, where its other weights ask for {theirs}."
        )
    if rule.is_table:
        return stacked([row.mapped(lambda array: rule.to_ours(array, one), one) for row in rows_of(weight.tensor)])
    return weight.tensor.mapped(lambda array: rule.to_ours(array, one), one)
