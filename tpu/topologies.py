"""TPU slices: their names, and how many cores, chips, devices and hosts they have.

From Cloud TPU's public documentation (its pages on v2 to v6e, 2025).
"""

import dataclasses
import math
import re

from switch_tf.errors import SettingError, nearest, shown

Shape = tuple[int, ...]
# All-to-alls run beside matmuls. The compiler refuses it for v5e-32 and larger slices of v5e, as "not supported on
# limited ICI".
_ASYNCHRONOUS = "--xla_tpu_enable_async_all_to_all=true"


@dataclasses.dataclass(frozen=True)
class Generation:
    """A generation of TPUs.

    Attributes:
      name: prefix of topology names: "v5e".
      accelerator: prefix of accelerator types: "v5litepod".
      cores_per_chip: TensorCores per chip.
      devices_per_chip: devices that TensorFlow and XLA see: one per core, or one per chip ("megacore").
      counts_cores: whether the number in an accelerator type counts cores; else it counts chips.
      runtime: the default image of the hosts; it has drivers, but not TensorFlow.
      shapes: chips along each dimension of the torus, for each slice, in the order of their size.
      single_host_chips: chips of the slices that have one host.
      chips_per_host: of the other slices.
      compiler_options: what libtpu reads as `LIBTPU_INIT_ARGS`, in jobs and in `precompile`.
    """

    name: str
    accelerator: str
    cores_per_chip: int
    devices_per_chip: int
    counts_cores: bool
    runtime: str
    shapes: tuple[Shape, ...]
    single_host_chips: tuple[int, ...] = (4,)
    chips_per_host: int = 4
    compiler_options: str = ""

    def slice(self, shape: Shape) -> "Slice":
        """Returns a slice of this generation, of any shape."""
        return Slice(self, shape)

    def accelerator_types(self, num_devices: int) -> list[str]:
        """Returns Cloud TPU's names of the slices with a number of devices."""
        slices = map(self.slice, self.shapes)
        return [slice_.accelerator_type for slice_ in slices if slice_.num_devices == num_devices]


@dataclasses.dataclass(frozen=True)
class Slice:
    """Chips of one generation, connected as a torus or a part of one.

    Attributes:
      generation: of the chips.
      shape: chips along each dimension.
    """

    generation: Generation
    shape: Shape

    @property
    def num_chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def num_cores(self) -> int:
        """The number of TensorCores."""
        return self.num_chips * self.generation.cores_per_chip

    @property
    def num_devices(self) -> int:
        """The number of devices, which a mesh over the slice must have."""
        return self.num_chips * self.generation.devices_per_chip

    @property
    def num_hosts(self) -> int:
        """The number of hosts (virtual machines), each of which runs one process."""
        if self.num_chips in self.generation.single_host_chips:
            return 1
        return math.ceil(self.num_chips / self.generation.chips_per_host)

    @property
    def accelerator_type(self) -> str:
        """Cloud TPU's name: "v4-128", "v5litepod-32"."""
        count = self.num_cores if self.generation.counts_cores else self.num_chips
        return f"{self.generation.accelerator}-{count}"

    @property
    def topology_name(self) -> str:
        """The compiler's name: "v4:4x4x4"."""
        return f"{self.generation.name}:{'x'.join(map(str, self.shape))}"


def _shapes(text: str) -> tuple[Shape, ...]:
    return tuple(tuple(map(int, shape.split("x"))) for shape in text.split())


_CUBES = "4x4x4 4x4x8 4x8x8 8x8x8 8x8x16 8x16x16"

GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation("v2", "v2", 2, 2, True, "tpu-ubuntu2204-base", _shapes("2x2 4x4 8x8 8x16 16x16")),
        Generation(
            *("v3", "v3", 2, 2, True, "tpu-ubuntu2204-base"),
            _shapes("2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32"),
            compiler_options=_ASYNCHRONOUS,
        ),
        Generation(
            *("v4", "v4", 2, 1, True, "tpu-ubuntu2204-base"),
            _shapes(f"2x2x1 2x2x2 2x2x4 2x4x4 {_CUBES}"),
            compiler_options=_ASYNCHRONOUS,
        ),
        Generation(
            *("v5e", "v5litepod", 1, 1, False, "v2-alpha-tpuv5-lite"),
            _shapes("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
            single_host_chips=(1, 4, 8),
        ),
        Generation(
            *("v5p", "v5p", 2, 1, True, "v2-alpha-tpuv5"),
            _shapes(f"2x2x1 2x2x2 2x2x4 2x4x4 {_CUBES} 16x16x16 16x16x24"),
            compiler_options=_ASYNCHRONOUS,
        ),
        Generation(
            *("v6e", "v6e", 1, 1, False, "v2-alpha-tpuv6e"),
            _shapes("1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"),
            single_host_chips=(1, 4, 8),
            compiler_options=_ASYNCHRONOUS,
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
      SettingError: if there is none; it suggests the slices of the same generation or the closest name.
    """
    if accelerator_type in SLICES:
        return SLICES[accelerator_type]
    kind = accelerator_type.rpartition("-")[0]
    of_kind = [name for name, slice_ in SLICES.items() if slice_.generation.accelerator == kind]
    available = f" (available: {', '.join(of_kind)})" if of_kind else nearest(accelerator_type, SLICES)
    raise SettingError(f"accelerator_type = {shown(accelerator_type)} is not a TPU slice{available}.")


def find_topology(name: str) -> Slice:
    """Finds a slice by the compiler's name for it; its shape need not be one that Cloud TPU offers.

    Args:
      name: "v4:4x4x8", "v5e:4x8", ...

    Returns:
      The slice.

    Raises:
      SettingError: if the name does not parse, or its number of dimensions is not that of the generation.
    """
    generation, _, shape = name.partition(":")
    if generation not in GENERATIONS:
        suggestion = nearest(generation, GENERATIONS)
        raise SettingError(f"topology = '{name}': there is no TPU generation '{generation}'{suggestion}.")
    known = GENERATIONS[generation]
    examples = [known.slice(shape).topology_name for shape in known.shapes]
    dimensions = len(known.shapes[0])
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != dimensions:
        raise SettingError(
            f"topology = '{name}' is not of the form {generation}:{'x'.join('ABC'[:dimensions])} "
            f"(available: {', '.join(examples)})."
        )
    return known.slice(_shapes(shape)[0])


def find_slice(name: str) -> Slice:
    """Finds a slice by either name: see `find_topology` (with a colon) and `find_accelerator` (without)."""
    return find_topology(name) if ":" in name else find_accelerator(name)
