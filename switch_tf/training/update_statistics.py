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
    width = max(map(len, parts))
    sizes = [[math.prod(model.trainable_variables[index].shape) for index in part] for part in parts]
    elements = np.array([part + [0] * (width - len(part)) for part in sizes], np.float32)

    def by_part(values: Callable[[int], tf.Tensor]) -> tf.Tensor:
        # All layers at once: in a small model, many small operations would take longer than the optimizer.
        rows = [[values(index) for index in part] + [tf.constant(0.0)] * (width - len(part)) for part in parts]
        return tf.reshape(tf.stack([value for row in rows for value in row]), [len(parts), width])

    def statistics(
        gradient_squares: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], changes: Sequence[Change | None]
    ) -> dict[str, UpdateStatistics]:
        def change_of(index: int) -> Change:
            change = changes[index]
            assert change is not None, "Kernels of routers and experts have gradients."
            return change

        squares = tf.reduce_sum(by_part(lambda index: gradient_squares[index]), axis=1)
        steps = tf.reduce_sum(by_part(lambda index: change_of(index).mean_square) * elements, axis=1)
        before = tf.reduce_sum(by_part(lambda index: change_of(index).weight_mean_square) * elements, axis=1)
        gradients = tf.unstack(tf.sqrt(2.0 * squares))
        relative = tf.unstack(tf.sqrt(tf.math.divide_no_nan(steps, before)))
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
