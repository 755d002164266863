"""The metrics of a step or an evaluation as named scalars, for CSV files, TensorBoard and tables."""

import math
from collections.abc import Mapping

from switch_tf.layers.routing import RoutingMetrics
from switch_tf.training.step import StepMetrics
from switch_tf.training.update_statistics import UpdateStatistics

EVALUATION_SCALARS = ("neg_log_perplexity", "accuracy", "target_tokens", "balance_loss")
# The fields of `StepMetrics` that are no scalars, but dictionaries of them.
NESTED_METRICS = ("teacher", "routing", "updates")
# Columns of each sparse layer. There are E expert loads; they have a file of their own.
ROUTING_SCALARS = ("fraction_dropped", "router_entropy", "router_confidence", "output_size", "residual_size")
UPDATE_SCALARS = UpdateStatistics._fields


def scalars_of(metrics: StepMetrics) -> dict[str, float]:
    """Flattens a step's metrics: every scalar by its column's name, `encoder/layer_1/fraction_dropped` and the like."""
    scalars = {name: float(value) for name, value in metrics._asdict().items() if name not in NESTED_METRICS}
    scalars |= {name: float(value) for name, value in metrics.teacher.items()}
    scalars |= routing_scalars(metrics.routing)
    scalars |= {
        f"{layer}/{name}": float(value)
        for layer, statistics in metrics.updates.items()
        for name, value in statistics._asdict().items()
    }
    return scalars


def layer_scalars(metrics: RoutingMetrics) -> dict[str, float]:
    """Returns the scalars of one sparse layer: all but the loads, and sizes (root mean squares) for sums of squares."""
    tokens = max(float(metrics.tokens), 1.0)
    return {
        "fraction_dropped": float(metrics.fraction_dropped),
        "router_entropy": float(metrics.router_entropy),
        "router_confidence": float(metrics.router_confidence),
        "output_size": math.sqrt(float(metrics.output_square) / tokens),
        "residual_size": math.sqrt(float(metrics.residual_square) / tokens),
    }


def routing_scalars(routing: Mapping[str, RoutingMetrics]) -> dict[str, float]:
    """Returns the `layer_scalars` of every sparse layer under `layer/name`."""
    return {
        f"{layer}/{name}": value for layer, metrics in routing.items() for name, value in layer_scalars(metrics).items()
    }
