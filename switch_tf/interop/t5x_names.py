"""Our weights under T5X's names (flaxformer's T5 and mixture of experts)."""

import re

import numpy as np

from switch_tf.errors import SettingError
from switch_tf.interop.lazy_tensors import LazyTensor, LazyTensors
from switch_tf.interop.weight_names import NameTable, Rule


def _attention(ours: str, theirs: str) -> list[Rule]:
    projections = [Rule(f"{ours}/{name}", f"{theirs}/{name}/kernel", 1) for name in ("query", "key", "value")]
    return [*projections, Rule(f"{ours}/out", f"{theirs}/out/kernel", 2)]


def _stack(stack: str) -> list[Rule]:
    ours, theirs = f"{stack}/layer_{{layer}}", f"{stack}/layers_{{layer}}"
    attention = "self_attention" if stack == "decoder" else "attention"
    cross_attention = [
        Rule(f"{ours}/cross_attention_norm/scale", f"{theirs}/pre_cross_attention_layer_norm/scale"),
        *_attention(f"{ours}/cross_attention", f"{theirs}/encoder_decoder_attention"),
    ]
    return [
        Rule(f"{stack}/position_bias/embedding", f"{stack}/relpos_bias/rel_embedding", 1, True),
        Rule(f"{ours}/self_attention_norm/scale", f"{theirs}/pre_{attention}_layer_norm/scale"),
        *_attention(f"{ours}/self_attention", f"{theirs}/{attention}"),
        *(cross_attention if stack == "decoder" else []),
        Rule(f"{ours}/feed_forward_norm/scale", f"{theirs}/pre_mlp_layer_norm/scale"),
        Rule(f"{ours}/feed_forward/{{matrix}}", f"{theirs}/mlp/{{matrix}}/kernel", 1),
        Rule(f"{ours}/feed_forward/router/kernel", f"{theirs}/mlp/router/router_weights/w/kernel", 1),
        Rule(f"{ours}/feed_forward/experts/{{matrix}}", f"{theirs}/mlp/expert/{{matrix}}/kernel", 1),
        Rule(f"{stack}/final_norm/scale", f"{stack}/{stack}_norm/scale"),
    ]


NAMES = NameTable(
    [
        Rule("token_embedder/embedding", "token_embedder/embedding"),
        *_stack("encoder"),
        *_stack("decoder"),
        Rule("logits/kernel", "decoder/logits_dense/kernel", 1),
    ]
)
# A stack whose layers are one array, with the layers along axis 1: "encoder/encoder/subblock_0/...".
_SCANNED = re.compile(r"(encoder|decoder)/\1/(?:subblock_(\d+)/)?(.+)")
_SCAN_AXIS = 1


def unscanned(tensors: LazyTensors) -> dict[str, LazyTensor]:
    """Gives each layer of scanned stacks its own names and tensors.

    Args:
      tensors: by their names.

    Returns:
      The same without an axis of layers.
    """
    matches = {name: _SCANNED.fullmatch(name) for name in tensors}
    subblocks = {match[1]: {"0"} for match in matches.values() if match}
    for match in matches.values():
        if match and match[2] is not None:
            subblocks[match[1]].add(match[2])
    layers: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        match = matches[name]
        if match is None:
            layers[name] = tensor
            continue
        stack, subblock, rest = match.groups()
        for index in range(tensor.shape[_SCAN_AXIS]):
            layer = index * len(subblocks[stack]) + int(subblock or 0)
            layers[f"{stack}/layers_{layer}/{rest}"] = _layer(tensor, index)
    return layers


def _layer(tensor: LazyTensor, index: int) -> LazyTensor:
    shape = (*tensor.shape[:_SCAN_AXIS], *tensor.shape[_SCAN_AXIS + 1 :])
    rows = tensor.rows
    if rows is None:
        return tensor.mapped(lambda array: np.take(array, index, _SCAN_AXIS), shape)
    return LazyTensor(
        shape,
        tensor.dtype,
        lambda: np.take(tensor.read(), index, _SCAN_AXIS),
        tuple(row.mapped(lambda array: array[index], shape[1:]) for row in rows),
    )


def refuse_bias_in_each_layer(tensors: LazyTensors, source: str) -> None:
    """Refuses a model whose layers each have a position bias.

    Raises:
      SettingError: if it is one.
    """
    for name in tensors:
        if re.search(r"/layers_\d+/relpos_bias/", name):
            raise SettingError(
                f"{source} has a position bias in each layer ({name}), as UMT5 and t5x's scalable_t5: ours shares one "
                "among the layers of a stack."
            )


def their_weights(weights: LazyTensors) -> dict[str, LazyTensor]:
    """Says our weights in their names and shapes; nothing is read.

    Raises:
      SettingError: if they have no such weight.
    """
    theirs = {}
    for name, tensor in weights.items():
        counterpart = NAMES.theirs(name)
        if counterpart is None:
            raise SettingError(f"The weight '{name}' has no counterpart in T5X: convert a model without that layer.")
        theirs[counterpart.name] = _in_their_shape(counterpart.rule, tensor)
    return theirs


def _in_their_shape(rule: Rule, tensor: LazyTensor) -> LazyTensor:
    if not rule.is_table:
        return tensor.mapped(rule.to_theirs, rule.their_shape(tensor.shape))
    shape = rule.their_shape(tensor.shape[1:])
    rows = None if tensor.rows is None else tuple(row.mapped(rule.to_theirs, shape) for row in tensor.rows)

    def read() -> np.ndarray:
        return tensor.read().reshape(tensor.shape[0], *shape)

    return LazyTensor((tensor.shape[0], *shape), tensor.dtype, read, rows)
