"""Switch self-attention (App. A): queries, and keys shared with values, come from each token's own expert."""

from typing import Any

import tensorflow as tf

from switch_tf.layers import initializers
from switch_tf.layers.attention import HEAD_AXES, Attention, KeyValues
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.moe import SwitchFeedForward, expert_matmul, weights_of
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes


class AttentionExperts(Layer):
    """E experts that project a token to a query and to a vector that is both its key and its value, for all heads.

    An expert of kind "linear" is two matrices; "feed_forward" has a ReLU layer of width H = `d_ff` below them, shared
    by both.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        d_model: int,
        num_heads: int,
        d_kv: int,
        kind: str = "linear",
        d_ff: int = 0,
        initializer_scale: float = 0.1,
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.num_experts = num_experts
        self.d_model = d_model
        self.num_heads = num_heads
        self.d_kv = d_kv
        self.kind = kind
        self.d_ff = d_ff
        self.output_width = 2 * num_heads * d_kv
        self.initializer_scale = initializer_scale

    def build(self, input_shape: Any = None) -> None:
        scale, width = self.initializer_scale, self.d_model
        if self.kind == "feed_forward":
            shape, names = (self.num_experts, width, self.d_ff), (axes.EXPERTS, axes.EMBED, axes.EXPERT_MLP)
            self.wi = self.weight("wi", shape, names, initializers.variance_scaling(scale, width))
            width = self.d_ff
        # Rows are named EMBED in both kinds: EXPERT_MLP rows would compete with HEADS for one mesh dimension.
        shape, names = (self.num_experts, width, self.num_heads * self.d_kv), (axes.EXPERTS, axes.EMBED, axes.HEADS)
        # As in dense attention, the query's initialization divides the logits by sqrt(d_kv).
        self.query = self.weight("query", shape, names, initializers.variance_scaling(scale, width * self.d_kv))
        self.key_value = self.weight("key_value", shape, names, initializers.variance_scaling(scale, width))
        self.built = True

    def call(self, slots: tf.Tensor, context: ForwardContext = INFERENCE) -> tf.Tensor:
        """Applies expert e to slots[e].

        Args:
          slots: [E, G, C, M].
          context: unused; there is no dropout here.

        Returns:
          [E, G, C, 2 N K]: queries, then the shared keys and values.
        """
        del context
        x = self.cast(slots)
        if self.kind == "feed_forward":
            x = tf.nn.relu(expert_matmul(x, self.cast(self.wi)))
        projections = [expert_matmul(x, self.cast(kernel)) for kernel in (self.query, self.key_value)]
        # Gathered before they are joined: a shard of the heads is not a shard of the joined dimension.
        whole = (axes.EXPERTS, axes.GROUPS, axes.SLOTS, None)
        return tf.concat([axes.constrain(projection, whole) for projection in projections], axis=-1)

    def apply_chosen(self, expert: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """Applies experts (int32 [...]) to tokens [..., B, M]: [..., B, 2 N K]."""
        x = self.cast(tokens)
        if self.kind == "feed_forward":
            x = tf.nn.relu(x @ self.cast(weights_of(expert, self.wi)))
        tables = (self.query, self.key_value)
        return tf.concat([x @ self.cast(weights_of(expert, table)) for table in tables], axis=-1)


class SwitchSelfAttention(Attention):
    """Self-attention in which each token's query, key and value come from one expert out of many.

    The router's gate multiplies all of them, as in Figure 10. A dropped token has a query, key and value of zero: it
    attends by the position bias alone, and others attend to it by the position bias alone.
    """

    def __init__(self, *, projections: SwitchFeedForward, **settings: Any):
        """Makes the layer.

        Args:
          projections: a sparse layer whose experts are `AttentionExperts`.
          **settings: of `Attention`.
        """
        super().__init__(**settings)
        self.projections = projections

    def build(self, input_shape: Any = None) -> None:
        self.projections.build()
        super().build(input_shape)

    def project_self(
        self, x: tf.Tensor, context: ForwardContext = INFERENCE
    ) -> tuple[tf.Tensor, KeyValues, Routing | None]:
        """Sends every token of [B, L, M] through its expert; see `Attention.project_self`."""
        y, routing = self.projections(x, context=context)
        batch, length, _ = y.shape

        def heads(projection: tf.Tensor) -> tf.Tensor:
            # Sharded over heads only after the split: a shard of the heads is not a shard of the joined dimension.
            projection = axes.constrain(projection, (axes.BATCH, axes.LENGTH, None))
            projection = tf.reshape(projection, [batch, length, self.num_heads, self.d_kv])
            return axes.constrain(tf.transpose(projection, [0, 2, 1, 3]), HEAD_AXES)

        query, key_value = (heads(projection) for projection in tf.split(y, 2, axis=-1))
        return query, KeyValues(key_value, key_value), routing
