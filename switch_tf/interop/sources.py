"""What every reader returns: a model's weights under our names, unread, and what was found beside them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from switch_tf.interop.lazy_tensors import LazyTensors
from switch_tf.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """A checkpoint that somebody has.

    Attributes:
      kind: "huggingface", "t5x", "mesh_tensorflow" or "switch_tf".
      path: as the user gave it.
      config: of the model.
      weights: under our names and in our shapes.
      step: updates that had been made; 0 where nothing says it.
      slots: Adafactor's, under the format's own names; empty where there are none, or none can be read.
      slots_since: the step at which they were zero.
      vocabulary: path of a SentencePiece model or of a tokenizer.json beside the weights; None where there is none.
      gin: the `config.gin` that it came with, of a model directory of ours.
      notes: sentences about what was found.
    """

    kind: str
    path: str
    config: ModelConfig
    weights: LazyTensors
    step: int = 0
    slots: LazyTensors = dataclasses.field(default_factory=dict)
    slots_since: int = 0
    vocabulary: str | None = None
    gin: str | None = None
    notes: tuple[str, ...] = ()


def config_from_weights(settings: Mapping[str, Any]) -> ModelConfig:
    """Makes a config of what weights say, for formats that keep the rest elsewhere: as our gin files have it.

    Args:
      settings: as `architecture.settings_from_weights` returns it.
    """
    return ModelConfig(**{"initializer_scale": 0.1 if settings.get("num_experts") else 1.0, **settings})
