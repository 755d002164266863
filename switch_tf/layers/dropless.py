"""Dropless expert layers for evaluation and decoding: every token gets its experts, without padding to a capacity.

Tokens are sorted by expert and processed in blocks of one expert each (after the blocks of Gale et al. 2022); few
tokens, as in a step of decoding, go through small experts at once. A token's result does not depend on the rest of the
batch, and the weights of experts that no token chose are not read.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from switch_tf.layers.routing import Routing

# Large enough for an efficient matmul, small enough that the last, partly filled block of an expert wastes little.
MAX_BLOCK_SIZE = 128
# Up to this number, a copy of its expert's weights for every token costs less than a loop over blocks.
MAX_COPIED_WEIGHTS = 2**21


class Blocks(NamedTuple):
    """Tokens sorted by expert and split into blocks; A assignments (token, choice) in T blocks of B places.

    assignment: int32 [T, B], the assignment in each place; an arbitrary one in an unused place.
    expert: int32 [T], the expert of each block.
    num_used: int32 [], how many blocks, counted from the first, hold tokens.
    place: int32 [A], the place in [T * B] of each assignment.
    """

    assignment: tf.Tensor
    expert: tf.Tensor
    num_used: tf.Tensor
    place: tf.Tensor


def blocks_of(expert: tf.Tensor, num_experts: int, block_size: int) -> Blocks:
    """Sorts assignments by expert and cuts them into blocks.

    Args:
      expert: int32 [A]; `num_experts` for an assignment without an expert.
      num_experts: E.
      block_size: B.

    Returns:
      The blocks; T = min(A, A // B + E) is enough for every distribution over the experts.
    """
    assignments = expert.shape[0]
    max_blocks = min(assignments, assignments // block_size + num_experts)
    order = tf.argsort(expert, stable=True)
    bounds = tf.searchsorted(tf.gather(expert, order), tf.range(num_experts + 1), side="left")
    first, count = bounds[:-1], bounds[1:] - bounds[:-1]
    blocks_until = tf.cumsum((count + block_size - 1) // block_size)
    blocks_before = tf.concat([[0], blocks_until[:-1]], axis=0)

    block = tf.range(max_blocks)
    expert_of_block = tf.minimum(tf.searchsorted(blocks_until, block, side="right"), num_experts - 1)
    start = tf.gather(first - blocks_before * block_size, expert_of_block) + block * block_size
    rank = tf.expand_dims(start, 1) + tf.expand_dims(tf.range(block_size), 0)
    known = tf.minimum(expert, num_experts - 1)
    place = tf.argsort(order) + tf.gather(blocks_before * block_size - first, known)
    return Blocks(
        assignment=tf.gather(order, tf.clip_by_value(rank, 0, assignments - 1)),
        expert=expert_of_block,
        num_used=blocks_until[-1],
        place=tf.clip_by_value(place, 0, max_blocks * block_size - 1),
    )


def block_size_for(assignments: int, num_experts: int) -> int:
    """Chooses B: the mean number of tokens per expert, rounded up to a power of two, at most `MAX_BLOCK_SIZE`."""
    size = 1
    while size < MAX_BLOCK_SIZE and size * num_experts < assignments:
        size *= 2
    return size


def apply_dropless(
    routing: Routing,
    tokens: tf.Tensor,
    expert_function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    width: int,
    expert_size: int,
) -> tf.Tensor:
    """Applies to every token its experts and adds their outputs, weighted by the gates.

    Args:
      routing: with a slot for every choice that is to be used.
      tokens: [G, S, M].
      expert_function: (expert, int32 [...]; tokens [..., B, M]) -> those experts' outputs [..., B, W].
      width: W.
      expert_size: how many weights an expert has.

    Returns:
      [G, S, W], dtype of the tokens; 0 for padding.
    """
    groups, size, choices = routing.slot.shape
    num_experts = routing.filled.shape[-1]
    assignments = groups * size * choices
    has_slot = routing.slot < num_experts * routing.capacity
    expert = tf.reshape(tf.where(has_slot, routing.expert, num_experts), [assignments])
    rows = tf.reshape(tokens, [groups * size, tokens.shape[-1]])
    # The gate of an assignment without an expert is 0.
    known = tf.minimum(expert, num_experts - 1)
    if assignments == 1:
        taken = expert_function(tf.reshape(known, []), rows)
    elif assignments * expert_size <= MAX_COPIED_WEIGHTS:
        taken = expert_function(known, tf.expand_dims(tf.repeat(rows, choices, axis=0), 1))
    else:
        taken = _by_blocks(rows, expert, choices, num_experts, expert_function, width)
    weighted = tf.reshape(taken, [groups, size, choices, width]) * tf.cast(
        tf.expand_dims(routing.gate, -1), taken.dtype
    )
    return tf.reduce_sum(weighted, axis=2)


def _by_blocks(
    rows: tf.Tensor,
    expert: tf.Tensor,
    choices: int,
    num_experts: int,
    expert_function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    width: int,
) -> tf.Tensor:
    """Applies experts block by block.

    Args:
      rows: [A / choices, M].
      expert: int32 [A], `num_experts` for an assignment without an expert.
      choices: how many assignments each row has.
      num_experts: E.
      expert_function: see `apply_dropless`.
      width: W.

    Returns:
      [A, W]; arbitrary for an assignment without an expert.
    """
    blocks = blocks_of(expert, num_experts, block_size_for(expert.shape[0], num_experts))
    max_blocks, block_size = blocks.assignment.shape
    token_of_place = blocks.assignment // choices

    def apply_block(block: tf.Tensor, outputs: tf.TensorArray) -> tuple[tf.Tensor, tf.TensorArray]:
        block_tokens = tf.gather(rows, tf.gather(token_of_place, block))
        output = expert_function(tf.gather(blocks.expert, block), block_tokens)
        return block + 1, outputs.write(block, output)

    outputs = tf.TensorArray(rows.dtype, max_blocks, element_shape=[block_size, width])
    _, outputs = tf.while_loop(
        lambda block, _: block < blocks.num_used,
        apply_block,
        (tf.constant(0), outputs),
        maximum_iterations=max_blocks,
    )
    return tf.gather(tf.reshape(outputs.stack(), [-1, width]), blocks.place)
