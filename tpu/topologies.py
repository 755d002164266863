"""Which TPU slices there are: what Cloud TPU calls them, and how many cores, chips, devices and machines they have.

Facts of Cloud TPU's public documentation (its pages on v2 to v6e, 2025).
"""

import dataclasses
import math
import re

from switch_tf.errors import SettingError, nearest

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs.

    Attributes:
      name: as the names of topologies begin: "v5e".
      accelerator: as the names of accelerator types begin: "v5litepod".
      cores_per_chip: TensorCores.
      devices_per_chip: what TensorFlow and XLA see: one for each core, or one for both of a chip ("megacore").
      counts_cores: whether the number in an accelerator type is that of the cores, or of the chips.
      runtime: the image of the machines; it brings drivers, and no TensorFlow.
      shapes: chips of each slice along the dimensions of its torus, by size.
      single_machine_chips: slices of so many chips have one machine.
      chips_per_machine: of larger slices.
    """

    name: str
    accelerator: str
    cores_per_chip: int
    devices_per_chip: int
    counts_cores: bool
    runtime: str
    shapes: tuple[Shape, ...]
    single_machine_chips: tuple[int, ...] = (4,)
    chips_per_machine: int = 4

    def slice(self, shape: Shape) -> "Slice":
        """Returns a slice of this generation, of any shape."""
        return Slice(self, shape)


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one generation, wired as a torus or a part of one.

    Attributes:
      generation: of all of them.
      shape: chips along each dimension.
    """

    generation: Generation
    shape: Shape

    @property
    def num_chips(self) -> int:
        """How many chips there are."""
        return math.prod(self.shape)

    @property
    def num_cores(self) -> int:
        """How many TensorCores there are."""
        return self.num_chips * self.generation.cores_per_chip

    @property
    def num_devices(self) -> int:
        """How many devices a mesh over the slice has."""
        return self.num_chips * self.generation.devices_per_chip

    @property
    def num_machines(self) -> int:
        """How many virtual machines, and so processes, drive the slice."""
        if self.num_chips in self.generation.single_machine_chips:
            return 1
        return math.ceil(self.num_chips / self.generation.chips_per_machine)

    @property
    def accelerator_type(self) -> str:
        """What Cloud TPU calls it: "v4-128", "v5litepod-32"."""
        count = self.num_cores if self.generation.counts_cores else self.num_chips
        return f"{self.generation.accelerator}-{count}"

    @property
    def topology_name(self) -> str:
        """What the compiler calls it: "v4:4x4x4"."""
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(tuple(map(int, shape.split("x"))) for shape in text.split())


_CUBES = "4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"

GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v2", "v2", 2, 2, True, "tpu-ubuntu2204-base", _shapes("2x2 4x4 8x8 8x16 16x16")),
        Generation("v3", "v3", 2, 2, True, "tpu-ubuntu2204-base", _shapes("2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32")),
        Generation("v4", "v4", 2, 1, True, "tpu-ubuntu2204-base", _shapes(f"2x2x1 2x2x2 2x2x4 2x4x4 {_CUBES}")),
        Generation(
            *("v5e", "v5litepod", 1, 1, False, "v2-alpha-tpuv5-lite"),
            _shapes("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
            single_machine_chips=(1, 4, 8),
        ),
        Generation(
            *("v5p", "v5p", 2, 1, True, "v2-alpha-tpuv5"),
            _shapes(f"2x2x1 2x2x2 2x2x4 2x4x4 {_CUBES} 16x16x16 16x16x24"),
        ),
        Generation(
            *("v6e", "v6e", 1, 1, False, "v2-alpha-tpuv6e"),
            _shapes("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
            single_machine_chips=(1, 4, 8),
        ),
    )
}
SLICES = {
    slice_.accelerator_type: slice_
    for generation in GENERATIONS.values()
    for slice_ in map(generation.slice, generation.shapes)
}


def find_accelerator(accelerator_type: str) -> Slice:
    """Finds a slice by Cloud TPU's name for it.

    Args:
      accelerator_type: "v3-32", "v5litepod-32", ...

    Returns:
      The slice.

    Raises:
      SettingError: if there is none, with those of its generation or the nearest name.
    """
    if accelerator_type in SLICES:
        return SLICES[accelerator_type]
    kind = accelerator_type.rpartition("-")[0]
    of_kind = [name for name, slice_ in SLICES.items() if slice_.generation.accelerator == kind]
    there = f" (there is: {', '.join(of_kind)})" if of_kind else nearest(accelerator_type, SLICES)
    raise SettingError(f"accelerator_type = '{accelerator_type}' is no TPU slice{there}.")


def find_topology(name: str) -> Slice:
    """Finds a slice, of a usual shape or not, by the compiler's name for it.

    Args:
      name: "v4:4x4x8", "v5e:4x8", ...

    Returns:
      The slice.

    Raises:
      SettingError: if it is not of that form, or has another number of dimensions than its generation.
    """
    generation, _, shape = name.partition(":")
    if generation not in GENERATIONS:
        raise SettingError(f"topology = '{name}': there is no TPU '{generation}'{nearest(generation, GENERATIONS)}.")
    known = GENERATIONS[generation]
    examples = [known.slice(shape).topology_name for shape in known.shapes]
    dimensions = len(known.shapes[0])
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != dimensions:
        raise SettingError(
            f"topology = '{name}' is not of the form {generation}:{'x'.join('ABC'[:dimensions])} "
            f"(there is: {', '.join(examples)})."
        )
    return known.slice(_shapes(shape)[0])


def find_slice(name: str) -> Slice:
    """Finds a slice by either name: see `find_topology` (with a colon) and `find_accelerator` (without)."""
    return find_topology(name) if ":" in name else find_accelerator(name)
