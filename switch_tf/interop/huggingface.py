"""Models to and from Hugging Face's SwitchTransformers, T5 (1.0 and 1.1) and mT5: their settings and their weights.

Both sides compute the same function of the real tokens in float32, with these differences (docs/weights.md):
  * Theirs routes padding too, and it takes slots; ours does not. Padding at the end of a row changes nothing for the
    tokens before it; padding at its start does, once an expert is full.
  * In training their router's jitter reaches the experts as well; ours stays in the router.
  * The weights of the routers' losses are no settings of our model: `Objective(balance_loss=router_aux_loss_coef,
    router_z_loss=router_z_loss_coef, z_loss=0)` comes nearest to theirs, which balances the layers of a stack all
    together and not each by itself.

torch and transformers are imported where they are used.
"""

import dataclasses
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from switch_tf.errors import SettingError
from switch_tf.interop.huggingface_settings import (
    check_nothing_lost,
    config_from_huggingface,
    settings_for_huggingface,
)
from switch_tf.interop.huggingface_weights import load_weights, to_their_weights, token_table_copies
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingError(
            f"Models of Hugging Face need {name}, which is not installed: pip install 'switch-tf[interop]'."
        ) from error


def config_to_huggingface(config: ModelConfig, family: str | None = None) -> Any:
    """Says in Hugging Face's settings what our config says. Needs transformers.

    Args:
      config: ours; a sparse one must have `expert_capacity` set, `group_size=None`, and nothing that is not a Switch
        Transformer.
      family: "switch_transformers", "t5" or "mt5"; None: the first with experts, else "t5".

    Returns:
      A `SwitchTransformersConfig`, `T5Config` or `MT5Config`.

    Raises:
      SettingError: if theirs has no counterpart of a setting, or transformers is not installed.
    """
    family, settings = settings_for_huggingface(config, family)
    hf_config = _library("transformers").AutoConfig.for_model(family, **settings)
    if family == "switch_transformers":
        check_nothing_lost(config, family, settings)
    return hf_config


class _Arrays(Mapping):
    """torch tensors as float32 arrays, each converted when it is asked for and not kept."""

    def __init__(self, tensors: Mapping):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        return self._tensors[name].float().cpu().numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def from_huggingface(hf_model: Any, **changes: Any) -> EncoderDecoder:
    """Makes our model of a Hugging Face model in memory.

    Args:
      hf_model: a `SwitchTransformersForConditionalGeneration`, `T5ForConditionalGeneration` or
        `MT5ForConditionalGeneration` of any dtype; it is left as it is.
      changes: settings of our `ModelConfig` to have otherwise than in their config: `dropout_rate=0.0`,
        `activation_dtype="bfloat16"`, `group_size=4096` and `expert_capacity=None` to train with capacity factors.

    Returns:
      Our model, built, its weights in float32. Where T5 1.1 or mT5 has a head that is tied to the token table
      without T5 1.0's scaling (a new one has), ours gets a head of its own with the same values.

    Raises:
      SettingError: if our model has no counterpart of a setting or of a weight.
    """
    config = dataclasses.replace(config_from_huggingface(hf_model.config), **changes)
    model = EncoderDecoder(config)
    model.build()
    load_weights(model, _Arrays(hf_model.state_dict()))
    return model


def to_huggingface(model: EncoderDecoder, family: str | None = None, **changes: Any) -> Any:
    """Makes a Hugging Face model of ours. Needs torch and transformers.

    Args:
      model: ours, built.
      family: "switch_transformers", "t5" or "mt5"; None: the first with experts, else "t5" (1.1 where logits are not
        tied).
      changes: settings of our `ModelConfig` to have otherwise, where theirs cannot say ours:
        `expert_capacity=64, group_size=None`.

    Returns:
      A `SwitchTransformersForConditionalGeneration`, `T5ForConditionalGeneration` or `MT5ForConditionalGeneration` in
      float32, in evaluation mode, with transformers' own `router_aux_loss_coef` and `router_z_loss_coef`.

    Raises:
      SettingError: if theirs has no counterpart of a setting or of a weight, or if torch or transformers is missing.
    """
    torch, transformers = _library("torch"), _library("transformers")
    config = dataclasses.replace(model.config, **changes)
    hf_config = config_to_huggingface(config, family)
    with torch.device("meta"):  # No memory and no time for weights that are overwritten.
        hf_model = transformers.AutoModelForSeq2SeqLM.from_config(hf_config, dtype=torch.float32)
    hf_model.to_empty(device="cpu")
    hf_model.tie_weights()
    if not config.tied_logits and hf_model.all_tied_weights_keys.pop("lm_head.weight", None):
        # T5 and mT5 tie the head whatever their config says; this is what loading a file with both tables does.
        hf_model.lm_head.weight = torch.nn.Parameter(torch.empty_like(hf_model.shared.weight))
    unwritten = hf_model.state_dict()  # Its tensors are the model's own.
    copies = [unwritten.pop(name) for name in token_table_copies(config)]
    for weight in model.weights:
        for theirs, array in to_their_weights(config, weight_name(weight), weight.numpy()):
            place = unwritten.pop(theirs, None)
            if place is None or tuple(place.shape) != array.shape:
                raise _misfit(theirs, changes)
            place.copy_(torch.from_numpy(array))
    if unwritten:
        raise _misfit(min(unwritten), changes)
    for copy in copies:
        copy.copy_(hf_model.shared.weight.detach())
    return hf_model.eval()


def _misfit(theirs: str, changes: Mapping) -> SettingError:
    return SettingError(
        f"{theirs} does not fit the model's weights after a change of {' and '.join(changes)}: change settings only "
        "that shape no weight."
    )
