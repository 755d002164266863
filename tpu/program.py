"""The training step as one function of flat arguments, which a compiler can lower from shapes alone."""

import dataclasses
from collections.abc import Callable, Mapping

import tensorflow as tf

from switch_tf.model import EncoderDecoder
from switch_tf.partitioning.axes import BATCH, LENGTH, Axes
from switch_tf.training.adafactor import Adafactor
from switch_tf.training.losses import Objective
from switch_tf.training.step import make_train_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A pure function of a flat list of tensors.

    Attributes:
      function: takes the arguments one by one and returns a flat list of tensors.
      arguments: their shapes and dtypes.
      argument_axes: their axis names; () for one that every device has.
      state_size: the first so many results are the next call's first arguments, split alike; every device has all of
        the other results.
    """

    function: Callable[..., list[tf.Tensor]]
    arguments: list[tf.TensorSpec]
    argument_axes: list[Axes]
    state_size: int

    @property
    def state_axes(self) -> list[Axes]:
        """The axis names of the first `state_size` arguments and results."""
        return self.argument_axes[: self.state_size]


def training_program(
    model: EncoderDecoder,
    optimizer: Adafactor,
    objective: Objective,
    features: Mapping[str, tuple[int, int]],
    num_microbatches: int = 1,
) -> Program:
    """Makes the training step's program.

    Args:
      model: built; gives names, shapes and axes.
      optimizer: gives the update rule and its slots.
      objective: weights of the auxiliary losses.
      features: shape (B, L) of each feature of a batch.
      num_microbatches: parts of a batch for the gradient.

    Returns:
      A program of weights and slots (float32: the state), step (int32 []), features (int32 [B, L], by name) and seed
      (int32 []), which returns weights and slots and then the step's metrics, all as `tf.nest` orders them.
    """
    step = make_train_step(model, optimizer, objective, num_microbatches)
    weights = model.trainable_variables
    slots = [optimizer.slot_shapes(tuple(weight.shape), weight.axes) for weight in weights]
    number = tf.TensorSpec([], tf.int32)
    arguments = (
        [tf.TensorSpec(weight.shape) for weight in weights],
        [{name: tf.TensorSpec(slot.shape) for name, slot in of_weight.items()} for of_weight in slots],
        number,
        {name: tf.TensorSpec(shape, tf.int32) for name, shape in features.items()},
        number,
    )
    state_axes = [weight.axes for weight in weights]
    state_axes += [of_weight[name].axes for of_weight in slots for name in sorted(of_weight)]

    def function(*flat: tf.Tensor) -> list[tf.Tensor]:
        return tf.nest.flatten(step(*tf.nest.pack_sequence_as(arguments, flat)))

    return Program(
        function,
        tf.nest.flatten(arguments),
        [*state_axes, (), *[(BATCH, LENGTH)] * len(features), ()],
        len(state_axes),
    )
