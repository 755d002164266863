"""The JSON files of a Hugging Face directory: read with what the weights say, written without transformers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from switch_tf.errors import SettingError
from switch_tf.interop.huggingface_settings import (
    DEFAULTS,
    FAMILIES,
    check_nothing_lost,
    config_from_huggingface,
    settings_for_huggingface,
    without_library,
)
from switch_tf.models.config import ModelConfig

_ARCHITECTURES = {
    "switch_transformers": "SwitchTransformersForConditionalGeneration",
    "t5": "T5ForConditionalGeneration",
    "mt5": "MT5ForConditionalGeneration",
}
# Ours, read from the weights, and where config.json says the same.
_SHAPES = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "d_ff": "d_ff",
    "d_kv": "d_kv",
    "num_heads": "num_heads",
    "num_encoder_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "relative_position_buckets": "relative_attention_num_buckets",
    "num_experts": "num_experts",
}
# Of gated layers: "gelu" and "relu" are in files that were repaired later, and in those that say nothing of the gate.
_GATED = ("gated-gelu", "gelu", "relu")
_GELU = ("gelu_new", "gelu", "relu")


def config_of_directory(
    values: Mapping[str, Any], of_weights: Mapping[str, Any], source: str
) -> tuple[ModelConfig, list[str]]:
    """Makes our config of what the weights say and, where they say nothing, of config.json.

    Args:
      values: config.json; empty where there is none.
      of_weights: as `architecture.settings_from_weights` returns it.
      source: the file, for errors and notes.

    Returns:
      (our config, a sentence for each disagreement).

    Raises:
      SettingError: if our model has no counterpart of a setting.
    """
    num_experts, is_gated = of_weights.get("num_experts", 0), of_weights["activation"] == "gated_gelu"
    family = values.get("model_type") or ("switch_transformers" if num_experts else "t5")
    if family not in FAMILIES:
        raise SettingError(f"{source} says model_type = '{family}': one of {', '.join(FAMILIES)} can be converted.")
    if bool(num_experts) != (family == "switch_transformers"):
        raise SettingError(f"{source} says model_type = '{family}', and its weights have {num_experts} experts.")
    theirs = {name: value for name, value in values.items() if value is not None}
    theirs |= {there: of_weights[ours] for ours, there in _SHAPES.items() if ours in of_weights}
    activation = values.get("feed_forward_proj", "relu")
    if is_gated and (activation not in _GATED or values.get("dense_act_fn", "gelu_new") not in _GELU):
        raise SettingError(f"{source} says feed_forward_proj = '{activation}': ours has relu and gated-gelu.")
    if is_gated:
        theirs |= {"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"}
    config = config_from_huggingface(without_library(family, theirs))
    config = dataclasses.replace(config, **of_weights)
    return config, _disagreements(values, config, source)


def _disagreements(values: Mapping[str, Any], config: ModelConfig, source: str) -> list[str]:
    notes = [
        f"{source} says {theirs} = {values[theirs]}, the weights {getattr(config, ours)}: the weights are right."
        for ours, theirs in _SHAPES.items()
        if values.get(theirs) not in (None, getattr(config, ours))
    ]
    for stack, num_layers in (("encoder", config.num_encoder_layers), ("decoder", config.num_decoder_layers)):
        step = values.get(f"{stack}_sparse_step")
        layers = [layer for layer in range(num_layers) if config.is_sparse(layer, is_decoder=stack == "decoder")]
        if step is None or not config.num_experts:
            continue
        said = [layer for layer in range(num_layers) if step > 0 and (step == 1 or layer % step == 1)]
        if said != layers:
            notes.append(
                f"{source} says {stack}_sparse_step = {step}, and the weights have experts in the layers {layers}: the "
                "weights are right."
            )
    tied = values.get("tie_word_embeddings")
    if config.num_experts and not config.tied_logits and tied is not False:
        notes.append(f"{source} does not say tie_word_embeddings = false, and the weights have a head of their own.")
    return notes


def json_files(config: ModelConfig, family: str | None, dtype: str, has_vocabulary: bool) -> dict[str, dict[str, Any]]:
    """Makes the JSON files of a directory.

    Args:
      config: ours; of what theirs cannot say, what changes the outputs of a trained model is refused.
      family: "switch_transformers", "t5" or "mt5"; None: the first with experts, else "t5".
      dtype: of the weights, "float32" or "bfloat16".
      has_vocabulary: whether `spiece.model` is beside them.

    Returns:
      The contents by file name.

    Raises:
      SettingError: if theirs has no counterpart of a setting.
    """
    family, settings = settings_for_huggingface(config, family)
    values = {**DEFAULTS[family], **settings, "model_type": family, "architectures": [_ARCHITECTURES[family]]}
    values |= {"torch_dtype": dtype, "eos_token_id": 1, "is_encoder_decoder": True}
    if family == "switch_transformers":
        check_nothing_lost(config, family, settings, lenient=True)
        steps = without_library(family, settings)
        values |= {"encoder_sparse_step": steps.encoder_sparse_step, "decoder_sparse_step": steps.decoder_sparse_step}
    else:
        values["dense_act_fn"] = "relu" if config.activation == "relu" else "gelu_new"
        values["is_gated_act"] = config.activation != "relu"
    if family == "t5":
        values["scale_decoder_outputs"] = config.tied_logits
    files: dict[str, dict[str, Any]] = {
        "config.json": values,
        "generation_config.json": {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0},
    }
    if has_vocabulary:
        files["tokenizer_config.json"] = {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": 100,
            "eos_token": "</s>",
            "pad_token": "<pad>",
            "unk_token": "<unk>",
        }
    return files
