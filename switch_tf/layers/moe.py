"""The Switch feed-forward layer: a router, a dispatcher and experts (Sec. 2.1, App. F)."""

import math
from typing import Any

import keras
import tensorflow as tf

from switch_tf.errors import SettingError
from switch_tf.layers import initializers
from switch_tf.layers.base import Layer
from switch_tf.layers.context import INFERENCE, ForwardContext
from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.dropless import apply_dropless
from switch_tf.layers.dropout import Dropout
from switch_tf.layers.feed_forward import activate, input_projection_names
from switch_tf.layers.rematerialization import rematerialized
from switch_tf.layers.router_base import Router
from switch_tf.layers.routing import Routing, expert_capacity
from switch_tf.partitioning import axes
from switch_tf.partitioning.layout import divisors

# Groups and experts are sharded over the same mesh dimension, which goes to the first of them in a tensor: resharding
# from one to the other is the all-to-all that sends every token to its expert's device, or back.
_SLOTS_AT_TOKENS = (None, axes.GROUPS, axes.SLOTS, axes.EMBED)
_SLOTS_AT_EXPERTS = (axes.EXPERTS, axes.GROUPS, axes.SLOTS, axes.EMBED)
_HIDDEN_AXES = (axes.EXPERTS, axes.GROUPS, axes.SLOTS, axes.EXPERT_MLP)


def tokens_per_group(num_tokens: int, group_size: int, num_shards: int = 1) -> int:
    """Returns the size of equal groups of at most `group_size` tokens, with as many groups on each device.

    A GROUP_SIZE that divides one device's tokens gives the same groups, and so the same losses, on every mesh.

    Args:
      num_tokens: B * L.
      group_size: the most tokens that a group may have.
      num_shards: how many devices the groups are sharded over; the number of groups is a multiple of it.

    Returns:
      S, the largest divisor of one device's tokens that is not above `group_size`.

    Raises:
      SettingError: if the devices cannot have equally many tokens, or the divisor is less than half of `group_size`:
        much smaller groups drop more tokens than the capacity factor suggests.
    """
    if group_size < 1:
        raise SettingError(f"GROUP_SIZE = {group_size} must be at least 1.")
    if num_tokens % num_shards:
        raise SettingError(
            f"A batch of {num_tokens} tokens cannot be sharded over {num_shards} devices: choose a BATCH_SIZE that is "
            f"a multiple of {num_shards}."
        )
    num_tokens //= num_shards
    if num_tokens <= group_size:
        return num_tokens
    sizes = divisors(num_tokens)
    size = max(size for size in sizes if size <= group_size)
    if 2 * size < group_size:
        on_each_device = "on each device " if num_shards > 1 else ""
        larger = min(size for size in sizes if size > group_size)
        raise SettingError(
            f"GROUP_SIZE = {group_size} cannot hold a batch of {num_tokens} tokens {on_each_device}in equal "
            f"groups: set it to {larger} or {size}, or choose a BATCH_SIZE whose tokens divide."
        )
    return size


def expert_matmul(slots: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Multiplies the slots of expert e with the weights of expert e.

    Equals the einsum "egcm,emh->egch" with a faster gradient: TensorFlow computes the einsum's weight gradient as
    [E, H, M] and transposes it, which with many experts takes as long as the matmul itself.

    Args:
      slots: [E, G, C, M].
      weights: [E, M, H], same dtype.

    Returns:
      [E, G, C, H].
    """
    experts, groups, capacity, width = slots.shape
    outputs = tf.matmul(tf.reshape(slots, [experts, groups * capacity, width]), weights)
    return tf.reshape(outputs, [experts, groups, capacity, weights.shape[-1]])


def weights_of(expert: tf.Tensor, table: keras.Variable) -> tf.Tensor:
    """Returns the weights of experts (int32 [...]) out of [E, ...]: those of one (a scalar) without a copy."""
    if expert.shape.rank:
        return tf.gather(table, expert)
    # A slice along the first dimension shares its memory; a gather would copy.
    return tf.convert_to_tensor(table)[expert]


class Experts(Layer):
    """E feed-forward networks of one shape, each with its own weights, applied to its own slots.

    `SwitchFeedForward` takes any layer with `num_experts`, `output_width`, `call` and `apply_chosen` as its experts.
    """

    def __init__(
        self,
        *,
        num_experts: int,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        dropout_rate: float = 0.0,
        initializer_scale: float = 0.1,
        rematerialize: bool = False,
        dtype: Any = None,
        name: str | None = None,
    ):
        super().__init__(dtype=dtype, name=name)
        self.num_experts = num_experts
        self.d_model = d_model
        self.d_ff = d_ff
        self.output_width = d_model
        self.activation = activation
        self.initializer_scale = initializer_scale
        self.rematerialize = rematerialize
        self.dropout = Dropout(dropout_rate, dtype=dtype, name="dropout")

    def build(self, input_shape: Any = None) -> None:
        # Fan-in is that of one expert: the expert dimension does not count (Sec. 2.4).
        into = initializers.variance_scaling(self.initializer_scale, self.d_model)
        out_of = initializers.variance_scaling(self.initializer_scale, self.d_ff)
        in_shape = (self.num_experts, self.d_model, self.d_ff)
        out_shape = (self.num_experts, self.d_ff, self.d_model)
        self.wi = [
            self.weight(name, in_shape, (axes.EXPERTS, axes.EMBED, axes.EXPERT_MLP), into)
            for name in input_projection_names(self.activation)
        ]
        self.wo = self.weight("wo", out_shape, (axes.EXPERTS, axes.EXPERT_MLP, axes.EMBED), out_of)
        self.dropout.build()
        self.built = True

    def call(self, slots: tf.Tensor, context: ForwardContext = INFERENCE) -> tf.Tensor:
        """Applies expert e to slots[e].

        Args:
          slots: [E, G, C, M].
          context: of the forward pass; expert dropout reads it. It drops hidden activations only (Sec. 2.4, "Expert
            dropout").

        Returns:
          [E, G, C, M] in the compute dtype.
        """

        def transformed(slots: tf.Tensor) -> tf.Tensor:
            hidden = activate([expert_matmul(slots, self.cast(wi)) for wi in self.wi])
            hidden = axes.constrain(hidden, _HIDDEN_AXES)
            hidden = self.dropout(hidden, context=context, axes=_HIDDEN_AXES)
            return expert_matmul(hidden, self.cast(self.wo))

        slots = self.cast(slots)
        if self.rematerialize and context.training:
            return rematerialized(transformed, self.variables, [slots])
        return transformed(slots)

    def apply_chosen(self, expert: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        """Applies experts (int32 [...]), without dropout, to tokens [..., B, M]; reads no other expert's weights."""
        tokens = self.cast(tokens)
        hidden = activate([tokens @ self.cast(weights_of(expert, wi)) for wi in self.wi])
        return hidden @ self.cast(weights_of(expert, self.wo))


class SwitchFeedForward(Layer):
    """A feed-forward layer in which each token uses one expert out of many."""

    def __init__(
        self,
        *,
        router: Router,
        experts: Experts,
        group_size: int | None = 4096,
        capacity_factor: float = 1.25,
        eval_capacity_factor: float | None = 2.0,
        min_expert_capacity: int = 4,
        fixed_capacity: int | None = None,
        dispatcher: str = "gather",
        dtype: Any = None,
        name: str | None = None,
    ):
        """Makes the layer.

        Args:
          router: assigns tokens to experts.
          experts: the expert networks.
          group_size: the most tokens that compete for one set of slots; None makes each sequence a group.
          capacity_factor: expert slots per token in training (Eq. 3).
          eval_capacity_factor: the same outside of training; None: dropless.
          min_expert_capacity: the fewest slots of an expert in a group.
          fixed_capacity: an expert's slots in a group, instead of the factors and the minimum.
          dispatcher: "gather" or "einsum".
          dtype: dtype policy of the experts' side; the router has its own.
          name: Keras name.

        Raises:
          SettingError: if the dispatcher is unknown.
        """
        super().__init__(dtype=dtype, name=name)
        if dispatcher not in DISPATCHERS:
            raise SettingError(f"dispatcher = '{dispatcher}' is unknown; choose one of {sorted(DISPATCHERS)}.")
        self.router = router
        self.experts = experts
        self.group_size = group_size
        self.capacity_factor = capacity_factor
        self.eval_capacity_factor = eval_capacity_factor
        self.min_expert_capacity = min_expert_capacity
        self.fixed_capacity = fixed_capacity
        self.dispatcher = dispatcher

    def build(self, input_shape: Any = None) -> None:
        self.router.build()
        self.experts.build()
        self.built = True

    def _tokens_per_group(self, batch: int, length: int, is_dropless: bool) -> int:
        # Without drops, tokens do not compete for slots: each sequence can be a group, in any batch.
        if is_dropless or self.group_size is None:
            return length
        return tokens_per_group(batch * length, self.group_size, axes.num_shards(axes.GROUPS))

    def num_slots(self, batch: int, length: int, context: ForwardContext = INFERENCE) -> int:
        """Returns how many slots, filled or empty, all experts together have for a batch [B, L]: G * E * C."""
        is_dropless = self._is_dropless(context)
        size = self._tokens_per_group(batch, length, is_dropless)
        return batch * length // size * self.experts.num_experts * self._capacity(size, context.training, is_dropless)

    def _is_dropless(self, context: ForwardContext) -> bool:
        is_asked_for = context.dropless or self.eval_capacity_factor is None
        return is_asked_for and not context.training and self.router.tokens_choose_experts

    def _capacity(self, group_size: int, training: bool, is_dropless: bool) -> int:
        if is_dropless:
            return group_size
        if self.fixed_capacity is not None:
            return min(group_size, self.fixed_capacity)
        factor = self.capacity_factor
        # None where experts choose: evaluation cannot be dropless then, and has the training capacity.
        if not training and self.eval_capacity_factor is not None:
            factor = self.eval_capacity_factor
        return expert_capacity(group_size, self.experts.num_experts, factor, self.min_expert_capacity)

    def call(self, x: tf.Tensor, context: ForwardContext = INFERENCE) -> tuple[tf.Tensor, Routing]:
        """Sends every token through its expert: y = p_i(x) E_i(x), with i = argmax p(x).

        Args:
          x: [B, L, M], with B and L static.
          context: of the forward pass.

        Returns:
          ([B, L, W] in the compute dtype, 0 for a dropped token; W is the experts' `output_width`. The routing).
        """
        batch, length, width = x.shape
        is_dropless = self._is_dropless(context)
        size = self._tokens_per_group(batch, length, is_dropless)
        groups = batch * length // size
        tokens = tf.reshape(self.cast(x), [groups, size, width])
        tokens = axes.constrain(tokens, (axes.GROUPS, None, axes.EMBED))
        mask = tf.ones([groups, size])
        if context.token_mask is not None:
            mask = tf.cast(tf.reshape(context.token_mask, [groups, size]), tf.float32)

        capacity = self._capacity(size, context.training, is_dropless)
        routing = self.router(tokens, mask, capacity=capacity, context=context)
        # In a partitioned program, a loop over blocks would all-gather the expert weights: use slots instead.
        if is_dropless and not axes.is_partitioned():
            expert_size = sum(math.prod(weight.shape[1:]) for weight in self.experts.variables)
            y = apply_dropless(routing, tokens, self.experts.apply_chosen, self.experts.output_width, expert_size)
        else:
            y = self._through_slots(routing, tokens, context)
        y = axes.constrain(y, (axes.GROUPS, None, axes.EMBED))
        return tf.reshape(y, [batch, length, y.shape[-1]]), routing

    def _through_slots(self, routing: Routing, tokens: tf.Tensor, context: ForwardContext) -> tf.Tensor:
        """Dispatches tokens [G, S, M] to expert slots, applies the experts and combines their outputs: [G, S, W]."""
        dispatcher = DISPATCHERS[self.dispatcher](routing)
        slots = dispatcher.dispatch(tokens)
        # One all-to-all each way, where experts are sharded.
        slots = axes.reshard(slots, _SLOTS_AT_TOKENS, _SLOTS_AT_EXPERTS)
        outputs = self.experts(slots, context=context)
        outputs = axes.reshard(outputs, _SLOTS_AT_EXPERTS, _SLOTS_AT_TOKENS)
        return dispatcher.combine(outputs)
