"""Forward and backward pass of one feed-forward layer: dense, and Switch layers with the same FLOPs per token.

Run by `make bench`. Each round times every layer once, in turn, so that a machine that slows down affects all of them
alike; the result is the ratio to the dense layer of the same round. A lower bound is timed as well: the six batched
matmuls with the experts' weights and nothing else.
"""

import argparse
import json
import os
import time

# As `switch-tf` sets them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import tensorflow as tf

from benchmarks.measuring import spread
from switch_tf import compat
from switch_tf.layers.context import ForwardContext
from switch_tf.layers.dispatch import DISPATCHERS
from switch_tf.layers.feed_forward import FeedForward
from switch_tf.layers.initializers import weights_from_seed
from switch_tf.layers.moe import Experts, SwitchFeedForward
from switch_tf.layers.token_choice import SwitchRouter

D_MODEL, D_FF = 512, 2048
GROUPS, GROUP_SIZE = 16, 1024


def make_layer(
    d_model: int = D_MODEL,
    d_ff: int = D_FF,
    num_experts: int = 0,
    dispatcher: str = "gather",
    dtype: str = "float32",
) -> FeedForward | SwitchFeedForward:
    """A Switch layer with capacity factor 1.0; with 0 experts the dense layer."""
    layer: FeedForward | SwitchFeedForward = FeedForward(d_model=d_model, d_ff=d_ff, dtype=dtype, name="dense")
    if num_experts:
        shape = {"d_model": d_model, "num_experts": num_experts}
        layer = SwitchFeedForward(
            router=SwitchRouter(**shape, name="router"),
            experts=Experts(**shape, d_ff=d_ff, dtype=dtype, name="experts"),
            group_size=GROUP_SIZE,
            capacity_factor=1.0,
            dispatcher=dispatcher,
            dtype=dtype,
            name=f"{dispatcher}_{num_experts}",
        )
    with weights_from_seed(0):
        layer.build()
    return layer


def make_step(layer):
    """Compiles forward and backward of a layer: (x, seed) -> gradients of the input and of all weights."""
    weights = [weight.value for weight in layer.trainable_variables]

    @tf.function(autograph=False)
    def step(x, seed):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, routing = layer(x, context=ForwardContext(training=True, seed=seed))
            loss = tf.reduce_sum(y * y)
            if routing is not None:
                loss += routing.balance_loss
        return tape.gradient(loss, [x, *weights])

    return step


def make_bound(num_experts: int):
    """Compiles the matmuls that any Switch layer needs, with the tokens spread evenly over the experts.

    Two in the forward pass, and for each of them one for the gradient of its input and one for that of its weights.
    """
    wi = tf.Variable(tf.random.stateless_normal([num_experts, D_MODEL, D_FF], (0, 2), stddev=D_MODEL**-0.5))
    wo = tf.Variable(tf.random.stateless_normal([num_experts, D_FF, D_MODEL], (0, 3), stddev=D_FF**-0.5))

    @tf.function(autograph=False)
    def bound(x, seed):
        del seed
        tokens = tf.reshape(x, [num_experts, -1, D_MODEL])
        hidden = tf.matmul(tokens, wi)
        y = tf.matmul(hidden, wo)
        hidden_gradient = tf.matmul(y, wo, transpose_b=True)
        return (
            tf.matmul(hidden_gradient, wi, transpose_b=True),
            tf.matmul(tokens, hidden_gradient, transpose_a=True),
            tf.matmul(hidden, y, transpose_a=True),
        )

    return bound


def seconds(step, x, seed) -> float:
    """Times one call, which on a CPU returns when everything is computed; freeing the gradients is included."""
    start = time.perf_counter()
    step(x, seed)
    return time.perf_counter() - start


def measure(num_experts: int, rounds: int) -> list[dict]:
    """Times the dense layer, the Switch layers and their lower bound in turn.

    Args:
      num_experts: E.
      rounds: how many times each is timed.

    Returns:
      A row for each: medians and quartiles of the seconds and of the ratio to the dense layer.
    """
    x = tf.random.stateless_normal([GROUPS, GROUP_SIZE, D_MODEL], (0, 1))
    steps = {"dense": make_step(make_layer()), "bound": make_bound(num_experts)}
    steps |= {name: make_step(make_layer(num_experts=num_experts, dispatcher=name)) for name in DISPATCHERS}
    # A tensor, or the noise would be a constant of the program.
    seed = tf.constant(0)
    for step in steps.values():
        seconds(step, x, seed)
    times = [{name: seconds(step, x, seed) for name, step in steps.items()} for _ in range(rounds)]
    rows = []
    for name in steps:
        taken = [round_[name] for round_ in times]
        ratios = [round_[name] / round_["dense"] for round_ in times]
        rows.append({"experts": num_experts, "layer": name} | spread("seconds", taken) | spread("ratio", ratios))
    return rows


def main() -> None:
    """Times all layers, prints a table and saves it if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11, help="how many times each layer is timed")
    parser.add_argument("--experts", type=int, nargs="*", default=[8, 32, 64, 128], help="numbers of experts")
    parser.add_argument("--json", metavar="FILE", help="where to save the table")
    options = parser.parse_args()

    compat.keep_freed_memory()
    print(f"d_model {D_MODEL}, d_ff {D_FF}, {GROUPS} groups of {GROUP_SIZE} tokens, float32, capacity factor 1.0")
    print(f"{'experts':>8}{'layer':>10}{'median s':>10}{'x dense':>9}{'quartiles':>16}")
    rows = []
    for num_experts in options.experts:
        for row in measure(num_experts, options.rounds):
            rows.append(row)
            print(
                f"{row['experts']:>8}{row['layer']:>10}{row['seconds']:>10.3f}{row['ratio']:>9.2f}"
                f"{row['ratio_low']:>9.2f} - {row['ratio_high']:.2f}",
                flush=True,
            )
    if options.json:
        shape = {"d_model": D_MODEL, "d_ff": D_FF, "groups": GROUPS, "group_size": GROUP_SIZE}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(shape | {"rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
