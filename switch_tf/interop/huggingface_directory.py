"""Directories of Hugging Face's `save_pretrained`: weights in one file or in shards, `config.json`, a tokenizer."""

import json
import os
from collections.abc import Callable, Mapping

import numpy as np

from switch_tf import storage
from switch_tf.errors import SettingError
from switch_tf.interop import architecture, binary_files
from switch_tf.interop.huggingface_json import config_of_directory
from switch_tf.interop.huggingface_weights import NAMES, their_name
from switch_tf.interop.lazy_tensors import LazyTensor, LazyTensors, rows_of
from switch_tf.interop.safetensors_files import read_safetensors, write_safetensors
from switch_tf.interop.sources import Source
from switch_tf.interop.torch_files import read_torch
from switch_tf.models.config import ModelConfig

# In the order in which transformers looks for them.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
SHARD_BYTES = 5_000_000_000
_TABLE = "shared.weight"
_TABLES = (_TABLE, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_HEADS = ("lm_head.weight", "decoder.lm_head.weight")
# Old T5 files have it, and nothing ever read it.
_UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
VOCABULARY = "spiece.model"


def weight_file(path: str) -> str | None:
    """Returns the name of the file, or of the index, of a directory's weights; None where there is none."""
    names = set(storage.list_folder(path))
    return next((name for name in WEIGHT_FILES if name in names), None)


def _json(path: str) -> dict:
    try:
        values = json.loads(binary_files.read_text(path))
    except ValueError as error:
        if isinstance(error, SettingError):
            raise
        raise SettingError(f"{path} is damaged: {error}; copy or download it again.") from error
    if not isinstance(values, dict):
        raise SettingError(f"{path} is damaged: it is no JSON object; copy or download it again.")
    return values


def _read_file(path: str) -> tuple[dict[str, LazyTensor], Mapping[str, str]]:
    return read_safetensors(path) if path.endswith(".safetensors") else (read_torch(path), {})


def _read_shards(folder: str, index: str) -> dict[str, LazyTensor]:
    """Opens all shards that an index names, and finds every tensor that it names."""
    weight_map = _json(os.path.join(folder, index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SettingError(f"{os.path.join(folder, index)} is damaged: it has no weight_map; download it again.")
    names = sorted(set(weight_map.values()))
    missing = sorted(set(names) - set(storage.list_folder(folder)))
    if missing:
        raise SettingError(
            f"{folder} lacks {missing[0]}{f' and {len(missing) - 1} more shards' if missing[1:] else ''}, which "
            f"{index} names: download the rest."
        )
    tensors: dict[str, LazyTensor] = {}
    copies: dict[str, str] = {}
    for name in names:
        of_shard, metadata = _read_file(os.path.join(folder, name))
        copies |= {copy: original for copy, original in metadata.items() if copy != "format"}
        for tensor_name, tensor in of_shard.items():
            if tensor_name not in tensors or weight_map.get(tensor_name) == name:
                tensors[tensor_name] = tensor
    for name, shard in weight_map.items():
        # Files whose copies of the token table were dropped keep the copies' names in the index.
        is_copy = copies.get(name, "") in tensors or (name in (*_TABLES, _HEADS[0]) and tensors.keys() & set(_TABLES))
        if name not in tensors and not is_copy:
            raise SettingError(f"{os.path.join(folder, shard)} lacks {name}, which {index} names: download it again.")
    return tensors


def read_tensors(folder: str) -> dict[str, LazyTensor]:
    """Opens a directory's weights.

    Args:
      folder: local or in a bucket.

    Returns:
      All tensors by their names there, copies of the token table as they are.

    Raises:
      SettingError: if there are none, or a shard is missing or damaged.
    """
    name = weight_file(folder)
    if name is None:
        raise SettingError(f"{folder} holds no weights: none of {', '.join(WEIGHT_FILES)} is there.")
    return _read_shards(folder, name) if name.endswith(".json") else _read_file(os.path.join(folder, name))[0]


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    return one.shape == other.shape and np.array_equal(one.read(), other.read())


def _with_one_table(tensors: dict[str, LazyTensor], config: Mapping[str, object], folder: str) -> dict:
    """Keeps the token table under one name, and a head only where it is not that table with T5 1.0's scaling."""
    tensors = {name: tensor for name, tensor in tensors.items() if name != _UNUSED}
    tables = [name for name in _TABLES if name in tensors]
    heads = [name for name in _HEADS if name in tensors]
    if not tables:
        raise SettingError(f"{folder} lacks {_TABLE}: it is no complete T5 or Switch Transformer.")
    table = tensors.pop(tables[0])
    for name in tables[1:]:
        if not _equal(tensors.pop(name), table):
            raise SettingError(
                f"{folder}: {name} and {tables[0]} differ, where our model has one token table: convert a model whose "
                "encoder and decoder share theirs."
            )
    head = tensors.pop(heads[0]) if heads else None
    tensors |= {_TABLE: table}
    is_scaled = _has_scaled_logits(config)
    if head is None and is_scaled:
        return tensors
    if head is None and config.get("model_type") == "switch_transformers":
        raise SettingError(
            f"{folder} lacks lm_head.weight, and its config.json says tie_word_embeddings = false: take a complete "
            "copy, or remove that line."
        )
    if head is not None and is_scaled and _equal(head, table):
        return tensors
    if head is not None and heads[0] == _HEADS[0] and config.get("tie_word_embeddings") is True and is_scaled:
        raise SettingError(
            f"{folder}: lm_head.weight and the token table differ, and config.json says tie_word_embeddings = true: "
            "to convert them as they are, set it to false there."
        )
    # A head that is the table without scaling becomes one of its own.
    return tensors | {_HEADS[0]: table if head is None else head}


def _has_scaled_logits(config: Mapping[str, object]) -> bool:
    """Whether a tied head reads states that are scaled by 1 / sqrt(d_model), as T5 1.0's; ours always does."""
    if config.get("model_type") == "mt5":
        return False
    return bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False))


def read_directory(folder: str) -> Source:
    """Opens a directory: Switch Transformers, T5 1.0 and 1.1, mT5, as safetensors or torch's files.

    The architecture is read from names and shapes, the rest from config.json.

    Args:
      folder: local or in a bucket.

    Returns:
      The weights under our names, and what belongs to them.

    Raises:
      SettingError: if a file is missing or damaged, or our model has no counterpart.
    """
    config_file = os.path.join(folder, "config.json")
    config = _json(config_file) if "config.json" in storage.list_folder(folder) else {}
    if config.get("model_type") == "umt5":
        raise SettingError(
            f"{folder} is a UMT5, with a position bias in each layer: ours shares one among the layers of a stack; "
            "convert an mT5."
        )
    tensors = _with_one_table(read_tensors(folder), config, folder)
    if "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight" in tensors:
        raise SettingError(f"{folder} has a position bias in each layer: ours shares one among the layers of a stack.")
    found = architecture.collect(tensors, NAMES, folder)
    model, notes = config_of_directory(config, architecture.settings_from_weights(found, folder), config_file)
    return Source(
        kind="huggingface",
        path=folder,
        config=model,
        weights=architecture.our_weights(found, model, folder),
        vocabulary=_vocabulary(folder),
        notes=tuple(notes),
    )


def _vocabulary(folder: str) -> str | None:
    names = set(storage.list_folder(folder))
    for name in (VOCABULARY, "tokenizer.json"):
        if name in names:
            return os.path.join(folder, name)
    return None


def their_weights(config: ModelConfig, weights: LazyTensors) -> dict[str, LazyTensor]:
    """Says our weights in their names and shapes.

    Args:
      config: of our model.
      weights: ours, by name.

    Returns:
      Theirs, each expert's by itself; nothing has been read.

    Raises:
      SettingError: if they have no such weight.
    """
    theirs: dict[str, LazyTensor] = {}
    for name, tensor in weights.items():
        their, rule = their_name(config, name)
        if rule.is_table:
            shape = rule.their_shape(tensor.shape[1:])
            for index, row in enumerate(rows_of(tensor)):
                theirs[their.format(expert=index)] = row.mapped(rule.to_theirs, shape)
        else:
            theirs[their] = tensor.mapped(rule.to_theirs, rule.their_shape(tensor.shape))
    if config.num_experts and not config.tied_logits:
        # With a head of its own, a Switch Transformer of transformers reads these, and not the shared table.
        theirs |= dict.fromkeys(_TABLES[1:], theirs[_TABLE])
    return theirs


def write_weights(
    folder: str, tensors: LazyTensors, shard_bytes: int = SHARD_BYTES, written: Callable[[int], None] = lambda _: None
) -> None:
    """Writes weights as safetensors: one file, or shards with an index.

    Args:
      folder: there, and empty.
      tensors: under their names.
      shard_bytes: the most that a shard holds; a tensor that is larger has one to itself.
      written: called with the bytes of each tensor that has been written.

    Raises:
      OSError, tf.errors.OpError: if the folder cannot be written.
    """
    shards: list[dict[str, LazyTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_safetensors(os.path.join(folder, WEIGHT_FILES[0]), tensors, written)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= dict.fromkeys(shard, file)
        write_safetensors(os.path.join(folder, file), shard, written)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    binary_files.write_text(os.path.join(folder, WEIGHT_FILES[1]), json.dumps(index, indent=2) + "\n")
