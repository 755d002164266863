"""The metrics of a step or an evaluation as named scalars, for CSV files, TensorBoard and tables."""

import math
from collections.abc import Mapping

from switch_tf.layers.routing import RoutingMetrics
from switch_tf.training.step import StepMetrics

EVALUATION_SCALARS = ("neg_log_perplexity", "accuracy", "target_tokens", "balance_loss")
# The fields of `StepMetrics` that are no scalars, but dictionaries of them.
NESTED_METRICS = ("teacher", "routing")
# There are E expert loads; they have a file of their own.
ROUTING_SCALARS = tuple(name for name in RoutingMetrics._fields if name != "expert_load")


def scalars_of(metrics: StepMetrics) -> dict[str, float]:
    """Flattens a step's metrics: every scalar by its column's name, `encoder/layer_1/fraction_dropped` and the like."""
    scalars = {name: float(value) for name, value in metrics._asdict().items() if name not in NESTED_METRICS}
    scalars |= {name: float(value) for name, value in metrics.teacher.items()}
    scalars |= routing_scalars(metrics.routing)
    return scalars


def routing_scalars(routing: Mapping[str, RoutingMetrics]) -> dict[str, float]:
    """Returns the scalars of every sparse layer's `RoutingMetrics` (all but the loads) under `layer/name`."""
    return {
        f"{layer}/{name}": float(getattr(metrics, name))
        for layer, metrics in routing.items()
        for name in ROUTING_SCALARS
    }


def is_finite(metrics: StepMetrics) -> bool:
    """Whether the loss and the gradient are numbers."""
    return math.isfinite(metrics.loss) and math.isfinite(metrics.gradient_norm)
