"""Layout rules in Mesh TensorFlow's notation: which axis of a tensor is sharded over which mesh dimension."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from switch_tf.errors import SettingError, nearest
from switch_tf.partitioning.axes import AXIS_NAMES, BATCH, GROUPS, Axes, ShardIndex

# More than any machine has. Sizes are enumerated where a mesh does not fit.
_MAX_DEVICES = 2**20
_MAX_DIMENSIONS = 4


def divisors(number: int) -> list[int]:
    """Returns the divisors of a positive integer, the smallest first."""
    low = [divisor for divisor in range(1, math.isqrt(number) + 1) if number % divisor == 0]
    high = [number // divisor for divisor in reversed(low) if divisor * divisor < number]
    return low + high


def _pairs(setting: str, text: str, example: str) -> list[tuple[str, str]]:
    """Reads "a:b,c:d"."""
    pairs: list[tuple[str, str]] = []
    for part in filter(None, (part.strip() for part in text.replace(";", ",").split(","))):
        left, colon, right = (word.strip() for word in part.partition(":"))
        if not (left and colon and right):
            raise SettingError(f"{setting} = '{text}' is not of the form '{example}': see '{part}'.")
        if left in dict(pairs):
            raise SettingError(f"{setting} = '{text}' names {left} twice.")
        pairs.append((left, right))
    return pairs


def parse_mesh_shape(text: str) -> dict[str, int]:
    """Reads "data:4,model:2" as {"data": 4, "model": 2}; an empty string is a mesh of one device.

    Raises:
      SettingError: if it is not of that form, or a size is not positive, or there are too many devices.
    """
    mesh = {}
    for name, size in _pairs("MESH_SHAPE", text, "data:4,model:2"):
        if not size.isdecimal() or not size.strip("0"):
            raise SettingError(f"MESH_SHAPE = '{text}': the size of {name} must be an integer of at least 1.")
        # Python converts no longer numbers than of 4,300 digits.
        mesh[name] = int(size) if len(size) < 10 else _MAX_DEVICES + 1
    if math.prod(mesh.values()) > _MAX_DEVICES or len(mesh) > _MAX_DIMENSIONS:
        raise SettingError(
            f"MESH_SHAPE = '{text}' is larger than any machine: it may have {_MAX_DIMENSIONS} dimensions and "
            f"{_MAX_DEVICES:,} devices."
        )
    return mesh


def parse_layout_rules(text: str, mesh: Mapping[str, int]) -> dict[str, str]:
    """Reads "batch:data,heads:model" as {"batch": "data", "heads": "model"}.

    Raises:
      SettingError: if it is not of that form, or names an unknown axis or mesh dimension.
    """
    rules = dict(_pairs("LAYOUT_RULES", text, "batch:data,experts:data,heads:model"))
    for axis, dimension in rules.items():
        if axis not in AXIS_NAMES:
            known = ", ".join(sorted(AXIS_NAMES))
            raise SettingError(
                f"LAYOUT_RULES name an unknown axis '{axis}'{nearest(axis, AXIS_NAMES)}; the axes are {known}."
            )
        if dimension not in mesh:
            there = ", ".join(mesh) or "none"
            raise SettingError(
                f"LAYOUT_RULES = '{text}' map {axis} to '{dimension}'{nearest(dimension, mesh)}, which is no dimension "
                f"of MESH_SHAPE: its dimensions are {there}."
            )
    return rules


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules by which tensors are sharded over it.

    Attributes:
      mesh: sizes by name, in row-major order (the last dimension varies fastest).
      rules: mesh dimensions by axis name. Without a rule of their own, routing groups, which are made of the batch's
        tokens, are sharded like the batch.
    """

    mesh: Mapping[str, int]
    rules: Mapping[str, str]

    @classmethod
    def parse(cls, mesh_shape: str, layout_rules: str) -> "Layout":
        """Reads both in Mesh TensorFlow's notation.

        Raises:
          SettingError: if one cannot be read.
        """
        mesh = parse_mesh_shape(mesh_shape)
        return cls(mesh, parse_layout_rules(layout_rules, mesh))

    @property
    def num_devices(self) -> int:
        """The number of devices of the mesh."""
        return math.prod(self.mesh.values())

    def dimension_of(self, axis: str | None) -> str | None:
        """Returns the mesh dimension that an axis is sharded over; None if it is replicated."""
        if axis is None:
            return None
        dimension = self.rules.get(axis)
        return self.rules.get(BATCH) if dimension is None and axis == GROUPS else dimension

    def num_shards(self, axis: str | None) -> int:
        """Returns how many devices an axis is sharded over."""
        return self.size_of(self.dimension_of(axis))

    def size_of(self, dimension: str | None) -> int:
        """Returns the size of a mesh dimension; 1 for None."""
        return 1 if dimension is None else self.mesh.get(dimension, 1)

    def split(self, axes: Axes) -> tuple[str | None, ...]:
        """Returns the mesh dimension of each dimension of a tensor; one mesh dimension shards only the first."""
        taken: set[str | None] = set()
        dimensions: list[str | None] = []
        for axis in axes:
            dimension = self.dimension_of(axis)
            dimension = None if dimension in taken else dimension
            taken.add(dimension)
            dimensions.append(dimension)
        return tuple(dimensions)

    def local_shape(self, shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """Returns the shape of one device's shard of a tensor whose sizes divide evenly (`check_placement`)."""
        return tuple(size // self.size_of(dimension) for size, dimension in zip(shape, self.split(axes)))

    def coordinates_of(self, device: int) -> dict[str, int]:
        """Returns a device's coordinates in the mesh, by dimension."""
        places: dict[str, int] = {}
        for name, size in reversed(list(self.mesh.items())):
            device, places[name] = divmod(device, size)
        return places

    def shard_index(self, shape: Sequence[int], axes: Axes, device: int) -> ShardIndex:
        """Returns the shard of a tensor that a device holds."""
        places, local = self.coordinates_of(device), self.local_shape(shape, axes)
        start = tuple(
            (places.get(dimension, 0) if dimension else 0) * size for dimension, size in zip(self.split(axes), local)
        )
        return ShardIndex(start, local)
