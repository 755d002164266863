"""Hugging Face directories: golden models of transformers, and what is on the hub, from names, shapes and dtypes."""

import json
import pathlib

import numpy as np
import pytest

from switch_tf.errors import SettingError
from switch_tf.interop.formats import kind_of, open_source, write_huggingface
from switch_tf.interop.huggingface_directory import read_directory, read_tensors
from switch_tf.interop.lazy_tensors import in_memory
from switch_tf.interop.safetensors_files import write_safetensors
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from tests.support.foreign_files import BFLOAT16, switch_tensors, write_torch
from tests.support.parity import GOLDEN, Reference, differences

NAMES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
# Of switch-c-2048 on the hub, but for the sizes: fewer decoder layers than there are, the wrong sparse step, no word
# on tying and no architectures.
SWITCH_C = {
    "model_type": "switch_transformers",
    "d_model": 16,
    "d_ff": 24,
    "d_kv": 8,
    "num_heads": 2,
    "num_layers": 2,
    "num_decoder_layers": 1,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 2,
    "encoder_sparse_step": 1,
    "decoder_sparse_step": 0,
    "num_experts": 4,
    "expert_capacity": 64,
    "vocab_size": 96,
    "is_full_sparse": True,
    "dense_act_fn": "relu",
    "router_bias": False,
    "router_dtype": "float32",
    "router_jitter_noise": 0.01,
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def write_shards(
    folder: pathlib.Path, tensors, num_shards: int, writer=write_torch, suffix="bin", stem="pytorch_model"
):
    names, weight_map = list(tensors), {}
    for number in range(num_shards):
        file = f"{stem}-{number + 1:05d}-of-{num_shards:05d}.{suffix}"
        shard = {name: tensors[name] for name in names[number::num_shards]}
        writer(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    write_index(folder / f"{stem}.{suffix}.index.json", weight_map)
    return weight_map


def write_index(path: pathlib.Path, weight_map) -> None:
    path.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def write_safe(path: pathlib.Path, tensors) -> None:
    write_safetensors(str(path), {name: in_memory(array) for name, array in tensors.items()})


def write_config(folder: pathlib.Path, **changes) -> None:
    values = {name: value for name, value in {**SWITCH_C, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))


def model_of(source) -> EncoderDecoder:
    model = EncoderDecoder(source.config)
    model.build()
    for weight in model.weights:
        weight.assign(source.weights[weight_name(weight)].read().astype(np.float32))
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("format", ["bin", "safetensors"])
def test_golden_models_compute_what_transformers_did(tmp_path, name, format):
    reference = Reference.load(name)
    (tmp_path / "config.json").write_text(json.dumps(reference.config))
    if format == "bin":
        write_torch(tmp_path / "pytorch_model.bin", reference.weights)
    else:
        write_safe(tmp_path / "model.safetensors", reference.weights)
    assert kind_of(str(tmp_path)) == "huggingface"
    source = open_source(str(tmp_path))
    assert source.notes == ()
    if format == "bin":
        differences(model_of(source), reference).check()
    folder = tmp_path / "back"
    folder.mkdir()
    family = reference.config["model_type"]
    write_huggingface(str(folder), source.config, source.weights, None, family, shard_bytes=20_000)
    assert len(list(folder.glob("model-0*.safetensors"))) > 1
    back = {name: tensor.read() for name, tensor in read_tensors(str(folder)).items()}
    assert back.keys() == reference.weights.keys()
    for tensor, array in reference.weights.items():
        np.testing.assert_array_equal(back[tensor], array, err_msg=tensor)
    assert read_directory(str(folder)).config == source.config


def test_switch_c(tmp_path):
    tensors = switch_tensors()
    write_shards(tmp_path, tensors, 3)
    write_config(tmp_path)
    source = open_source(str(tmp_path))
    config = source.config
    assert (config.num_encoder_layers, config.num_decoder_layers, config.num_experts) == (2, 2, 4)
    assert config.num_sparse_layers == 4 and not config.tied_logits and config.expert_capacity == 64
    notes = " ".join(source.notes)
    assert "num_decoder_layers = 1, the weights 2" in notes and "decoder_sparse_step = 0" in notes
    assert "does not say tie_word_embeddings = false" in notes and len(source.notes) == 3
    head = source.weights["logits/kernel"]
    assert head.dtype == BFLOAT16
    np.testing.assert_array_equal(head.read(), tensors["decoder.lm_head.weight"].T)
    np.testing.assert_array_equal(
        source.weights["decoder/layer_0/feed_forward/experts/wo"].rows[2].read(),
        tensors["decoder.block.0.layer.2.mlp.experts.expert_2.wo.weight"].T,
    )
    # And back, in bfloat16: the same bits under the name that transformers reads.
    folder = tmp_path / "back"
    folder.mkdir()
    write_huggingface(str(folder), config, source.weights, None, dtype="bfloat16")
    back = {name: tensor.read() for name, tensor in read_tensors(str(folder)).items()}
    tensors["lm_head.weight"] = tensors.pop("decoder.lm_head.weight")
    copies = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    tensors |= dict.fromkeys(copies, tensors["shared.weight"])
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].dtype == BFLOAT16
        np.testing.assert_array_equal(back[name], array, err_msg=name)


@pytest.mark.parametrize("sparse", [range(0), range(1, 2), range(2)])
def test_sparse_layers_are_where_experts_are(tmp_path, sparse):
    write_torch(tmp_path / "pytorch_model.bin", switch_tensors(head=None, sparse=sparse))
    write_config(tmp_path, model_type=... if not sparse else "switch_transformers", encoder_sparse_step=...)
    config = open_source(str(tmp_path)).config
    layers = [f"{stack}/layer_{index}" for stack in ("encoder", "decoder") for index in sparse]
    assert config.sparse_layer_names == layers and config.tied_logits


def test_base_8_mixes_dtypes_and_lists_its_table_four_times(tmp_path):
    tensors = switch_tensors(head=None, sparse=range(1, 2))
    for name in tensors:
        if "classifier" in name:
            tensors[name] = tensors[name].astype(np.float32) + np.float32(1e-3)
    table = tensors["shared.weight"]
    copies = {"encoder.embed_tokens.weight": table, "decoder.embed_tokens.weight": table, "lm_head.weight": table}
    write_torch(tmp_path / "pytorch_model.bin", tensors | copies)
    write_config(tmp_path, num_decoder_layers=2, encoder_sparse_step=2, decoder_sparse_step=2)
    source = open_source(str(tmp_path))
    assert source.config.tied_logits and source.notes == ()
    router = source.weights["encoder/layer_1/feed_forward/router/kernel"]
    assert router.dtype == np.float32
    np.testing.assert_array_equal(router.read().T, tensors["encoder.block.1.layer.1.mlp.router.classifier.weight"])


@pytest.mark.parametrize("kept", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_the_table_may_have_another_name(tmp_path, kept):
    tensors = switch_tensors(sparse=range(1, 2), head=None)
    table = tensors.pop("shared.weight")
    write_safe(tmp_path / "model.safetensors", tensors | {kept: table})
    write_config(tmp_path)
    np.testing.assert_array_equal(open_source(str(tmp_path)).weights["token_embedder/embedding"].read(), table)
    # Never silently from the head.
    (tmp_path / "model.safetensors").unlink()
    write_safe(tmp_path / "model.safetensors", tensors | {"lm_head.weight": table})
    with pytest.raises(SettingError, match=r"lacks shared\.weight"):
        open_source(str(tmp_path))


def test_an_index_that_names_what_was_dropped(tmp_path):
    tensors = switch_tensors(sparse=range(1, 2), head=None)
    weight_map = write_shards(tmp_path, tensors, 2, write_safe, "safetensors", "model")
    path = tmp_path / "model.safetensors.index.json"
    first = weight_map["shared.weight"]
    write_index(path, {**weight_map, "lm_head.weight": first, "decoder.embed_tokens.weight": first})
    write_config(tmp_path)
    assert open_source(str(tmp_path)).config.tied_logits
    name = "decoder.block.0.layer.2.mlp.wi.weight"
    other = next(file for file in weight_map.values() if file != weight_map[name])
    write_index(path, {**weight_map, "decoder.block.9.layer.2.mlp.wi.weight": other})
    with pytest.raises(SettingError, match=r"lacks decoder\.block\.9.*which model\.safetensors\.index\.json names"):
        open_source(str(tmp_path))
    (tmp_path / other).unlink()
    with pytest.raises(SettingError, match=rf"lacks {other}, which model.safetensors.index.json names"):
        open_source(str(tmp_path))


def test_heads(tmp_path):
    tensors = switch_tensors(sparse=range(1, 2), head="lm_head.weight")

    def config(**changes):
        write_safe(tmp_path / "model.safetensors", tensors)
        write_config(tmp_path, **changes)
        return open_source(str(tmp_path)).config

    assert not config(tie_word_embeddings=False).tied_logits
    assert not config().tied_logits
    with pytest.raises(SettingError, match=r"lm_head\.weight and the token table differ, and config\.json says tie_wo"):
        config(tie_word_embeddings=True)
    tensors["lm_head.weight"] = tensors["shared.weight"]
    assert config(tie_word_embeddings=True).tied_logits
    assert not config(tie_word_embeddings=False).tied_logits
    tensors.pop("lm_head.weight")
    with pytest.raises(SettingError, match=r"lacks lm_head\.weight, and its config\.json says tie_word_embeddings"):
        config(tie_word_embeddings=False)


@pytest.mark.parametrize("rows", [100, 128])
def test_rows_of_the_table_are_what_the_weights_have(tmp_path, rows):
    write_safe(tmp_path / "model.safetensors", switch_tensors(vocab_size=rows, head=None))
    write_config(tmp_path)
    source = open_source(str(tmp_path))
    assert source.config.vocab_size == rows
    assert f"vocab_size = 96, the weights {rows}" in " ".join(source.notes)


def test_t5_1_1_with_a_tied_head_gets_its_own(tmp_path):
    reference = Reference.load("t5_1_1")
    tensors = {name: array for name, array in reference.weights.items() if name != "lm_head.weight"}
    write_safe(tmp_path / "model.safetensors", tensors)
    (tmp_path / "config.json").write_text(json.dumps(reference.config))
    weights = open_source(str(tmp_path)).weights
    np.testing.assert_array_equal(weights["logits/kernel"].read(), weights["token_embedder/embedding"].read().T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "umt5"}, "is a UMT5, with a position bias in each layer"),
        ({"model_type": "bert"}, "says model_type = 'bert'"),
        ({"model_type": "t5"}, "says model_type = 't5', and its weights have 4 experts"),
        ({"dense_act_fn": "silu"}, "dense_act_fn = 'silu'"),
        ({"router_bias": True}, "router_bias = True"),
    ],
)
def test_other_models_are_refused(tmp_path, changes, message):
    write_safe(tmp_path / "model.safetensors", switch_tensors())
    write_config(tmp_path, **changes)
    with pytest.raises(SettingError, match=message):
        open_source(str(tmp_path))


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(SettingError, match="is not there, or empty"):
        kind_of(str(tmp_path / "absent"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SettingError, match="is no checkpoint: name a Hugging Face directory"):
        kind_of(str(tmp_path))
    write_safe(tmp_path / "model.safetensors", switch_tensors())
    with pytest.raises(SettingError, match=r"config\.json is damaged"):
        open_source(str(tmp_path))
