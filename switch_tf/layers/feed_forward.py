"""The dense feed-forward layer of T5 1.0 (ReLU) and T5 1.1 (GEGLU), whose activations the experts use too."""

from typing import Any

import tensorflow as tf

from switch_tf.layers import initializers
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.dropout import Dropout
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes

_HIDDEN_AXES = (axes.BATCH, axes.LENGTH, axes.MLP)
# How many input projections each activation multiplies together.
ACTIVATIONS = {"relu": 1, "gated_gelu": 2}


def check_activation(activation: str) -> int:
    """Returns how many input projections the activation needs.

    Raises:
      ValueError: if there is no such activation.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation = '{activation}' is unknown; choose one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[activation]


def input_projection_names(activation: str) -> tuple[str, ...]:
    """Returns the names of the input projections' weights: ("wi",), or ("wi_0", "wi_1") with wi_0 the gate."""
    return ("wi",) if check_activation(activation) == 1 else ("wi_0", "wi_1")


def activate(projections: list[tf.Tensor]) -> tf.Tensor:
    """ReLU of one projection, or gelu(first) * second (tanh approximation, as in T5 1.1)."""
    if len(projections) == 1:
        return tf.nn.relu(projections[0])
    gate, linear = projections
    return tf.nn.gelu(gate, approximate=True) * linear


class FeedForward(Layer):
    """y = activation(x W_in) W_out, no biases."""

    def __init__(
        self,
        *,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        initializer_scale: float = 1.0,
        rematerialize: bool = False,
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.d_model = d_model
        self.d_ff = d_ff
        self.activation = activation
        self.initializer_scale = initializer_scale
        self.rematerialize = rematerialize
        self.dropout = Dropout(dropout_rate, broadcast_axes=(1,), dtype=dtype, name="dropout")

    def build(self, input_shape: Any = None) -> None:
        into = initializers.variance_scaling(self.initializer_scale, self.d_model)
        out_of = initializers.variance_scaling(self.initializer_scale, self.d_ff)
        self.wi = [
            self.weight(name, (self.d_model, self.d_ff), (axes.EMBED, axes.MLP), into)
            for name in input_projection_names(self.activation)
        ]
        self.wo = self.weight("wo", (self.d_ff, self.d_model), (axes.MLP, axes.EMBED), out_of)
        self.dropout.build()
        self.built = True

    def call(self, x: tf.Tensor, context: ForwardContext = INFERENCE) -> tuple[tf.Tensor, Routing | None]:
        """Transforms each token independently.

        Args:
          x: [B, L, M].
          context: of the forward pass; dropout reads it.

        Returns:
          ([B, L, M] in the compute dtype, None: nothing is routed). `SwitchFeedForward` has the same interface.
        """

        def transformed(x: tf.Tensor) -> tf.Tensor:
            hidden = activate([tf.einsum("blm,mh->blh", x, self.cast(wi)) for wi in self.wi])
            hidden = axes.constrain(hidden, _HIDDEN_AXES)
            hidden = self.dropout(hidden, context=context, axes=_HIDDEN_AXES)
            return tf.einsum("blh,hm->blm", hidden, self.cast(self.wo))

        x = self.cast(x)
        if self.rematerialize and context.training:
            return rematerialized(transformed, self.variables, [x]), None
        return transformed(x), None
