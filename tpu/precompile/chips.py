"""What a chip can do at most, by its published figures: products, links, memory. For bounds, not for forecasts."""

import dataclasses

from tpu.topologies import Generation


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates of one chip.

    Attributes:
      peak_flops: of bfloat16 products, FLOPs a second.
      link_bytes: what all of its links to other chips together send, bytes a second; as much comes in.
      device_bytes: memory that a program may use on one device, as the compiler says it (it keeps some of the 8 to 96
        GiB for itself).
    """

    peak_flops: float
    link_bytes: float
    device_bytes: int


def _gib(size: float) -> int:
    return round(size * 2**30)


# Peak rates: Cloud TPU's documentation. Links: that of v5e, v5p and v6e (half of the "bidirectional" bandwidth); for v4
# Jouppi et al. 2023 (6 links of 50 GB/s); for v2 and v3 Jouppi et al. 2020 (4 of 62 and of 82 GB/s).
_CHIPS = {
    "v2": Chip(45e12, 248e9, _gib(7.48)),
    "v3": Chip(123e12, 328e9, _gib(15.48)),
    "v4": Chip(275e12, 300e9, _gib(30.75)),
    "v5e": Chip(197e12, 200e9, _gib(15.75)),
    "v5p": Chip(459e12, 600e9, _gib(95.74)),
    "v6e": Chip(918e12, 400e9, _gib(31.25)),
}


def chip_of(generation: Generation) -> Chip:
    """Returns the figures of a generation's chips."""
    return _CHIPS[generation.name]
