"""What the statistics of routers and experts cost: their operations alone, beside a training step of the same model.

CPU time on one thread, medians of the calls. What the step computes in any case, such as the softmax and the z-loss, is
taken away from what the statistics share with it.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Before the import of TensorFlow, as `switch-tf` sets them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import tensorflow as tf

from switch_tf import compat
from switch_tf.layers.routing import router_z_loss, routing_metrics
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.training.adafactor import Adafactor, Change
from switch_tf.training.losses import Objective
from switch_tf.training.step import make_train_step
from switch_tf.training.update_statistics import make_update_statistics

# Of the quick start's kind, and one whose step is mostly matmuls: (settings of the model, sequences of 64 tokens).
MODELS: dict[str, tuple[dict[str, int], int]] = {
    "d_model 32, 16 experts": (
        {"vocab_size": 2048, "d_model": 32, "d_ff": 128, "d_kv": 16, "num_heads": 2, "num_experts": 16}
        | {"num_encoder_layers": 2, "num_decoder_layers": 2, "sparse_every": 1},
        48,
    ),
    "d_model 256, 8 experts": (
        {"vocab_size": 4096, "d_model": 256, "d_ff": 1024, "d_kv": 64, "num_heads": 4, "num_experts": 8}
        | {"num_encoder_layers": 4, "num_decoder_layers": 4},
        40,
    ),
}
LENGTH = 64


def cpu_ms(function: Callable, arguments: tuple[Any, ...], calls: int) -> float:
    """Returns the median of the CPU milliseconds that a call of a compiled function takes."""
    compiled = tf.function(function, autograph=False)
    times = []
    for call in range(calls + 2):
        start = time.process_time()
        tf.nest.flatten(compiled(*arguments))[0].numpy()
        if call > 1:  # The first calls compile and allocate.
            times.append(time.process_time() - start)
    return 1e3 * statistics.median(times)


def of_routers(num_experts: int, logits: list[tf.Tensor], mask: tf.Tensor, with_metrics: bool) -> list:
    """What routers compute in any case, and their metrics or not."""
    results: list[Any] = []
    for scores in logits:
        probabilities = tf.nn.softmax(scores)
        first = tf.one_hot(tf.argmax(scores, axis=-1), num_experts)
        choices = first * tf.expand_dims(mask, -1)
        gates = tf.reduce_sum(probabilities * first, axis=-1)
        results.append([router_z_loss(scores, mask), tf.reduce_sum(choices), tf.reduce_sum(gates)])
        if with_metrics:
            results.append(routing_metrics(scores, probabilities, first, choices, mask, mask))
    return results


def sizes(tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums of squares as `with_sizes` takes them, of a layer's output and of the stream, which the norm needs, too."""
    return [tf.reduce_sum(tf.reduce_mean(tf.square(tensor), axis=-1)) for tensor in tensors]


def measure(settings: dict[str, int], rows: int, calls: int) -> dict[str, float]:
    """Returns the CPU milliseconds of a step, and of the statistics of updates, sizes and routers."""
    model = EncoderDecoder(ModelConfig(**settings))
    model.build()
    weights = [tf.random.normal(variable.shape) * 0.05 for variable in model.trainable_variables]
    optimizer = Adafactor()
    slots = [
        {name: tf.zeros(shape) for name, (shape, _) in optimizer.slot_shapes(tuple(v.shape), v.axes).items()}
        for v in model.trainable_variables
    ]
    tokens = tf.random.uniform([rows, LENGTH], 3, settings["vocab_size"], tf.int32)
    names = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens")
    features = dict.fromkeys(names, tokens) | {"decoder_loss_weights": tf.ones_like(tokens)}
    step = make_train_step(model, optimizer, Objective())
    figures = {"step": cpu_ms(lambda *a: step(*a, tf.constant(0)), (weights, slots, tf.constant(1), features), calls)}

    many, layers = 60 * calls, len(model.config.sparse_layer_names)
    squares, mask = [tf.nn.l2_loss(weight) for weight in weights], tf.ones([1, rows * LENGTH])
    # The mean squares of changes and weights come with the update.
    changes = [Change(weight, {}, square, square) for weight, square in zip(weights, squares)]
    nothing = cpu_ms(lambda *arguments: arguments[0][0], (squares, weights, changes), many)
    updates = make_update_statistics(model)
    figures["updates"] = cpu_ms(updates, (squares, weights, changes), many) - nothing
    streams = [tf.random.normal([rows, LENGTH, settings["d_model"]]) for _ in range(2 * layers)]
    figures["sizes"] = cpu_ms(sizes, (streams,), many) - cpu_ms(lambda x: tf.reduce_sum(x[0][0]), (streams,), many)
    logits = [tf.random.normal([1, rows * LENGTH, settings["num_experts"]]) for _ in range(layers)]
    with_metrics, without = (
        cpu_ms(lambda *a, wanted=wanted: of_routers(settings["num_experts"], *a, wanted), (logits, mask), many)
        for wanted in (True, False)
    )
    return figures | {"routers": with_metrics - without}


def main() -> None:
    """Prints the figures of all models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=15, help="of a step; of the statistics, 60 times as many")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    compat.keep_freed_memory()
    print(f"{'model':>24}{'step ms':>10}{'updates':>10}{'sizes':>10}{'routers':>10}{'share':>8}")
    for name, (settings, rows) in MODELS.items():
        figures = measure(settings, rows, options.calls)
        columns = "".join(f"{figures[part]:>10.3f}" for part in ("step", "updates", "sizes", "routers"))
        share = sum(figures[part] for part in ("updates", "sizes", "routers")) / figures["step"]
        print(f"{name:>24}{columns}{share:>8.2%}", flush=True)


if __name__ == "__main__":
    main()
