"""Statistics of an update in each sparse layer: gradients and steps of its router and its experts, its norm's scale."""

import string
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from switch_tf.models.encoder_decoder import EncoderDecoder, weight_name


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


def _sum_of_squares(tensor: tf.Tensor) -> tf.Tensor:
    """Sums the squares of each row of a tensor, which is an expert in [E, in, out] weights; makes no tensor of squares.

    One value for each expert stays sharded like the experts: the only collective is that of the final sum.
    """
    tensor = tf.cast(tensor, tf.float32)
    letters = string.ascii_lowercase[: len(tensor.shape)]
    return tf.einsum(f"{letters},{letters}->{letters[0]}", tensor, tensor)


def make_update_statistics(model: EncoderDecoder) -> Callable[..., dict[str, UpdateStatistics]]:
    """Makes the function that computes the statistics of an update.

    Args:
      model: built; gives names, not values.

    Returns:
      statistics(gradients, weights, new_weights) -> `UpdateStatistics` by the sparse layer's name; the arguments are
      lists of tensors as in `model.trainable_variables`, the gradients being those of the whole batch.
    """
    layers = _layer_weights(model)

    def statistics(
        gradients: Sequence[tf.Tensor], weights: Sequence[tf.Tensor], new_weights: Sequence[tf.Tensor]
    ) -> dict[str, UpdateStatistics]:
        def total(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
            return sum((tf.reduce_sum(_sum_of_squares(tensor)) for tensor in tensors), tf.constant(0.0))

        def of_layer(layer: _LayerWeights) -> UpdateStatistics:
            def gradient(indices: list[int]) -> tf.Tensor:
                return tf.sqrt(total([gradients[index] for index in indices]))

            def update(indices: list[int]) -> tf.Tensor:
                steps = total([new_weights[index] - weights[index] for index in indices])
                return tf.sqrt(tf.math.divide_no_nan(steps, total([weights[index] for index in indices])))

            return UpdateStatistics(
                norm_scale=tf.sqrt(tf.reduce_mean(tf.square(weights[layer.norm]))),
                router_gradient=gradient(layer.router),
                expert_gradient=gradient(layer.experts),
                router_update=update(layer.router),
                expert_update=update(layer.experts),
            )

        return {name: of_layer(layer) for name, layer in layers.items()}

    return statistics
