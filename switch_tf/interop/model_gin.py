"""A `ModelConfig` as lines of gin, with the macros of gin/models."""

import dataclasses

from switch_tf.models.config import ModelConfig

# As the files of gin/models have them.
_MACROS = {
    "vocab_size": "VOCAB_SIZE",
    "activation_dtype": "ACTIVATION_DTYPE",
    "dropout_rate": "DROPOUT_RATE",
    "rematerialization": "REMATERIALIZATION",
    "num_experts": "NUM_EXPERTS",
    "capacity_factor": "CAPACITY_FACTOR",
    "eval_capacity_factor": "EVAL_CAPACITY_FACTOR",
    "group_size": "GROUP_SIZE",
    "expert_dropout_rate": "EXPERT_DROPOUT_RATE",
    "router_dtype": "ROUTER_DTYPE",
}


def model_gin(config: ModelConfig) -> str:
    """Writes a config as gin: what files of gin/models bind, and whatever differs from the defaults.

    Args:
      config: of any model.

    Returns:
      Lines that make the same config; macros first.
    """
    macros, bindings = [], []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in _MACROS:
            macros.append(f"{_MACROS[field.name]} = {value!r}")
            bindings.append(f"ModelConfig.{field.name} = %{_MACROS[field.name]}")
        elif value not in (field.default, {}):
            bindings.append(f"ModelConfig.{field.name} = {value!r}")
    return "\n".join([*macros, "", *bindings, ""])
