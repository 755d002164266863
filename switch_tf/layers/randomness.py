"""Noise that is a function of (seed, position), so that a run draws the same numbers on every mesh.

The numbers of TensorFlow's stateless random ops depend on the DTensor layout, because each shard has its own seed. Here
each element's bits are an integer hash of its coordinates, computed locally on every device.
"""

import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from switch_tf.partitioning import axes as axis_names
from switch_tf.partitioning.axes import Axes

# The 32-bit finalizer "lowbias32" (C. Wellons, hash-prospector): each input bit flips each output bit with p = 0.5.
_FIRST_MULTIPLIER = 0x7FEB352D
_SECOND_MULTIPLIER = 0x846CA68B
# The bits of the golden ratio: odd, and neighboring coordinates map to distant words.
_COORDINATE_MULTIPLIER = 0x9E3779B9
_MASK = 0xFFFFFFFF


def _word(value: int) -> tf.Tensor:
    return tf.constant(value & _MASK, tf.uint32)


class _Constants(NamedTuple):
    """What every round of the hash needs. In a graph a constant is an operation, so several rounds share them."""

    sixteen: tf.Tensor
    fifteen: tf.Tensor
    first_multiplier: tf.Tensor
    second_multiplier: tf.Tensor


def _constants() -> _Constants:
    return _Constants(_word(16), _word(15), _word(_FIRST_MULTIPLIER), _word(_SECOND_MULTIPLIER))


def _mix(bits: tf.Tensor, constants: _Constants) -> tf.Tensor:
    xor, shift = tf.bitwise.bitwise_xor, tf.bitwise.right_shift
    bits = xor(bits, shift(bits, constants.sixteen)) * constants.first_multiplier
    bits = xor(bits, shift(bits, constants.fifteen)) * constants.second_multiplier
    return xor(bits, shift(bits, constants.sixteen))


def _mix_int(bits: int) -> int:
    """The same of a Python int."""
    bits = (bits ^ bits >> 16) * _FIRST_MULTIPLIER & _MASK
    bits = (bits ^ bits >> 15) * _SECOND_MULTIPLIER & _MASK
    return bits ^ bits >> 16


def as_seed(seed: int | tf.Tensor) -> tf.Tensor:
    """Returns `seed` (a Python int or an integer tensor) as a scalar uint32, its low 32 bits."""
    return _word(seed) if isinstance(seed, int) else tf.cast(seed, tf.uint32)


def fold_in(seed: int | tf.Tensor, data: int | str | tf.Tensor) -> int | tf.Tensor:
    """Derives a new seed from a seed and a number or a name, as `jax.random.fold_in` does.

    Args:
      seed: int or integer scalar.
      data: int, integer scalar, or a name (its CRC-32 is taken, so that it is the same in every process).

    Returns:
      Scalar uint32, or an int if neither argument is a tensor.
    """
    if isinstance(data, str):
        data = zlib.crc32(data.encode())
    if isinstance(data, int):
        data = data * _COORDINATE_MULTIPLIER & _MASK
        if isinstance(seed, int):
            return _mix_int(_mix_int(seed & _MASK) ^ data)
    else:
        data = as_seed(data) * _word(_COORDINATE_MULTIPLIER)
    constants = _constants()
    return _mix(tf.bitwise.bitwise_xor(_mix(as_seed(seed), constants), as_seed(data)), constants)


def random_bits(
    shape: tuple[int, ...], seed: int | tf.Tensor, axes: Axes | None = None, start: tuple[int, ...] | None = None
) -> tf.Tensor:
    """Hashes the coordinates of every element of `shape`.

    Dimensions are mixed in one after the other, so that only the last round computes on the full shape and tensors of
    more than 2^32 elements do not repeat.

    Args:
      shape: static shape.
      seed: int or integer scalar.
      axes: the axis names of an activation, by which each device or replica finds the coordinates of its shard.
      start: the first coordinates, if `shape` is that of a shard of a larger tensor.

    Returns:
      uint32 of `shape`, uniform over all 32-bit words.
    """
    return bits_at(_coordinates(shape, axes, start), seed)


def _coordinates(
    shape: tuple[int, ...], axes: Axes | None = None, start: tuple[int, ...] | None = None
) -> list[tf.Tensor | np.ndarray]:
    """Returns the coordinates along each dimension, int32, broadcastable to `shape`."""
    coordinates = []
    for dimension, size in enumerate(shape):
        ones_but_one = [1] * len(shape)
        ones_but_one[dimension] = size
        coordinate = axis_names.global_indices(axes, dimension, size) if axes else np.arange(size, dtype=np.int32)
        if start is not None:
            coordinate = coordinate + start[dimension]
        reshape = np.reshape if isinstance(coordinate, np.ndarray) else tf.reshape
        coordinates.append(reshape(coordinate, ones_but_one))
    return coordinates


def bits_at(coordinates: Sequence[tf.Tensor | np.ndarray], seed: int | tf.Tensor) -> tf.Tensor:
    """Hashes coordinates, which may be any numbers; `random_bits` takes those of a whole tensor.

    Args:
      coordinates: int32, at least one, all of one rank, and broadcastable against each other.
      seed: int or integer scalar.

    Returns:
      uint32 of the shape to which the coordinates broadcast.
    """
    constants = _constants()
    bits = tf.reshape(as_seed(fold_in(seed, len(coordinates))), [1] * len(coordinates[0].shape))
    for coordinate in coordinates:
        bits = _mix(tf.bitwise.bitwise_xor(bits, _coordinate_word(coordinate)), constants)
    return bits


def _coordinate_word(coordinate: tf.Tensor | np.ndarray) -> tf.Tensor | np.ndarray:
    if isinstance(coordinate, np.ndarray):
        return (coordinate.astype(np.uint32) + np.uint32(1)) * np.uint32(_COORDINATE_MULTIPLIER)
    return (tf.bitcast(coordinate, tf.uint32) + _word(1)) * _word(_COORDINATE_MULTIPLIER)


def uniform(
    shape: tuple[int, ...], seed: int | tf.Tensor, axes: Axes | None = None, start: tuple[int, ...] | None = None
) -> tf.Tensor:
    """Draws float32 numbers of `shape`, uniform in the open interval (0, 1), in steps of 2^-23.

    Arguments as those of `random_bits`.
    """
    return uniform_of(random_bits(shape, seed, axes, start))


def uniform_of(bits: tf.Tensor) -> tf.Tensor:
    """Turns uint32 words into float32 numbers, as `uniform` draws them."""
    # 23 bits: adding 0.5 to 24 bits would round, and the largest number would be 1.
    return (tf.cast(tf.bitwise.right_shift(bits, _word(9)), tf.float32) + 0.5) * 2.0**-23


def jitter(shape: tuple[int, ...], epsilon: float, seed: int | tf.Tensor, axes: Axes | None = None) -> tf.Tensor:
    """Draws factors from U(1 - epsilon, 1 + epsilon) for whole activations, at a quarter of the cost of `uniform`.

    The bits of an element are the product of two odd words, one hashed from its last coordinate and one from the
    others: one multiplication on the full shape instead of a round of `_mix`. Any two elements are as good as
    independent, as multiplication by a random odd number is a universal hash (Dietzfelbinger et al. 1997); the low bits
    of a product are weak ones, and count least here.

    Args:
      shape: static shape, of rank 2 or more.
      epsilon: half the width of the interval.
      seed: int or integer scalar.
      axes: the axis names of an activation, as for `random_bits`.

    Returns:
      float32 of `shape`.
    """
    *rows, columns = _coordinates(shape, axes)
    odd = _word(1)
    row_words = tf.bitwise.bitwise_or(bits_at(rows, fold_in(seed, "rows")), odd)
    column_words = tf.bitwise.bitwise_or(bits_at([columns], fold_in(seed, "columns")), odd)
    # As a signed integer the word is symmetric about 0, and its conversion to float is a single CPU instruction.
    signed = tf.cast(tf.bitcast(row_words * column_words, tf.int32), tf.float32)
    return signed * (epsilon * 2.0**-31) + 1.0


def truncated_normal(
    shape: tuple[int, ...], stddev: float, seed: int | tf.Tensor, start: tuple[int, ...] | None = None
) -> tf.Tensor:
    """Draws from N(0, stddev^2) conditioned on |x| <= 2 stddev: "values beyond two sigma are resampled" (Sec. 2.4).

    As in the paper's code, `stddev` is that of the normal before truncation; the result has 0.8796 of it.

    Args:
      shape: static shape.
      stddev: standard deviation before truncation.
      seed: int or integer scalar.
      start: the first coordinates, if `shape` is that of a shard of a larger tensor.

    Returns:
      float32 of `shape`.
    """
    below_minus_two = 0.022750131948179195
    probability = below_minus_two + (1.0 - 2.0 * below_minus_two) * uniform(shape, seed, start=start)
    return stddev * tf.clip_by_value(tf.math.ndtri(probability), -2.0, 2.0)


def normal(
    shape: tuple[int, ...], stddev: float, seed: int | tf.Tensor, start: tuple[int, ...] | None = None
) -> tf.Tensor:
    """Draws float32 numbers of `shape` from N(0, stddev^2); `start` as in `truncated_normal`."""
    return stddev * tf.math.ndtri(uniform(shape, seed, start=start))
