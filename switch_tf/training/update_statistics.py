"""Statistics of an update in each sparse layer: gradients and steps of its router and its experts, its norm's scale."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name
from switch_tf.training.adafactor import Change


class UpdateStatistics(NamedTuple):
    """What one update did to a sparse layer; float32 scalars. A size is a root mean square over all elements.

    norm_scale: size of the scale of the layer's input norm, before the update; 1 at the start.
    router_gradient, expert_gradient: norms of the gradients of the router and of all experts.
    router_update, expert_update: size of the step, relative to the size of the weights.
    """

    norm_scale: tf.Tensor
    router_gradient: tf.Tensor
    expert_gradient: tf.Tensor
    router_update: tf.Tensor
    expert_update: tf.Tensor


class _LayerWeights(NamedTuple):
    """Indices of a sparse layer's weights among the trainable variables."""

    norm: int
    router: list[int]
    experts: list[int]


def _layer_weights(model: EncoderDecoder) -> dict[str, _LayerWeights]:
    """Finds the weights of every sparse layer by their names."""
    names = [weight_name(variable) for variable in model.trainable_variables]
    layers = {}
    for layer in model.config.sparse_layer_names:
        block, is_attention = layer.removesuffix("/self_attention"), layer.endswith("/self_attention")
        sublayer = f"{block}/{'self_attention' if is_attention else 'feed_forward'}"
        layers[layer] = _LayerWeights(
            names.index(f"{sublayer}_norm/scale"),
            [index for index, name in enumerate(names) if name.startswith(sublayer) and name.endswith("router/kernel")],
            [index for index, name in enumerate(names) if name.startswith(sublayer) and "/experts/" in name],
        )
    return layers


def make_update_statistics(model: EncoderDecoder) -> Callable[..., dict[str, UpdateStatistics]]:
    """Makes the function that computes the statistics of an update.

    Args:
      model: built; gives names, not values.

    Returns:
      statistics(gradient_squares, weights, changes) -> `UpdateStatistics` by the sparse layer's name. The arguments are
      lists as `model.trainable_variables`: half the sum of squares of each gradient of the whole batch (float32 [], as
      `tf.nn.l2_loss` gives it), the weights before the update, and the optimizer's `Change` (None for a balance bias).
    """
    layers = _layer_weights(model)
    if not layers:
        return lambda gradient_squares, weights, changes: {}
    parts = [indices for layer in layers.values() for indices in (layer.router, layer.experts)]
    indices = sorted({index for part in parts for index in part})
    is_in_part = np.array([[index in part for index in indices] for part in parts], np.float32)
    elements = np.array([math.prod(model.trainable_variables[index].shape) for index in indices], np.float32)

    def statistics(
        gradient_squares: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], changes: Sequence[Change | None]
    ) -> dict[str, UpdateStatistics]:
        # All layers at once: in a small model, many small operations would take longer than the optimizer.
        updates = [change for change in (changes[index] for index in indices) if change is not None]
        squares = tf.linalg.matvec(is_in_part, tf.stack([gradient_squares[index] for index in indices]))
        steps = tf.linalg.matvec(is_in_part * elements, tf.stack([update.size for update in updates]))
        sizes = tf.linalg.matvec(is_in_part * elements, tf.stack([update.weight_size for update in updates]))
        gradients = tf.unstack(tf.sqrt(2.0 * squares))
        relative = tf.unstack(tf.sqrt(tf.math.divide_no_nan(steps, sizes)))
        return {
            name: UpdateStatistics(
                norm_scale=tf.sqrt(tf.reduce_mean(tf.square(weights[layer.norm]))),
                router_gradient=gradients[2 * number],
                expert_gradient=gradients[2 * number + 1],
                router_update=relative[2 * number],
                expert_update=relative[2 * number + 1],
            )
            for number, (name, layer) in enumerate(layers.items())
        }

    return statistics
