"""Which experts every token of a batch goes to."""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from switch_tf.data.batches import Batch
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import Engine
from switch_tf.training.step import Features


def make_expert_reader(model: EncoderDecoder, engine: Engine) -> Callable[[Batch], dict[str, np.ndarray]]:
    """Compiles the routing of held-out data: teacher forcing, no noise, the evaluation capacity.

    Args:
      model: built by the engine, with sparse layers.
      engine: where the model is.

    Returns:
      read(batch of int32 [B, L]) -> int32 [B, L, K] by the sparse layer's name: the experts that a token has a slot
      of, -1 for a choice without a slot and for padding. L is the length of the layer's stack.
    """

    def on_device(features: Features) -> dict[str, tf.Tensor]:
        output = model(features, return_routing=True)
        experts = {}
        for layer, routing in output.routings.items():
            stack = "encoder" if layer.startswith("encoder/") else "decoder"
            has_slot = routing.slot < routing.filled.shape[-1] * routing.capacity
            experts[layer] = tf.reshape(
                tf.where(has_slot, routing.expert, -1),
                [*features[f"{stack}_input_tokens"].shape, routing.expert.shape[-1]],
            )
        return experts

    compiled = engine.compile(on_device, gather=True)
    return functools.partial(engine.run, compiled)
