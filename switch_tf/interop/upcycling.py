"""Experts from a dense model and back (sparse upcycling, Komatsuzaki et al. 2022), one matrix at a time."""

import functools
import re
import zlib
from collections.abc import Callable, Iterable

import numpy as np

from switch_tf.errors import SettingError
from switch_tf.interop.architecture import expected_shapes
from switch_tf.interop.lazy_tensors import LazyTensor, LazyTensors, in_memory, rows_of, stacked
from switch_tf.models.config import ModelConfig

_EXPERTS = re.compile(r"(.+/feed_forward)/experts/(\w+)")
_ROUTER = re.compile(r".+/feed_forward/router/\w+")


def dense_name(name: str) -> str | None:
    """Returns the name, in a dense model, of the matrix that a table of experts is made of; None for other weights."""
    match = _EXPERTS.fullmatch(name)
    return f"{match[1]}/{match[2]}" if match else None


def sources(names: Iterable[str]) -> dict[str, str]:
    """Says where the weights of a sparse model come from in a dense one.

    Args:
      names: of the sparse model's weights.

    Returns:
      {name: name in the dense model}; routers, which are new, are left out.
    """
    return {name: dense_name(name) or name for name in names if not _ROUTER.fullmatch(name)}


def upcycled(
    weights: LazyTensors, config: ModelConfig, source: str, noise: float = 0.0, seed: int = 0
) -> dict[str, LazyTensor]:
    """Makes the weights of a sparse model: each expert is a copy of the dense layer, routers are new.

    Args:
      weights: of a dense model, by name.
      config: of the sparse model; but for its experts it must be the dense one's.
      source: where the weights are from, for the error.
      noise: standard deviation of what is added to each expert, as a fraction of the matrix's own.
      seed: of the routers and of the noise.

    Returns:
      The sparse model's weights by name.

    Raises:
      SettingError: if the dense model is of another shape, or has experts already.
    """
    if not config.num_experts:
        raise SettingError("--upcycle makes a sparse model: set the number of experts, --gin.NUM_EXPERTS=32.")
    sparse = {}
    used = set()
    for name, shape in expected_shapes(config).items():
        dense, one = dense_name(name), shape
        if _ROUTER.fullmatch(name):
            sparse[name] = in_memory(_router(name, shape, config.initializer_scale, seed))
            continue
        if dense is not None:
            one = shape[1:]
        used.add(dense or name)
        tensor = weights.get(dense or name)
        if tensor is None or tensor.shape != one:
            there = "no such weight" if tensor is None else tensor.shape
            raise SettingError(
                f"{source} cannot be upcycled: {dense or name} is {there} there and {one} in the sparse model; give "
                "the sparse model the settings of the dense one."
            )
        sparse[name] = tensor if dense is None else _copies(name, tensor, shape[0], noise, seed)
    unused = sorted(weights.keys() - used)
    if unused:
        raise SettingError(
            f"{source} cannot be upcycled: the sparse model has no place for {unused[0]}; give it the settings of the "
            "dense one."
        )
    return sparse


def _generator(seed: int, name: str, index: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode()), index])


def _router(name: str, shape: tuple[int, ...], scale: float, seed: int) -> np.ndarray:
    """A new router's weight: the kernel with the model's own sigma = sqrt(s / M), a bias of zeros."""
    if not name.endswith("/kernel"):
        return np.zeros(shape, np.float32)
    values = _generator(seed, name).standard_normal(shape, np.float32)
    return values * np.float32((scale / shape[0]) ** 0.5)


def _copies(name: str, dense: LazyTensor, num_experts: int, noise: float, seed: int) -> LazyTensor:
    # The experts are read one after the other.
    read = functools.lru_cache(maxsize=1)(dense.read)

    def expert(index: int) -> np.ndarray:
        matrix = read()
        if not noise:
            return matrix
        random = _generator(seed, name, index).standard_normal(matrix.shape, np.float32)
        values = matrix.astype(np.float32)
        return (values + noise * values.std() * random).astype(matrix.dtype)

    return stacked(
        [LazyTensor(dense.shape, dense.dtype, functools.partial(expert, index)) for index in range(num_experts)]
    )


def densified(weights: LazyTensors, choice: str | int, source: str) -> dict[str, LazyTensor]:
    """Makes the weights of a dense model of a sparse one's: one expert of each layer, or the mean of all.

    Args:
      weights: of a sparse model, by name.
      choice: "mean", or the index of an expert.
      source: where the weights are from, for the error.

    Returns:
      The dense model's weights by name; routers are left out.

    Raises:
      SettingError: if the model is dense, or has no such expert.
    """
    if not any(dense_name(name) for name in weights):
        raise SettingError(f"{source} has no experts: leave --to_dense out.")
    dense: dict[str, LazyTensor] = {}
    for name, tensor in weights.items():
        if _ROUTER.fullmatch(name):
            continue
        rows = rows_of(tensor) if dense_name(name) else ()
        if not rows:
            dense[name] = tensor
        elif choice == "mean":
            dense[dense_name(name) or name] = LazyTensor(rows[0].shape, np.dtype(np.float32), _mean_reader(rows))
        elif int(choice) < len(rows):
            dense[dense_name(name) or name] = rows[int(choice)]
        else:
            raise SettingError(f"--to_dense={choice}: {source} has {len(rows)} experts, counted from 0.")
    return dense


def _mean_reader(rows: tuple[LazyTensor, ...]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        total = np.zeros(rows[0].shape, np.float64)
        for row in rows:
            total += row.read()
        return (total / len(rows)).astype(np.float32)

    return read
