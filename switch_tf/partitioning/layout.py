"""Layout rules in Mesh TensorFlow's notation: which axis of a tensor is split over which dimension of a mesh."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from switch_tf.errors import SettingError, nearest
from switch_tf.partitioning.axes import AXIS_NAMES, BATCH, GROUPS, Axes, ShardIndex


def _pairs(setting: str, text: str, example: str) -> list[tuple[str, str]]:
    """Reads "a:b,c:d"."""
    pairs = []
    for part in filter(None, (part.strip() for part in text.replace(";", ",").split(","))):
        left, colon, right = (word.strip() for word in part.partition(":"))
        if not (left and colon and right):
            raise SettingError(f"{setting} = '{text}' is not of the form '{example}': look at '{part}'.")
        if left in dict(pairs):
            raise SettingError(f"{setting} = '{text}' names {left} twice.")
        pairs.append((left, right))
    return pairs


def parse_mesh_shape(text: str) -> dict[str, int]:
    """Reads "data:4,model:2" as {"data": 4, "model": 2}; an empty text is a mesh of one device.

    Raises:
      SettingError: if it is not of that form, or a size is not positive.
    """
    mesh = {}
    for name, size in _pairs("MESH_SHAPE", text, "data:4,model:2"):
        if not size.isdecimal() or int(size) < 1:
            raise SettingError(f"MESH_SHAPE = '{text}': the size of {name} must be a whole number from 1 on.")
        mesh[name] = int(size)
    return mesh


def parse_layout_rules(text: str, mesh: Mapping[str, int]) -> dict[str, str]:
    """Reads "batch:data,heads:model" as {"batch": "data", "heads": "model"}.

    Raises:
      SettingError: if it is not of that form, or names an axis or a mesh dimension that is not there.
    """
    rules = dict(_pairs("LAYOUT_RULES", text, "batch:data,experts:data,heads:model"))
    for axis, dimension in rules.items():
        if axis not in AXIS_NAMES:
            known = ", ".join(sorted(AXIS_NAMES))
            raise SettingError(f"LAYOUT_RULES name an axis '{axis}'{nearest(axis, AXIS_NAMES)}; there are {known}.")
        if dimension not in mesh:
            there = ", ".join(mesh) or "none"
            raise SettingError(
                f"LAYOUT_RULES = '{text}' send {axis} to '{dimension}'{nearest(dimension, mesh)}, which MESH_SHAPE "
                f"does not have: its dimensions are {there}."
            )
    return rules


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and the rules by which tensors are split over it.

    Attributes:
      mesh: sizes by name, the outermost (slowest) dimension first.
      rules: mesh dimensions by axis name. Routing groups are made of the batch's tokens: they go where the batch goes,
        unless a rule says otherwise.
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
        """How many devices the mesh has."""
        return math.prod(self.mesh.values())

    def dimension_of(self, axis: str | None) -> str | None:
        """Returns the mesh dimension that an axis is split over, None where it is whole on every device."""
        dimension = self.rules.get(axis)
        return self.rules.get(BATCH) if dimension is None and axis == GROUPS else dimension

    def num_shards(self, axis: str | None) -> int:
        """Returns over how many devices an axis is split."""
        return self.mesh.get(self.dimension_of(axis), 1)

    def split(self, axes: Axes) -> tuple[str | None, ...]:
        """Returns the mesh dimension of each dimension of a tensor; of two that ask for one, the first has it."""
        taken, dimensions = set(), []
        for axis in axes:
            dimension = self.dimension_of(axis)
            dimension = None if dimension in taken else dimension
            taken.add(dimension)
            dimensions.append(dimension)
        return tuple(dimensions)

    def local_shape(self, shape: Sequence[int], axes: Axes) -> tuple[int, ...]:
        """Returns the shape of what one device holds of a tensor whose split sizes divide (`check_placement`)."""
        return tuple(size // self.mesh.get(dimension, 1) for size, dimension in zip(shape, self.split(axes)))

    def coordinates_of(self, device: int) -> dict[str, int]:
        """Returns a device's place in the mesh, by dimension."""
        places = {}
        for name, size in reversed(self.mesh.items()):
            device, places[name] = divmod(device, size)
        return places

    def shard_index(self, shape: Sequence[int], axes: Axes, device: int) -> ShardIndex:
        """Returns which part of a tensor a device holds."""
        places, local = self.coordinates_of(device), self.local_shape(shape, axes)
        start = tuple(places.get(dimension, 0) * size for dimension, size in zip(self.split(axes), local))
        return ShardIndex(start, local)
