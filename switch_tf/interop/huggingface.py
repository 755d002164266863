"""Models to and from Hugging Face's SwitchTransformers, T5 (1.0 and 1.1) and mT5: their settings and their weights.

Both sides compute the same function of the real tokens in float32, with these differences (docs/huggingface.md):
  * Theirs routes padding too, and it takes slots; ours does not. Padding at the end of a row changes nothing for the
    tokens before it; padding at its start does, once an expert is full.
  * In training their router's jitter reaches the experts as well; ours stays in the router.
  * The weights of the routers' losses are no settings of our model: `Objective(balance_loss=router_aux_loss_coef,
    router_z_loss=router_z_loss_coef, z_loss=0)` comes nearest to theirs, which balances the layers of a stack all
    together and not each by itself.

What one side's settings say and the other's cannot is refused by name. torch and transformers are imported where they
are used.
"""

import dataclasses
import importlib
import math
from collections.abc import Iterator, Mapping

import numpy as np

from switch_tf.errors import SettingError
from switch_tf.interop.huggingface_weights import load_weights, to_their_weights, token_table_copies
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name

# Ours and theirs, where the two mean the same.
_SETTINGS = {
    "vocab_size": "vocab_size",
    "d_model": "d_model",
    "d_ff": "d_ff",
    "d_kv": "d_kv",
    "num_heads": "num_heads",
    "num_encoder_layers": "num_layers",
    "num_decoder_layers": "num_decoder_layers",
    "dropout_rate": "dropout_rate",
    "relative_position_buckets": "relative_attention_num_buckets",
    "relative_position_max_distance": "relative_attention_max_distance",
    "layer_norm_epsilon": "layer_norm_epsilon",
}
_SPARSE_SETTINGS = {
    "num_experts": "num_experts",
    "expert_capacity": "expert_capacity",
    "router_jitter": "router_jitter_noise",
    "router_dtype": "router_dtype",
}
_ACTIVATIONS = {"relu": "relu", "gated_gelu": "gated-gelu"}
_FAMILIES = ("switch_transformers", "t5", "mt5")

# What need not survive the way there and back: how we compute or start, factors that a fixed capacity replaces, and
# settings of which only the layers that they make sparse count.
_FREE = {"activation_dtype", "dispatcher", "rematerialization", "initializer_scale"}
_FREE |= {"capacity_factor", "eval_capacity_factor", "min_expert_capacity"}
_FREE |= {"sparse_every", "decoder_sparse_every", "sparse_layout"}


def _library(name: str):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SettingError(
            f"Models of Hugging Face need {name}, which is not installed: pip install 'switch-tf[interop]'."
        ) from error


def _require(hf_config, name: str, known: tuple) -> None:
    value = getattr(hf_config, name, None)
    if value not in known:
        choice = " or ".join(repr(one) for one in known)
        raise SettingError(
            f"{name} = {value!r} of the Hugging Face model has no counterpart in ModelConfig: convert a model that was "
            f"trained with {choice}."
        )


def config_from_huggingface(hf_config) -> ModelConfig:
    """Says in our settings what a Hugging Face config says. Needs neither torch nor transformers.

    Groups are sequences, and capacity is their `expert_capacity`, in training and outside of it. Not in our record:
    `router_aux_loss_coef` and `router_z_loss_coef` (see above), token ids other than padding, and what their model
    reads nowhere (`router_ignore_padding_tokens`, `add_router_probs`).

    Args:
      hf_config: a `SwitchTransformersConfig`, `T5Config` or `MT5Config`, or anything with the same attributes.

    Returns:
      The config of the model that computes the same.

    Raises:
      SettingError: if our model has no counterpart of a setting.
    """
    _require(hf_config, "model_type", _FAMILIES)
    _require(hf_config, "pad_token_id", (0,))
    _require(hf_config, "decoder_start_token_id", (None, 0))
    settings = {ours: getattr(hf_config, theirs) for ours, theirs in _SETTINGS.items()}
    settings["initializer_scale"] = hf_config.initializer_factor**2
    if hf_config.model_type != "switch_transformers":
        _require(hf_config, "feed_forward_proj", tuple(_ACTIVATIONS.values()))
        settings["activation"] = {theirs: ours for ours, theirs in _ACTIVATIONS.items()}[hf_config.feed_forward_proj]
        # Their `tie_word_embeddings` is always True; whether the logits are scaled tells T5 1.0 from 1.1.
        settings["tied_logits"] = hf_config.model_type == "t5" and hf_config.scale_decoder_outputs
        return ModelConfig(**settings)
    _require(hf_config, "dense_act_fn", ("relu",))
    _require(hf_config, "router_bias", (False,))
    settings |= {ours: getattr(hf_config, theirs) for ours, theirs in _SPARSE_SETTINGS.items()}
    return ModelConfig(
        **settings,
        tied_logits=hf_config.tie_word_embeddings,
        expert_dropout_rate=hf_config.dropout_rate,
        group_size=None,
        sparse_layout="every_from_second",
        sparse_every=hf_config.encoder_sparse_step,
        decoder_sparse_every=hf_config.decoder_sparse_step,
    )


def _num_sparse_layers(config: ModelConfig, is_decoder: bool) -> int:
    """The `num_sparse_*_layers` with which they make the same layers sparse as we do.

    They take it for a step, the number of layers divided by it, rounded down: one more than there are layers makes
    none sparse (and 0 would make one so).
    """
    num_layers = config.num_decoder_layers if is_decoder else config.num_encoder_layers
    wanted = [config.is_sparse(index, is_decoder) for index in range(num_layers)]
    for number in sorted(range(1, num_layers + 2), key=lambda number: abs(number - sum(wanted))):
        step = num_layers // number
        theirs = dataclasses.replace(
            config, sparse_layout="every_from_second", sparse_every=step, decoder_sparse_every=step
        )
        if [theirs.is_sparse(index, is_decoder) for index in range(num_layers)] == wanted:
            return number
    layers = [index for index, is_sparse in enumerate(wanted) if is_sparse]
    raise SettingError(
        f"sparse_layout = '{config.sparse_layout}' makes layers {layers} of {num_layers} sparse, which no "
        "num_sparse_*_layers of a SwitchTransformersConfig does: train with 'every_from_second' and a sparse_every "
        f"that divides {num_layers}."
    )


def config_to_huggingface(config: ModelConfig, family: str | None = None):
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
    fitting = _FAMILIES[:1] if config.num_experts else _FAMILIES[1:]
    family = family or fitting[0]
    if family not in fitting:
        choice = " or ".join(repr(one) for one in fitting)
        raise SettingError(f"family = '{family}' does not fit num_experts = {config.num_experts}: choose {choice}.")
    if family == "mt5" and config.tied_logits:
        raise SettingError("tied_logits = True is no mT5: choose family='t5', or set ModelConfig.tied_logits = False.")
    activations = ("relu",) if config.num_experts else tuple(_ACTIVATIONS)
    if config.activation not in activations:
        raise SettingError(
            f"activation = '{config.activation}' is none that transformers has in a model of type '{family}': convert "
            f"a model that was trained with {' or '.join(map(repr, activations))}."
        )
    settings = {theirs: getattr(config, ours) for ours, theirs in _SETTINGS.items()}
    settings |= {
        "initializer_factor": math.sqrt(config.initializer_scale),
        "tie_word_embeddings": config.tied_logits,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }
    if family == "switch_transformers":
        if config.expert_capacity is None:
            raise SettingError(
                "expert_capacity = None leaves capacity to factors, which SwitchTransformersConfig has not: choose a "
                "number of slots that an expert has in a sequence, to_huggingface(model, expert_capacity=64)."
            )
        settings |= {theirs: getattr(config, ours) for ours, theirs in _SPARSE_SETTINGS.items()}
        settings["num_sparse_encoder_layers"] = _num_sparse_layers(config, is_decoder=False)
        settings["num_sparse_decoder_layers"] = _num_sparse_layers(config, is_decoder=True)
    else:
        settings["feed_forward_proj"] = _ACTIVATIONS[config.activation]
    hf_config = _library("transformers").AutoConfig.for_model(family, **settings)
    if family == "switch_transformers":
        _check_nothing_lost(config, config_from_huggingface(hf_config))
    return hf_config


def _check_nothing_lost(config: ModelConfig, back: ModelConfig) -> None:
    """Refuses what did not come back, and so holds for every setting that our routers may have."""
    settings = {
        field.name: (getattr(config, field.name), getattr(back, field.name))
        for field in dataclasses.fields(config)
        if field.name not in _FREE
    }
    if config.eval_capacity_factor is None:
        settings["eval_capacity_factor"] = (None, back.eval_capacity_factor)
    for name, (ours, theirs) in settings.items():
        if ours != theirs:
            raise SettingError(
                f"{name} = {ours!r} cannot be said in a SwitchTransformersConfig, which stands for {theirs!r}: to "
                f"convert the weights nevertheless, to_huggingface(model, {name}={theirs!r})."
            )


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


def from_huggingface(hf_model, **changes) -> EncoderDecoder:
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


def to_huggingface(model: EncoderDecoder, family: str | None = None, **changes):
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
