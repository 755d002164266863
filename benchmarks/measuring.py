"""Shared by the benchmarks. It does not import TensorFlow, since processes that measure other libraries use it, too."""

import statistics


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Returns median and quartiles of `values` as `name`, `name_low` and `name_high`."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {name: median, f"{name}_low": low, f"{name}_high": high}
