"""One feed-forward layer, forward and backward: dense, and Switch layers of equal FLOPs for each token.

Run by `make bench`. Each round times every layer once, in turn, so that a machine that slows down slows all of them;
what counts is the ratio to the dense layer of the same round.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.moe import Experts, SwitchFeedForward
from switch_tf.layers.routers import SwitchRouter

D_MODEL, D_FF = 512, 2048
GROUPS, GROUP_SIZE = 16, 1024


def dense_layer() -> FeedForward:
    """The dense layer."""
    layer = FeedForward(d_model=D_MODEL, d_ff=D_FF, name="dense")
    layer.build()
    return layer


def switch_layer(num_experts: int, dispatcher: str) -> SwitchFeedForward:
    """A Switch layer with capacity factor 1.0."""
    shape = {"d_model": D_MODEL, "num_experts": num_experts}
    layer = SwitchFeedForward(
        router=SwitchRouter(**shape, name="router"),
        experts=Experts(**shape, d_ff=D_FF, name="experts"),
        group_size=GROUP_SIZE,
        capacity_factor=1.0,
        dispatcher=dispatcher,
        name=f"{dispatcher}_{num_experts}",
    )
    layer.build()
    return layer


def make_step(layer):
    """Compiles forward and backward of a layer: x -> gradients of the input and of all weights."""
    weights = [weight.value for weight in layer.trainable_variables]

    @tf.function(autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, routing = layer(x, training=True)
            loss = tf.reduce_sum(y * y)
            if routing is not None:
                loss += routing.balance_loss
        return tape.gradient(loss, [x, *weights])

    return step


def seconds(step, x) -> float:
    """Times one call."""
    start = time.perf_counter()
    step(x)
    return time.perf_counter() - start


def main() -> None:
    """Times all layers and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how many times each layer is timed")
    parser.add_argument("--experts", type=int, nargs="*", default=[8, 32, 64, 128], help="numbers of experts")
    options = parser.parse_args()
    x = tf.random.stateless_normal([GROUPS, GROUP_SIZE, D_MODEL], (0, 1))

    print(f"d_model {D_MODEL}, d_ff {D_FF}, {GROUPS} groups of {GROUP_SIZE} tokens, float32, capacity factor 1.0")
    print(f"{'experts':>8}{'dispatch':>10}{'median s':>10}{'x dense':>9}{'range of x':>16}")
    for experts in options.experts:
        steps = {"dense": make_step(dense_layer())}
        steps |= {name: make_step(switch_layer(experts, name)) for name in DISPATCHERS}
        for step in steps.values():
            seconds(step, x)
        rounds = [{name: seconds(step, x) for name, step in steps.items()} for _ in range(options.rounds)]
        for name in steps:
            ratios = sorted(times[name] / times["dense"] for times in rounds)
            median = statistics.median(times[name] for times in rounds)
            print(
                f"{experts:>8}{name:>10}{median:>10.3f}{statistics.median(ratios):>9.2f}"
                f"{ratios[0]:>9.2f} - {ratios[-1]:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
