"""What every layer of one forward pass is told."""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class ForwardContext:
    """Settings of one forward pass, handed from the model to every layer that needs one of them.

    Call a layer with `context=context`: Keras takes only tensors as positional arguments.

    Attributes:
      training: whether dropout, router noise and the training capacity are on.
      seed: int or integer scalar; the same seed gives the same noise, on every mesh.
      token_mask: bool [B, L], True for a real token; None if all tokens are real. Padding takes no expert slot and
        counts in no routing loss.
      dropless: whether, outside of training, every token gets the experts that it chose, so that its result does not
        depend on the rest of the batch. (A router that samples in evaluation makes it depend on the token's position.
        Experts that choose tokens keep the evaluation capacity.)
    """

    training: bool = False
    seed: int | tf.Tensor = 0
    token_mask: tf.Tensor | None = None
    dropless: bool = False


INFERENCE = ForwardContext()
