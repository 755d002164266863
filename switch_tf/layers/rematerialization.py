"""Activations that are made again for the gradient in the place of being kept: less memory, for more time."""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

# Private: tf.custom_gradient ties results and inputs together in one op, which DTensor misplaces in a loop's body.
from tensorflow.python.eager import record


def rematerialized(
    function: Callable, weights: Sequence[keras.Variable], states: Sequence[tf.Tensor], others: Sequence[tf.Tensor] = ()
):
    """Returns function(*states, *others); of what it makes inside, the gradient keeps nothing and makes it again.

    Memory is saved where the tape is in the same graph as the call, as in a training step.

    Args:
      function: returns a nest whose first tensor has the shape of the first state. The same inputs must give the same
        outputs: noise comes from seeds.
      weights: all variables that it reads.
      states: float [..., L, M], of shapes that differ in the length L alone.
      others: what else a gradient goes to, float of any shape.

    Returns:
      What `function` returns.
    """
    num_inputs = len(states) + len(others)

    def compute(*tensors: tf.Tensor):
        with keras.StatelessScope(list(zip(weights, tensors[num_inputs:]))):
            return function(*tensors[:num_inputs])

    tensors = [*states, *others, *map(tf.convert_to_tensor, weights)]
    with record.stop_recording():
        outputs = compute(*tensors)

    def gradient(*gradients: tf.Tensor):
        # Adds 0, so that no optimizer takes the second computation for the first. (tf.recompute_grad takes one
        # element of the gradient for that, which on a mesh gathers all of it.)
        nothing = tf.reduce_max(tf.minimum(tf.abs(gradients[0]), 0), axis=-2, keepdims=True)
        again = [state + tf.cast(nothing, state.dtype) for state in tensors[: len(states)]]
        again += tensors[len(states) :]
        with tf.GradientTape() as tape:
            tape.watch(again)
            targets = _tensors(compute(*again))
        floats = [index for index, target in enumerate(targets) if target.dtype.is_floating]
        return tape.gradient([targets[index] for index in floats], again, [gradients[index] for index in floats])

    record.record_operation("Rematerialized", _tensors(outputs), tensors, gradient)
    return outputs


def _tensors(nest) -> list[tf.Tensor]:
    """Lists what of a nest is a tensor: not a routing's capacity, say."""
    return [part for part in tf.nest.flatten(nest) if tf.is_tensor(part)]
