"""The settings of Hugging Face's models and ours: what one side says, in the words of the other. Needs neither library.

What one side says and the other cannot is refused by name.
"""

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import Any

from switch_tf.errors import SettingError
from switch_tf.models.config import ModelConfig

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
FAMILIES = ("switch_transformers", "t5", "mt5")

# What their config classes have where a config.json says nothing.
_DEFAULTS = {
    "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6,
    "initializer_factor": 1.0,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "switch_transformers": {
        **_DEFAULTS,
        "tie_word_embeddings": True,
        "dense_act_fn": "relu",
        "num_experts": 8,
        "expert_capacity": 64,
        "router_bias": False,
        "router_dtype": "float32",
        "router_jitter_noise": 0.01,
    },
    "t5": {**_DEFAULTS, "feed_forward_proj": "relu"},
    "mt5": {**_DEFAULTS, "feed_forward_proj": "gated-gelu"},
}

# What need not survive the way there and back: how we compute or start, factors that a fixed capacity replaces, and
# settings of which only the layers that they make sparse count.
_FREE = {"activation_dtype", "dispatcher", "rematerialization", "initializer_scale"}
_FREE |= {"capacity_factor", "eval_capacity_factor", "min_expert_capacity"}
_FREE |= {"sparse_every", "decoder_sparse_every", "sparse_layout"}
_OF_TRAINING = {"expert_dropout_rate", "group_size", "router_jitter"}


def _require(hf_config: Any, name: str, known: tuple) -> None:
    value = getattr(hf_config, name, None)
    if value not in known:
        choice = " or ".join(repr(one) for one in known)
        raise SettingError(
            f"{name} = {value!r} of the Hugging Face model has no counterpart in ModelConfig: convert a model that was "
            f"trained with {choice}."
        )


def config_from_huggingface(hf_config: Any) -> ModelConfig:
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
    _require(hf_config, "model_type", FAMILIES)
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


def settings_for_huggingface(config: ModelConfig, family: str | None = None) -> tuple[str, dict[str, Any]]:
    """Says in Hugging Face's settings what our config says.

    Args:
      config: ours; a sparse one must have `expert_capacity` set.
      family: "switch_transformers", "t5" or "mt5"; None: the first with experts, else "t5".

    Returns:
      (the family, arguments of its config class).

    Raises:
      SettingError: if theirs has no counterpart of a setting that shapes weights or activations; see
        `check_nothing_lost` for the others.
    """
    fitting = FAMILIES[:1] if config.num_experts else FAMILIES[1:]
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
                "number of slots that an expert has in a sequence, to_huggingface(model, expert_capacity=64) or "
                "--gin.ModelConfig.expert_capacity=64."
            )
        settings |= {theirs: getattr(config, ours) for ours, theirs in _SPARSE_SETTINGS.items()}
        settings["num_sparse_encoder_layers"] = _num_sparse_layers(config, is_decoder=False)
        settings["num_sparse_decoder_layers"] = _num_sparse_layers(config, is_decoder=True)
    else:
        settings["feed_forward_proj"] = _ACTIVATIONS[config.activation]
    return family, settings


def without_library(family: str, settings: Mapping[str, Any]) -> types.SimpleNamespace:
    """Makes what transformers' config class makes of arguments, as far as `config_from_huggingface` reads it."""
    values: dict[str, Any] = {**DEFAULTS[family], **settings, "model_type": family}
    for stack, num_layers in (("encoder", values["num_layers"]), ("decoder", values["num_decoder_layers"])):
        num_sparse = values.get(f"num_sparse_{stack}_layers", 0)
        values[f"{stack}_sparse_step"] = num_layers // num_sparse if num_sparse > 0 else num_layers
    values.setdefault("scale_decoder_outputs", family == "t5" and values.get("tie_word_embeddings") is not False)
    return types.SimpleNamespace(**values)


def check_nothing_lost(config: ModelConfig, family: str, settings: Mapping[str, Any], lenient: bool = False) -> None:
    """Refuses a setting of ours that theirs does not say, and so holds for every setting that our routers may have.

    Args:
      config: ours.
      family: of the model there.
      settings: what `settings_for_huggingface` made of ours.
      lenient: whether settings of training alone, and how many tokens compete for slots, may be lost.

    Raises:
      SettingError: with the name of the setting.
    """
    back = config_from_huggingface(without_library(family, settings))
    free = _FREE | (_OF_TRAINING if lenient else set())
    ours_and_theirs = {
        field.name: (getattr(config, field.name), getattr(back, field.name))
        for field in dataclasses.fields(config)
        if field.name not in free
    }
    if config.eval_capacity_factor is None and not lenient:
        ours_and_theirs["eval_capacity_factor"] = (None, back.eval_capacity_factor)
    for name, (ours, theirs) in ours_and_theirs.items():
        if ours != theirs:
            raise SettingError(
                f"{name} = {ours!r} cannot be said in a SwitchTransformersConfig, which stands for {theirs!r}: to "
                f"convert the weights nevertheless, to_huggingface(model, {name}={theirs!r}) or "
                f"--gin.ModelConfig.{name}={theirs!r}."
            )
