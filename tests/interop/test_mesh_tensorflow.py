"""Bundles of Mesh TensorFlow: names of a real one, and bundles that TensorFlow's own operation wrote."""

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.interop.formats import kind_of
from switch_tf.interop.mesh_tensorflow import names_in_t5x, read_mesh_tensorflow
from switch_tf.interop.t5x_names import NAMES
from tests.support.foreign_files import FOREIGN

M, H, V, E = 16, 24, 96, 4  # Two heads of 4.


def dense_layer(prefix: str, cross: bool, norm: str) -> dict[str, tuple[int, ...]]:
    sublayers = ["SelfAttention", *(["EncDecAttention"] if cross else []), "DenseReluDense"]
    return sublayer_variables(prefix, sublayers, norm)


def sublayer_variables(prefix: str, sublayers: list[str], norm: str, matrices=("wi",)) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for index, sublayer in enumerate(sublayers):
        place = f"{prefix}/layer_{index:03d}"
        shapes[f"{place}/{norm}/scale"] = (M,)
        place = f"{place}/{sublayer}"
        if sublayer.endswith("Attention"):
            shapes |= {f"{place}/{name}": (M, 8) for name in "qkv"} | {f"{place}/o": (8, M)}
        else:
            experts = (E,) if sublayer == "MoE1D" else ()
            shapes |= {f"{place}/{name}/kernel": (*experts, M, H) for name in matrices}
            shapes[f"{place}/wo/kernel"] = (*experts, H, M)
            if experts:
                shapes[f"{place}/switch_gating/kernel"] = (M, E)
    return shapes


def t5_1_0() -> dict[str, tuple[int, ...]]:
    shapes = {"shared/embedding": (V, M)}
    for stack in ("encoder", "decoder"):
        for block in range(2):
            shapes |= dense_layer(f"{stack}/block_{block:03d}", stack == "decoder", "layer_norm")
        shapes[f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"] = (2, 32)
        shapes[f"{stack}/final_layer_norm/scale"] = (M,)
    return shapes


def switch() -> dict[str, tuple[int, ...]]:
    """Blocks of two layers, the first with experts, as in gin/models/bi_moe.gin; GEGLU and a head, as in 1.1."""
    shapes = {"shared/embedding": (V, M), "decoder/logits/kernel": (M, V)}
    for stack, attentions in (("encoder", ["SelfAttention"]), ("decoder", ["SelfAttention", "EncDecAttention"])):
        for block in range(2):
            sublayers = [*attentions, "MoE1D", *attentions, "DenseReluDense"]
            shapes |= sublayer_variables(f"{stack}/block_{block:03d}", sublayers, "rms_norm", ("wi_0", "wi_1"))
        shapes[f"{stack}/block_000/layer_000/SelfAttention/relative_attention_bias"] = (2, 32)
        shapes[f"{stack}/rms_norm/scale"] = (M,)
    return shapes


def write(folder, shapes, step=1000, seed=0):
    """A bundle as Mesh TensorFlow writes it: weights in bfloat16, slots in float32, the step."""
    random = np.random.default_rng(seed)
    weights = {
        name: random.standard_normal(shape, np.float32).astype(ml_dtypes.bfloat16) for name, shape in shapes.items()
    }
    tensors = {name: tf.constant(array) for name, array in weights.items()}
    for name, shape in shapes.items():
        tensors |= {f"{name}_slot_v": tf.zeros(shape), f"{name}_slot_vr": tf.zeros(shape[:1])}
    tensors["global_step"] = tf.constant(step, tf.int64)
    tf.raw_ops.SaveV2(
        prefix=str(folder / f"model.ckpt-{step}"),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=list(tensors.values()),
    )
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "model.ckpt-{step}"\n')
    return weights


def test_t5_1_0(tmp_path):
    write(tmp_path, t5_1_0(), step=10, seed=1)
    weights = write(tmp_path, t5_1_0(), step=1000)
    assert kind_of(str(tmp_path)) == "mesh_tensorflow"
    source = read_mesh_tensorflow(str(tmp_path))
    assert source.step == 1000 and read_mesh_tensorflow(str(tmp_path / "model.ckpt-10")).step == 10
    config = source.config
    assert (config.num_encoder_layers, config.num_decoder_layers, config.num_experts) == (2, 2, 0)
    assert config.tied_logits and config.activation == "relu" and config.d_kv == 4
    for ours, theirs in (
        ("token_embedder/embedding", weights["shared/embedding"]),
        ("encoder/layer_1/self_attention/query", weights["encoder/block_001/layer_000/SelfAttention/q"]),
        ("decoder/layer_0/cross_attention/out", weights["decoder/block_000/layer_001/EncDecAttention/o"]),
        ("decoder/layer_1/cross_attention_norm/scale", weights["decoder/block_001/layer_001/layer_norm/scale"]),
        ("encoder/layer_0/feed_forward/wi", weights["encoder/block_000/layer_001/DenseReluDense/wi/kernel"]),
        ("decoder/final_norm/scale", weights["decoder/final_layer_norm/scale"]),
        (
            "encoder/position_bias/embedding",
            weights["encoder/block_000/layer_000/SelfAttention/relative_attention_bias"].T,
        ),
    ):
        array = source.weights[ours].read()
        np.testing.assert_array_equal(array, theirs.reshape(array.shape), err_msg=ours)


def test_a_switch_transformer_of_two_layers_in_a_block(tmp_path):
    weights = write(tmp_path, switch())
    source = read_mesh_tensorflow(str(tmp_path))
    config = source.config
    assert (config.num_encoder_layers, config.num_decoder_layers, config.num_experts) == (4, 4, E)
    assert config.sparse_layer_names == [f"{stack}/layer_{n}" for stack in ("encoder", "decoder") for n in (0, 2)]
    assert config.activation == "gated_gelu" and not config.tied_logits
    np.testing.assert_array_equal(
        source.weights["decoder/layer_2/feed_forward/experts/wi_1"].rows[3].read(),
        weights["decoder/block_001/layer_002/MoE1D/wi_1/kernel"][3],
    )
    np.testing.assert_array_equal(
        source.weights["encoder/layer_2/feed_forward/router/kernel"].read(),
        weights["encoder/block_001/layer_001/MoE1D/switch_gating/kernel"],
    )
    np.testing.assert_array_equal(
        source.weights["encoder/layer_3/feed_forward/wo"].read(),
        weights["encoder/block_001/layer_003/DenseReluDense/wo/kernel"],
    )


def test_without_blocks_each_sublayer_has_a_number():
    shapes = sublayer_variables("encoder", ["SelfAttention", "DenseReluDense", "SelfAttention", "MoE1D"], "rms_norm")
    names = names_in_t5x(shapes, "it")
    assert names["encoder/layers_0/mlp/wi/kernel"] == "encoder/layer_001/DenseReluDense/wi/kernel"
    assert names["encoder/layers_1/mlp/expert/wo/kernel"] == "encoder/layer_003/MoE1D/wo/kernel"
    assert names["encoder/layers_1/pre_mlp_layer_norm/scale"] == "encoder/layer_003/rms_norm/scale"


@pytest.mark.skipif(not FOREIGN.exists(), reason="the checkpoints of other projects are not beside us")
def test_names_of_a_real_bundle():
    """Its data file is not there: names, shapes and dtypes are in the index."""
    reader = tf.train.load_checkpoint(str(FOREIGN / "t5x_testdata" / "mtf_tiny_t5" / "model.ckpt-0"))
    shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    names = names_in_t5x(shapes, "it")
    assert len(names) + sum("_slot_" in name for name in shapes) + 1 == len(shapes)
    assert {dtypes[name] for name in names.values()} == {tf.bfloat16}
    assert all(NAMES.ours(name) is not None for name in names)
    assert shapes[names["decoder/layers_1/mlp/wi_1/kernel"]] == [32, 64]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("MoE1D", "MoE2D"),
        ("switch_gating", "hash_gating"),
        ("shared/embedding", "encoder/embedding"),
        ("decoder/", "transformer/"),
    ],
)
def test_other_layers_are_refused(tmp_path, old, new):
    shapes = {name.replace(old, new): shape for name, shape in switch().items()}
    write(tmp_path, shapes)
    with pytest.raises(SettingError, match="for which switch_tf has no place"):
        read_mesh_tensorflow(str(tmp_path))


def test_damage_is_told(tmp_path):
    write(tmp_path, t5_1_0())
    (data,) = tmp_path.glob("*.data-*")
    content = bytearray(data.read_bytes())
    content[-40:] = bytes(40)
    content[:4000] = bytes(4000)
    data.write_bytes(content)
    with pytest.raises(SettingError, match="cannot be read"):
        for tensor in read_mesh_tensorflow(str(tmp_path)).weights.values():
            tensor.read()
    (index,) = tmp_path.glob("*.index")
    index.write_bytes(index.read_bytes()[:100])
    with pytest.raises(SettingError, match="cannot be read"):
        read_mesh_tensorflow(str(tmp_path))
