"""Activations that the gradient makes again, so that they need not be kept."""

from collections.abc import Callable

import tensorflow as tf


def recomputed(function: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Makes a function's gradient compute the function once more, from its arguments alone.

    `tf.recompute_grad` does this for any function; but it waits for the gradient from above by one element of it in a
    row, for which a program that is split over a mesh gathers all of it, in every layer.

    Args:
      function: (x, *others) -> y, all of them float tensors; y has the shape and dtype of x, and all that is large in
        between depends on x.

    Returns:
      The same function.
    """

    @tf.custom_gradient
    def computed(x: tf.Tensor, *others: tf.Tensor):
        def gradient(upstream: tf.Tensor):
            # The gradient from above must be there first, or all layers would be made again at once (XLA heeds no
            # control dependency). Where it is not a number, nor is what comes of it.
            arguments = (tf.where(tf.math.is_nan(upstream), upstream, x), *others)
            with tf.GradientTape() as tape:
                tape.watch(arguments)
                y = function(*arguments)
            return tape.gradient(y, arguments, upstream)

        return function(x, *others), gradient

    return computed
