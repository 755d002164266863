"""Dispatchers move tokens to expert slots and combine the experts' outputs. They read a `Routing` and have no weights.

All of them implement one contract and are tested against each other:
  dispatch: tokens [G, S, M] -> slots [E, G, C, M]; the expert dimension first.
  combine: slots [E, G, C, M] -> tokens [G, S, M], each the sum over its experts of gate * output; 0 for a token
    without a slot.
The contents of an empty slot are undefined; no output and no gradient depends on them.
"""

import abc
from collections.abc import Callable

import tensorflow as tf

from switch_tf.layers.routing import Routing
from switch_tf.partitioning import axes


class Dispatcher(abc.ABC):
    """Moves tokens from their positions in a group to expert slots, and back."""

    def __init__(self, routing: Routing):
        self.routing = routing
        self.num_experts = routing.filled.shape[-1]

    @abc.abstractmethod
    def dispatch(self, tokens: tf.Tensor) -> tf.Tensor:
        """[G, S, M] -> [E, G, C, M], same dtype."""

    @abc.abstractmethod
    def combine(self, slots: tf.Tensor) -> tf.Tensor:
        """[E, G, C, M] -> [G, S, M], same dtype, weighted by the gates."""


class EinsumDispatcher(Dispatcher):
    """Matmuls with [G, S, E, C] masks, as in Mesh TensorFlow. The reference: simple, and slow with many experts."""

    def __init__(self, routing: Routing):
        super().__init__(routing)
        self._expert = tf.one_hot(routing.expert, self.num_experts, dtype=tf.float32)
        # C or more for a token without a slot, which one_hot maps to zeros.
        position = routing.slot - routing.expert * routing.capacity
        self._position = tf.one_hot(position, routing.capacity, dtype=tf.float32)

    def dispatch(self, tokens: tf.Tensor) -> tf.Tensor:
        mask = tf.einsum("gske,gskc->gsec", self._expert, self._position)
        return tf.einsum("gsec,gsm->egcm", tf.cast(mask, tokens.dtype), tokens)

    def combine(self, slots: tf.Tensor) -> tf.Tensor:
        gates = tf.einsum("gsk,gske,gskc->gsec", self.routing.gate, self._expert, self._position)
        return tf.einsum("gsec,egcm->gsm", tf.cast(gates, slots.dtype), slots)


class GatherDispatcher(Dispatcher):
    """Gathers only, in both directions and in the gradients: no scatter and no [S, E, C] tensor.

    The slot of each token and the token of each slot are inverse maps, so that the gradient of either gather is the
    other gather.
    """

    def __init__(self, routing: Routing):
        super().__init__(routing)
        groups, size, choices = routing.slot.shape
        capacity, num_slots = routing.capacity, self.num_experts * routing.capacity
        slot = tf.reshape(routing.slot, [groups, size * choices])
        # Sorted by slot: the tokens of an expert are contiguous and in order; tokens without a slot come last.
        order = tf.argsort(slot, axis=-1, stable=True)
        start = tf.cumsum(routing.filled, axis=-1, exclusive=True)
        place = tf.reshape(tf.range(capacity), [1, 1, capacity])
        rank = tf.minimum(tf.expand_dims(start, -1) + place, size * choices - 1)
        is_filled = place < tf.expand_dims(routing.filled, -1)
        # The assignment (token * K + choice) in each slot; an arbitrary one in an empty slot.
        self._assignment = tf.gather(order, tf.reshape(rank, [groups, num_slots]), batch_dims=1)
        self._token = self._assignment // choices
        self._is_filled = tf.reshape(is_filled, [groups, num_slots])
        self._has_slot = slot < num_slots
        self._may_lack_empty_slots = num_slots < size * choices
        self._slot = tf.where(self._has_slot, slot, self._some_empty_slot())

    def _some_empty_slot(self) -> tf.Tensor:
        """Returns the last slot of the emptiest expert, int32 [G, 1]: empty, unless all slots are filled."""
        emptiest = tf.argmax(-self.routing.filled, axis=-1, output_type=tf.int32)
        return tf.expand_dims((emptiest + 1) * self.routing.capacity - 1, -1)

    def dispatch(self, tokens: tf.Tensor) -> tf.Tensor:
        groups, size, choices = self.routing.slot.shape

        @tf.custom_gradient
        def to_slots(tokens: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            def gradient(slots_gradient: tf.Tensor) -> tf.Tensor:
                taken = _outputs_of_slots(slots_gradient, self._slot)
                # The gradient of an empty slot is 0, since no output depends on it.
                if self._may_lack_empty_slots:
                    taken *= tf.cast(tf.expand_dims(self._has_slot, -1), taken.dtype)
                if choices == 1:
                    return taken
                return tf.reduce_sum(tf.reshape(taken, [groups, size, choices, taken.shape[-1]]), axis=2)

            return _tokens_in_slots(tokens, self._token, self.num_experts), gradient

        return to_slots(tokens)

    def combine(self, slots: tf.Tensor) -> tf.Tensor:
        groups, size, choices = self.routing.slot.shape

        @tf.custom_gradient
        def to_tokens(slots: tf.Tensor, gate: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            taken = _outputs_of_slots(slots, self._slot)
            taken = tf.reshape(taken, [groups, size, choices, taken.shape[-1]])
            weights = tf.cast(tf.expand_dims(gate, -1), slots.dtype)

            def gradient(tokens_gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                gate_of_slot = tf.gather(tf.reshape(gate, [groups, size * choices]), self._assignment, batch_dims=1)
                gate_of_slot = tf.where(self._is_filled, gate_of_slot, 0.0)
                gate_of_slot = tf.expand_dims(tf.cast(gate_of_slot, slots.dtype), -1)
                slots_gradient = _tokens_in_slots(tokens_gradient, self._token, self.num_experts)
                slots_gradient *= _expert_first(gate_of_slot, self.num_experts)
                # Not an einsum, which would become G * S * K matmuls of one row.
                agreement = tf.cast(taken, gate.dtype) * tf.cast(tf.expand_dims(tokens_gradient, 2), gate.dtype)
                return slots_gradient, tf.reduce_sum(agreement, axis=-1)

            return tf.reduce_sum(taken * weights, axis=2), gradient

        return to_tokens(slots, self.routing.gate)


def _tokens_in_slots(tokens: tf.Tensor, token: tf.Tensor, num_experts: int) -> tf.Tensor:
    """Gathers tokens [G, S, M] into slots [E, G, C, M] by the token of each slot, int32 [G, E * C]."""
    if axes.is_partitioned():
        # Within each group, which one device holds.
        return _expert_first(tf.gather(tokens, token, batch_dims=1), num_experts)
    groups, size, width = tokens.shape
    # In the order of the slots: a gather within each group would have to be transposed.
    row = token + size * tf.expand_dims(tf.range(groups), 1)
    return tf.gather(tf.reshape(tokens, [groups * size, width]), _expert_first(row, num_experts))


def _outputs_of_slots(slots: tf.Tensor, slot: tf.Tensor) -> tf.Tensor:
    """Gathers slots [E, G, C, M] into tokens [G, A, M] by the slot of each assignment, int32 [G, A]."""
    experts, groups, capacity, width = slots.shape
    if axes.is_partitioned():
        group_first = tf.reshape(tf.transpose(slots, [1, 0, 2, 3]), [groups, experts * capacity, width])
        return tf.gather(group_first, slot, batch_dims=1)
    expert, place = slot // capacity, slot % capacity
    row = (expert * groups + tf.expand_dims(tf.range(groups), 1)) * capacity + place
    return tf.gather(tf.reshape(slots, [experts * groups * capacity, width]), row)


def _expert_first(slots: tf.Tensor, num_experts: int) -> tf.Tensor:
    """Reorders what the slots of each group hold: [G, E * C, ...] -> [E, G, C, ...]."""
    groups, _, *rest = slots.shape
    split = tf.reshape(slots, [groups, num_experts, -1, *rest])
    return tf.transpose(split, [1, 0, *range(2, split.shape.rank)])


DISPATCHERS: dict[str, type[Dispatcher]] = {"gather": GatherDispatcher, "einsum": EinsumDispatcher}
