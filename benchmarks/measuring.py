"""What the benchmarks share. No TensorFlow here: a process that measures another library must not load it."""

import statistics


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Returns the median and the quartiles of `values` under names of their own: `name`, `name_low`, `name_high`."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {name: median, f"{name}_low": low, f"{name}_high": high}
