"""Rematerialization: the backward pass recomputes activations instead of storing them, less memory for more time."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from switch_tf import compat
from switch_tf.partitioning import axes


def rematerialized(
    function: Callable[..., Any],
    weights: Sequence[keras.Variable],
    states: Sequence[tf.Tensor],
    others: Sequence[tf.Tensor] = (),
) -> Any:
    """Returns function(*states, *others) and stores none of its inner activations for the gradient.

    It saves memory if the tape is in the same graph as the call, as in a training step.

    Args:
      function: returns a nest whose first tensor has the shape of the first state. It must be deterministic: noise
        comes from seeds.
      weights: all variables that it reads.
      states: float [..., L, M], whose shapes differ in the length L only.
      others: other inputs that have a gradient, float of any shape.

    Returns:
      What `function` returns.
    """
    num_inputs = len(states) + len(others)

    def compute(*tensors: tf.Tensor) -> Any:
        with keras.StatelessScope(list(zip(weights, tensors[num_inputs:]))):
            return function(*tensors[:num_inputs])

    tensors = [*states, *others, *map(tf.convert_to_tensor, weights)]
    with compat.stop_recording():
        outputs = compute(*tensors)

    def gradient(*gradients: tf.Tensor) -> list[tf.Tensor | None]:
        # Adds a 0 that depends on the gradient, or the optimizer would merge the second computation with the first.
        # (tf.recompute_grad slices one element of the gradient for this, which all-gathers it on a mesh.)
        zero = tf.reduce_max(tf.minimum(tf.abs(gradients[0]), 0), axis=-2, keepdims=True)
        recomputed = [state + tf.cast(zero, state.dtype) for state in tensors[: len(states)]]
        recomputed += tensors[len(states) :]
        with tf.GradientTape() as tape:
            tape.watch(recomputed)
            targets = _tensors(compute(*recomputed))
        floats = [index for index, target in enumerate(targets) if target.dtype.is_floating]
        found = tape.gradient([targets[index] for index in floats], recomputed, [gradients[index] for index in floats])
        # Before the gradients of the layers below, or XLA keeps what the experts' gradients are computed from.
        of_experts = [each for each, weight in zip(found[num_inputs:], weights) if axes.EXPERTS in weight.axes[:1]]
        return [axes.after(found[0], of_experts), *found[1:]]

    compat.record_gradient("Rematerialized", _tensors(outputs), tensors, gradient)
    return outputs


def _tensors(nest: Any) -> list[tf.Tensor]:
    """Lists the tensors of a nest, without, say, the int capacity of a routing."""
    return [leaf for leaf in tf.nest.flatten(nest) if tf.is_tensor(leaf)]
