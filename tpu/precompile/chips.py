"""Published peak rates and usable memory of TPU chips: for lower bounds of a step's time, not for forecasts."""

import dataclasses

from tpu.topologies import Generation


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak rates of one chip, and the memory of one of its devices.

    Attributes:
      peak_flops: bfloat16 matmul FLOPs per second.
      link_bytes: bytes per second that its inter-chip links send together, in one direction.
      device_bytes: memory that a program may use on one device, as the compiler reports it (it reserves some of the 8
        to 96 GiB).
    """

    peak_flops: float
    link_bytes: float
    device_bytes: int


def _gib(size: float) -> int:
    return round(size * 2**30)


# Peak FLOPs: Cloud TPU's documentation. Links: the same for v5e, v5p and v6e (half of the "bidirectional" bandwidth);
# Jouppi et al. 2023 for v4 (6 links of 50 GB/s); Jouppi et al. 2020 for v2 and v3 (4 links of 62 and of 82 GB/s).
_CHIPS = {
    "v2": Chip(45e12, 248e9, _gib(7.48)),
    "v3": Chip(123e12, 328e9, _gib(15.48)),
    "v4": Chip(275e12, 300e9, _gib(30.75)),
    "v5e": Chip(197e12, 200e9, _gib(15.75)),
    "v5p": Chip(459e12, 600e9, _gib(95.74)),
    "v6e": Chip(918e12, 400e9, _gib(31.25)),
}


def chip_of(generation: Generation) -> Chip:
    """Returns the rates of a generation's chips."""
    return _CHIPS[generation.name]
