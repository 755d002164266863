"""Switch self-attention (App. A): queries, and keys shared with values, come from each token's own expert."""

import tensorflow as tf

from switch_tf.layers import initializers
from switch_tf.layers.attention import HEAD_AXES, Attention, KeyValues
from switch_tf.layers.base import Layer
from switch_tf.layers.moe import SwitchFeedForward, batched_product
from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes


class AttentionExperts(Layer):
    """E experts that make a query and a vector that is both key and value, for all heads.

    "linear" is one product; "feed_forward" has a ReLU layer of width H before it, that both products share.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        d_model: int,
        num_heads: int,
        d_kv: int,
        kind: str = "linear",
        d_ff: int | None = None,
        initializer_scale: float = 0.1,
        dtype=None,
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

    def build(self, input_shape=None):
        scale, width = self.initializer_scale, self.d_model
        if self.kind == "feed_forward":
            shape, names = (self.num_experts, width, self.d_ff), (axes.EXPERTS, axes.EMBED, axes.EXPERT_MLP)
            self.wi = self.weight("wi", shape, names, initializers.variance_scaling(scale, width))
            width = self.d_ff
        # The rows are EMBED's in both kinds: HEADS and EXPERT_MLP of one weight would ask for the same mesh dimension.
        shape, names = (self.num_experts, width, self.num_heads * self.d_kv), (axes.EXPERTS, axes.EMBED, axes.HEADS)
        # As in dense attention, the division of the logits by sqrt(d_kv) is folded into the query's initialisation.
        self.query = self.weight("query", shape, names, initializers.variance_scaling(scale, width * self.d_kv))
        self.key_value = self.weight("key_value", shape, names, initializers.variance_scaling(scale, width))
        self.built = True

    def call(self, slots: tf.Tensor, training: bool = False, seed: int | tf.Tensor = 0) -> tf.Tensor:
        """Applies expert e to slots[e].

        Args:
          slots: [E, G, C, M].
          training: ignored; nothing is random here.
          seed: ignored.

        Returns:
          [E, G, C, 2 N K]: queries, then keys that are values.
        """
        del training, seed
        x = self.cast(slots)
        if self.kind == "feed_forward":
            x = tf.nn.relu(batched_product(x, self.cast(self.wi)))
        products = [batched_product(x, self.cast(kernel)) for kernel in (self.query, self.key_value)]
        # Whole before they are joined: what splits heads does not split the pair.
        whole = (axes.EXPERTS, axes.GROUPS, axes.SLOTS, None)
        return tf.concat([axes.constrain(product, whole) for product in products], axis=-1)

    def apply_one(self, expert: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """Applies one expert (int32 scalar) to [B, M] tokens: [B, 2 N K]."""
        x = self.cast(tokens)
        if self.kind == "feed_forward":
            x = tf.nn.relu(x @ self.cast(tf.gather(self.wi, expert)))
        return tf.concat([x @ self.cast(tf.gather(kernel, expert)) for kernel in (self.query, self.key_value)], axis=-1)


class SwitchSelfAttention(Attention):
    """Attention of which each token makes its query, key and value in one expert out of many.

    The router's gate multiplies both, as in Figure 10. A token that finds no slot has a query and a key of zero: it
    looks at all alike, and is looked at by position alone.
    """

    def __init__(self, *, projections: SwitchFeedForward, **settings):
        """Makes the layer.

        Args:
          projections: a sparse layer whose experts are `AttentionExperts`.
          **settings: of `Attention`.
        """
        super().__init__(**settings)
        self.projections = projections

    def build(self, input_shape=None):
        self.projections.build()
        super().build(input_shape)

    def project_self(
        self,
        x: tf.Tensor,
        token_mask: tf.Tensor | None = None,
        training: bool = False,
        seed: int | tf.Tensor = 0,
        dropless: bool = False,
    ) -> tuple[tf.Tensor, KeyValues, Routing]:
        """Sends every token of [B, L, M] through its expert; see `Attention.project_self`."""
        y, routing = self.projections(x, token_mask=token_mask, training=training, seed=seed, dropless=dropless)
        batch, length, _ = y.shape

        def heads(part: tf.Tensor) -> tf.Tensor:
            # Whole until it is cut into heads: what splits heads does not split the pair of query and key.
            part = axes.constrain(part, (axes.BATCH, axes.LENGTH, None))
            part = tf.reshape(part, [batch, length, self.num_heads, self.d_kv])
            return axes.constrain(tf.transpose(part, [0, 2, 1, 3]), HEAD_AXES)

        query, key_value = (heads(part) for part in tf.split(y, 2, axis=-1))
        return query, KeyValues(key_value, key_value), routing
