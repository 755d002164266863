"""Shared by the benchmarks. It does not import TensorFlow, since processes that measure other libraries use it, too."""

import statistics


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Returns median and quartiles of `values` as `name`, `name_low` and `name_high`; of one value, that value."""
    # The values twice: `quantiles` refuses a single one, and the quartiles of one value are that value.
    low, median, high = statistics.quantiles(values * 2 if len(values) == 1 else values, n=4, method="inclusive")
    return {name: median, f"{name}_low": low, f"{name}_high": high}
