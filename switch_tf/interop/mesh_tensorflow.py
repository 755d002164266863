"""Checkpoints of Mesh TensorFlow (the original T5 and mixtures of experts): TensorFlow's bundles, `model.ckpt-N`."""

import os
import re
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.interop import architecture
from switch_tf.interop.lazy_tensors import LazyTensor, numpy_dtype, stacked
from switch_tf.interop.sources import Source, config_from_weights
from switch_tf.interop.t5x_names import NAMES

_BUNDLE = re.compile(r"(.+-(\d+))\.index")
_SLOT = re.compile(r"_slot_\w+$")
_LAYER = re.compile(r"(encoder|decoder)/(?:block_(\d+)/)?layer_(\d+)/(.+)")
_PROJECTIONS = {"q": "query", "k": "key", "v": "value", "o": "out"}
_NORM = r"(?:layer_norm|rms_norm)/scale"
_GATING = (
    r"MoE1D/(?:switch_gating|switch_max_gating|expert_selection_gating|top_2_gating|top_n_gating|ntlb_gating)/kernel"
)
# Of a sub-layer, with the layer, the attention and the kind of sub-layer left open: the rest of T5X's name for it.
_SUBLAYERS = (
    (r"(?:SelfAttention|EncDecAttention)/([qkvo])", "{attention}/{projection}/kernel"),
    (r"DenseReluDense/(wi|wi_0|wi_1|wo)/kernel", "mlp/{0}/kernel"),
    (r"MoE1D/(wi|wi_0|wi_1|wo)/kernel", "mlp/expert/{0}/kernel"),
    (_GATING, "mlp/router/router_weights/w/kernel"),
    (_NORM, "pre_{kind}_layer_norm/scale"),
)
_OUTSIDE = {
    "shared/embedding": "token_embedder/embedding",
    "decoder/logits/kernel": "decoder/logits_dense/kernel",
    **{
        f"{stack}/{norm}/scale": f"{stack}/{stack}_norm/scale"
        for stack in ("encoder", "decoder")
        for norm in ("final_layer_norm", "rms_norm", "layer_norm")
    },
}


def find_bundle(path: str) -> str | None:
    """Returns the prefix of a bundle: `path`, or the one of the most steps in that folder; None where there is none."""
    if storage.exists(path + ".index"):
        return path
    found = (_BUNDLE.fullmatch(name) for name in storage.list_folder(path))
    steps = {int(match[2]): match[1] for match in found if match}
    return os.path.join(path, steps[max(steps)]) if steps else None


def _kind(sublayer: str, stack: str) -> str:
    """What a sub-layer is, in the names of T5X's norms."""
    if sublayer == "EncDecAttention":
        return "cross_attention"
    if sublayer == "SelfAttention":
        return "self_attention" if stack == "decoder" else "attention"
    return "mlp"


def names_in_t5x(names: Mapping[str, object] | Iterator[str], source: str) -> dict[str, str]:
    """Says Mesh TensorFlow's names in T5X's, whose arrays are the same.

    A new transformer layer begins at each self-attention: in mixtures of experts a block of Mesh TensorFlow is two
    layers, and without blocks every sub-layer has a number of its own.

    Args:
      names: of all variables, slots and `global_step` included.
      source: what they are, for the error.

    Returns:
      {T5X's name: their name}, of weights alone.

    Raises:
      SettingError: for a variable that is none of an encoder-decoder of T5 or of MoE1D.
    """
    weights = [name for name in names if name != "global_step" and not _SLOT.search(name)]
    parts = {name: _LAYER.fullmatch(name) for name in weights}
    sublayers: dict[tuple[str, int, int], str] = {}
    for match in parts.values():
        if match:
            sublayer = match[4].split("/")[0]
            place = (match[1], int(match[2] or 0), int(match[3]))
            if not re.fullmatch(r"layer_norm|rms_norm", sublayer):
                sublayers[place] = sublayer
    layers, count = {}, {"encoder": -1, "decoder": -1}
    for place in sorted(sublayers):
        count[place[0]] += sublayers[place] == "SelfAttention"
        layers[place] = count[place[0]]
    found = {}
    for name, match in parts.items():
        if match is None:
            theirs = _OUTSIDE.get(name)
        elif match[4] == "SelfAttention/relative_attention_bias":
            theirs = f"{match[1]}/relpos_bias/rel_embedding"
        else:
            place = (match[1], int(match[2] or 0), int(match[3]))
            theirs = _in_layer(match[1], layers.get(place, -1), sublayers.get(place, ""), match[4])
        if theirs is None or "layers_-1" in theirs:
            raise SettingError(f"{source} has the variable {name}, for which switch_tf has no place.")
        if theirs in found:
            raise SettingError(f"{source} has a position bias, or a norm, in each layer ({name}): ours shares one.")
        found[theirs] = name
    return found


def _in_layer(stack: str, layer: int, sublayer: str, rest: str) -> str | None:
    kind = _kind(sublayer, stack)
    attention = "encoder_decoder_attention" if kind == "cross_attention" else kind
    for pattern, template in _SUBLAYERS:
        match = re.fullmatch(pattern, rest)
        if match:
            group = match[1] if match.groups() else ""
            projection = _PROJECTIONS.get(group, "")
            name = template.format(group, kind=kind, attention=attention, projection=projection)
            return f"{stack}/layers_{layer}/{name}"
    return None


def read_mesh_tensorflow(path: str) -> Source:
    """Opens a bundle of an encoder-decoder, dense or with MoE1D layers.

    Args:
      path: its prefix (`.../model.ckpt-1000000`), or the folder, for the one of the most steps; local or in a bucket.

    Returns:
      The weights under our names, and the step; slots stay there.

    Raises:
      SettingError: if there is none, it is damaged, or our model has no counterpart.
    """
    prefix = find_bundle(path)
    if prefix is None:
        raise SettingError(f"{path} holds no checkpoint of Mesh TensorFlow: name a folder with model.ckpt-N.index.")
    try:
        plain = storage.literal(prefix)
        reader = tf.train.load_checkpoint(plain)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        step = int(reader.get_tensor("global_step")) if "global_step" in shapes else 0
    except (tf.errors.OpError, ValueError) as error:
        raise _unreadable(prefix, error) from error
    names = names_in_t5x(shapes, prefix)
    tensors = {theirs: _tensor(plain, name, shapes[name], dtypes[name]) for theirs, name in names.items()}
    found = architecture.collect(tensors, NAMES, prefix)
    config = config_from_weights(architecture.settings_from_weights(found, prefix))
    return Source("mesh_tensorflow", path, config, architecture.our_weights(found, config, prefix), step)


def _unreadable(prefix: str, error: Exception) -> SettingError:
    reason = storage.refusal(error) or storage.reason_of(error)
    return SettingError(f"{prefix} cannot be read ({reason}): copy or download all its files again.")


def _tensor(prefix: str, name: str, shape: list[int], dtype: tf.DType) -> LazyTensor:
    kind = numpy_dtype(dtype.name, name)

    def read(place: str) -> np.ndarray:
        try:
            with tf.device("CPU:0"):
                (values,) = tf.raw_ops.RestoreV2(
                    prefix=prefix, tensor_names=[name], shape_and_slices=[place], dtypes=[dtype]
                )
        except tf.errors.OpError as error:
            raise _unreadable(prefix, error) from error
        return values.numpy()

    def row(index: int) -> LazyTensor:
        rest = ":".join(["-"] * (len(shape) - 1))
        place = " ".join(map(str, (*shape, f"{index},1:{rest}")))
        return LazyTensor(tuple(shape[1:]), kind, lambda: read(place).reshape(shape[1:]))

    if "/MoE1D/" in name and len(shape) == 3:
        return stacked([row(index) for index in range(shape[0])])
    return LazyTensor(tuple(shape), kind, lambda: read(""))
