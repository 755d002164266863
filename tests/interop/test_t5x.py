"""T5X's checkpoints: those of other projects, and ours in the eyes of flax and TensorStore, which are T5X's readers."""

import asyncio
import json
import pathlib
import shutil

import flax.serialization
import msgpack
import numpy as np
import pytest
import tensorstore

from switch_tf.errors import SettingError
from switch_tf.interop import t5x, t5x_files
from switch_tf.interop.lazy_tensors import DTYPES, in_memory
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from tests.support.features import random_features
from tests.support.foreign_files import BFLOAT16, FOREIGN
from tests.support.random_weights import CONFIG, lazy, random_weights

PROMPT_TUNING = FOREIGN / "prompt_tuning_t5_1_1_tiny"
needs_foreign = pytest.mark.skipif(not FOREIGN.exists(), reason="the checkpoints of other projects are not beside us")


def theirs_as_t5x_reads_it(folder: pathlib.Path) -> dict:
    """What T5X's `_read_ts` does with each leaf, with flax's msgpack: relative paths, without chunks and compressor."""
    contents = flax.serialization.msgpack_restore((folder / "checkpoint").read_bytes())
    assert contents["version"] == 3

    def read(leaf):
        if isinstance(leaf, np.ndarray):
            return leaf
        if set(leaf) >= {"driver", "kvstore", "metadata"}:
            spec = tensorstore.Spec(leaf).to_json()
            del spec["metadata"]["chunks"], spec["metadata"]["compressor"]
            spec["kvstore"]["path"] = str(folder / spec["kvstore"]["path"])
            return asyncio.run(opened(spec))
        return {name: read(value) for name, value in leaf.items()}

    async def opened(spec):
        return await (await tensorstore.open(spec, open=True)).read()

    return read(contents["optimizer"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_t5x_reads_ours(tmp_path, dtype):
    weights = random_weights(CONFIG, DTYPES[dtype])
    t5x.write_t5x(str(tmp_path), lazy(weights), 1000)
    tree = theirs_as_t5x_reads_it(tmp_path / "checkpoint_1000")
    assert tree["state"]["step"] == 1000 and tree["state"]["step"].dtype == np.int32
    target = tree["target"]
    wi = target["encoder"]["layers_3"]["mlp"]["expert"]["wi"]["kernel"]
    assert wi.dtype == DTYPES[dtype]
    np.testing.assert_array_equal(wi, weights["encoder/layer_3/feed_forward/experts/wi"])
    np.testing.assert_array_equal(
        target["decoder"]["layers_0"]["encoder_decoder_attention"]["out"]["kernel"],
        weights["decoder/layer_0/cross_attention/out"].reshape(8, 16),
    )
    np.testing.assert_array_equal(
        target["decoder"]["relpos_bias"]["rel_embedding"], weights["decoder/position_bias/embedding"].T
    )
    np.testing.assert_array_equal(target["token_embedder"]["embedding"], weights["token_embedder/embedding"])
    assert not any("bias" in name for name in target["encoder"]["layers_1"]["mlp"]["router"]["router_weights"]["w"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("gated", [False, True])
def test_ours_come_back_bit_by_bit(tmp_path, dtype, gated):
    config = CONFIG
    if gated:
        config = ModelConfig(**{**vars(CONFIG), "num_experts": 0, "activation": "gated_gelu", "tied_logits": False})
    weights = random_weights(config, DTYPES[dtype])
    t5x.write_t5x(str(tmp_path), lazy(weights), 7)
    source = t5x.read_t5x(str(tmp_path))
    assert source.step == 7 and source.config.num_experts == config.num_experts
    assert source.weights.keys() == weights.keys()
    for name, array in weights.items():
        assert source.weights[name].dtype == DTYPES[dtype]
        np.testing.assert_array_equal(source.weights[name].read(), array, err_msg=name)


@pytest.fixture
def written(tmp_path):
    t5x.write_t5x(str(tmp_path), lazy(random_weights(CONFIG)), 3)
    return tmp_path / "checkpoint_3"


def test_zarray_files_may_be_missing(written):
    before = {name: tensor.read() for name, tensor in t5x.read_t5x(str(written)).weights.items()}
    for file in written.rglob(".zarray"):
        file.unlink()
    for name, tensor in t5x.read_t5x(str(written)).weights.items():
        np.testing.assert_array_equal(tensor.read(), before[name], err_msg=name)


def change_index(folder, change):
    tree = msgpack.unpackb((folder / "checkpoint").read_bytes(), ext_hook=msgpack.ExtType, strict_map_key=False)
    change(tree)
    (folder / "checkpoint").write_bytes(msgpack.packb(tree))


def test_specs_of_other_versions(written):
    before = {name: tensor.read() for name, tensor in t5x.read_t5x(str(written)).weights.items()}

    def change(tree):
        target = tree["optimizer"]["target"]
        table = target["token_embedder"]["embedding"]
        # TensorStore before 0.1.14; a bucket; a "/" at the end; the dtype beside the metadata.
        target["token_embedder"]["embedding"] = {
            "driver": "zarr",
            "path": "elsewhere/target.token_embedder.embedding/",
            "kvstore": {"driver": "gcs", "bucket": "t5x-dummy-bucket", "path": table["kvstore"]["path"] + "/"},
            "dtype": "float32",
            "metadata": {name: value for name, value in table["metadata"].items() if name != "dtype"},
        }

    change_index(written, change)
    np.testing.assert_array_equal(
        t5x.read_t5x(str(written)).weights["token_embedder/embedding"].read(), before["token_embedder/embedding"]
    )


def test_version_2_keeps_bfloat16_as_integers(tmp_path):
    weights = random_weights(CONFIG, BFLOAT16)
    t5x.write_t5x(str(tmp_path), lazy(weights), 3)
    folder = tmp_path / "checkpoint_3"
    for file in folder.rglob(".zarray"):
        file.write_text(json.dumps({**json.loads(file.read_text()), "dtype": "<u2"}))

    def change(tree):
        tree["version"] = 2

        def as_integers(node):
            for key, value in node.items():
                if isinstance(value, dict) and "driver" in value:
                    value["metadata"]["dtype"] = "<u2"
                elif isinstance(value, dict):
                    as_integers(value)
                elif isinstance(value, msgpack.ExtType):
                    shape, _, data = msgpack.unpackb(value.data)
                    node[key] = msgpack.ExtType(1, msgpack.packb([shape, "uint16", data]))

        as_integers(tree["optimizer"]["target"])

    change_index(folder, change)
    for name, tensor in t5x.read_t5x(str(tmp_path)).weights.items():
        assert tensor.dtype == BFLOAT16
        np.testing.assert_array_equal(tensor.read(), weights[name], err_msg=name)


def test_scanned_layers(tmp_path):
    """The layers of a stack in one array along axis 1, two sub-blocks (dense, sparse) at a time."""
    weights = random_weights(CONFIG)
    names = t5x.t5x_names.their_weights({name: in_memory(array) for name, array in weights.items()})
    scanned, stacks = {}, {"encoder": 4, "decoder": 2}
    for name, tensor in names.items():
        parts = name.split("/")
        if len(parts) > 1 and parts[1].startswith("layers_"):
            subblock, layer = int(parts[1][7:]) % 2, int(parts[1][7:]) // 2
            key = "/".join([parts[0], parts[0], f"subblock_{subblock}", *parts[2:]])
            scanned.setdefault(key, {})[layer] = tensor.read()
        else:
            scanned[name] = tensor.read()
    arrays = {
        name: np.stack([layers[index] for index in range(stacks[name.split("/")[0]] // 2)], 1)
        if isinstance(layers, dict)
        else layers
        for name, layers in scanned.items()
    }
    assert arrays["encoder/encoder/subblock_1/mlp/expert/wi/kernel"].shape == (4, 2, 16, 24)
    folder = tmp_path / "checkpoint_5"
    folder.mkdir()
    t5x_files.write_tree(str(folder), {name: in_memory(array) for name, array in arrays.items()}, {}, 5)
    source = t5x.read_t5x(str(folder))
    assert source.config.sparse_layer_names == CONFIG.sparse_layer_names
    for name, array in weights.items():
        np.testing.assert_array_equal(source.weights[name].read(), array, err_msg=name)


@needs_foreign
def test_a_checkpoint_of_prompt_tuning():
    source = t5x.read_t5x(str(PROMPT_TUNING / "test_t5_1_1_tiny" / "checkpoint_3"))
    config = source.config
    assert source.step == 3 and not config.tied_logits and config.activation == "gated_gelu"
    assert (config.d_model, config.num_heads, config.d_kv, config.d_ff) == (4, 2, 2, 8)
    assert (config.vocab_size, config.relative_position_buckets, config.num_encoder_layers) == (32128, 4, 2)
    golden = np.load(PROMPT_TUNING / "tiny_embeddings_32128x4.npy")
    np.testing.assert_array_equal(source.weights["token_embedder/embedding"].read(), golden)
    logits_are_stable(source)


def logits_are_stable(source):
    def logits():
        model = EncoderDecoder(source.config)
        model.build()
        for weight in model.weights:
            weight.assign(source.weights[weight.path.split("/", 1)[1]].read())
        return model(random_features(vocab_size=32000)).numpy()

    first = logits()
    assert np.isfinite(first).all() and np.std(first) > 0
    np.testing.assert_array_equal(first, logits())


@needs_foreign
def test_a_checkpoint_of_t5x_with_all_arrays_inside(tmp_path):
    shutil.copy(FOREIGN / "t5x_testdata" / "test_t5_tiny.checkpoint_0", tmp_path / "checkpoint")
    source = t5x.read_t5x(str(tmp_path))
    assert (source.config.d_model, source.config.num_heads, source.config.d_kv, source.config.d_ff) == (8, 4, 3, 16)
    contents = flax.serialization.msgpack_restore((tmp_path / "checkpoint").read_bytes())["optimizer"]["target"]
    np.testing.assert_array_equal(
        source.weights["encoder/layer_1/self_attention/query"].read().reshape(8, 12),
        contents["encoder"]["layers_1"]["attention"]["query"]["kernel"],
    )
    logits_are_stable(source)


@needs_foreign
def test_specs_without_zarray_that_t5x_wrote():
    tree = t5x_files.read_tree(str(FOREIGN / "t5x_testdata" / "tiny_t5" / "checkpoint_1"))
    assert (tree.weights, tree.step) == ({}, 1)
    with pytest.raises(SettingError, match="was written by Orbax"):
        t5x_files.read_tree(str(FOREIGN / "t5x_testdata" / "tiny_orbax" / "1"))


def test_damage_is_told(written):
    whole = (written / "checkpoint").read_bytes()
    place = written / "target.encoder.layers_0.mlp.wi.kernel"
    chunk = place / "0.0"
    content = chunk.read_bytes()
    chunk.write_bytes(content[: len(content) // 2])
    with pytest.raises(SettingError, match=r"wi\.kernel is incomplete or damaged"):
        t5x.read_t5x(str(written)).weights["encoder/layer_0/feed_forward/wi"].read()
    chunk.unlink()
    with pytest.raises(SettingError, match=r"wi\.kernel is incomplete or damaged"):
        t5x.read_t5x(str(written)).weights["encoder/layer_0/feed_forward/wi"].read()
    shutil.rmtree(place)
    with pytest.raises(SettingError, match=r"lacks target\.encoder\.layers_0\.mlp\.wi\.kernel"):
        t5x.read_t5x(str(written))
    (written / "checkpoint").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SettingError, match="checkpoint is truncated or damaged"):
        t5x.read_t5x(str(written))


def test_a_position_bias_in_each_layer_is_refused(written):
    def change(tree):
        encoder = tree["optimizer"]["target"]["encoder"]
        encoder["layers_0"]["relpos_bias"] = encoder.pop("relpos_bias")

    change_index(written, change)
    with pytest.raises(SettingError, match="a position bias in each layer"):
        t5x.read_t5x(str(written))
