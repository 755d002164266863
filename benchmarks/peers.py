"""Training steps and generation of our Switch Transformer and of Hugging Face's in PyTorch.

Run by `make bench`. Both have the same weights, batch and number of threads, and their own Adafactor. Each runs in a
process of its own, so that peak memory is measured separately; they take turns, so that a machine that slows down
affects both alike.
4+4 layers, d_model 256, d_ff 1024, a vocabulary of 4096, 16 x 256 inputs and 64 targets.
"""

import argparse
import functools
import importlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
import types
from collections.abc import Sequence

# Before a process loads TensorFlow.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from benchmarks.measuring import spread

BATCH, INPUTS, TARGETS = 16, 256, 64
# Rows and beams of each generation; one beam is greedy decoding.
GENERATIONS = {"greedy of 1": (1, 1), "generate": (BATCH, 1), "beams of 1": (1, 4), "beams": (BATCH, 4)}
# All cores of the machine, for both.
THREADS = os.cpu_count() or 1


def their_config(num_experts: int):
    """Hugging Face's config of the benchmark's model; 0 experts: its dense T5."""
    import transformers

    shape = {
        "vocab_size": 4096,
        "d_model": 256,
        "d_kv": 32,
        "d_ff": 1024,
        "num_layers": 4,
        "num_decoder_layers": 4,
        "num_heads": 8,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
    }
    if not num_experts:
        return transformers.T5Config(**shape, feed_forward_proj="relu")
    # Their capacity masks tokens and does not change the work: with as many slots as tokens, nothing is dropped.
    return transformers.SwitchTransformersConfig(
        **shape,
        num_experts=num_experts,
        num_sparse_encoder_layers=2,
        num_sparse_decoder_layers=2,
        expert_capacity=INPUTS,
        output_router_logits=True,
    )


def features() -> dict[str, np.ndarray]:
    """A batch without padding."""
    random = np.random.default_rng(0)
    targets = random.integers(2, 4096, [BATCH, TARGETS], dtype=np.int32)
    shifted = np.concatenate([np.zeros([BATCH, 1], np.int32), targets[:, :-1]], axis=1)
    return {
        "encoder_input_tokens": random.integers(2, 4096, [BATCH, INPUTS], dtype=np.int32),
        "decoder_input_tokens": shifted,
        "decoder_target_tokens": targets,
    }


def theirs(num_experts: int, folder: str) -> dict:
    """Hugging Face's step and generation, as functions without arguments; saves its weights for ours to read."""
    import torch
    import transformers
    from transformers.optimization import Adafactor

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    kind = "SwitchTransformersForConditionalGeneration" if num_experts else "T5ForConditionalGeneration"
    model = getattr(transformers, kind)(their_config(num_experts))
    np.savez(os.path.join(folder, "weights.npz"), **{name: t.numpy() for name, t in model.state_dict().items()})
    optimizer = Adafactor(model.parameters(), lr=1e-3, scale_parameter=True, relative_step=False)
    batch = {name: torch.from_numpy(value.astype(np.int64)) for name, value in features().items()}
    inputs = batch["encoder_input_tokens"]

    def step():
        model.train()
        optimizer.zero_grad()
        model(input_ids=inputs, labels=batch["decoder_target_tokens"]).loss.backward()
        optimizer.step()

    def generate(rows: int, num_beams: int):
        model.eval()
        length = {"max_new_tokens": TARGETS, "min_new_tokens": TARGETS}
        with torch.no_grad():
            model.generate(input_ids=inputs[:rows], do_sample=False, num_beams=num_beams, **length)

    return {"step": step} | {name: functools.partial(generate, *sizes) for name, sizes in GENERATIONS.items()}


def ours(num_experts: int, folder: str) -> dict:
    """Our step and generation, as functions without arguments; reads Hugging Face's weights."""
    import tensorflow as tf

    from switch_tf.decoding.decoder import decode
    from switch_tf.decoding.settings import Decoding
    from switch_tf.interop.huggingface_weights import load_weights
    from switch_tf.models.config import ModelConfig
    from switch_tf.models.encoder_decoder import EncoderDecoder
    from switch_tf.partitioning.engine import SingleEngine
    from switch_tf.runs.loop import make_update
    from switch_tf.training.adafactor import Adafactor
    from switch_tf.training.losses import Objective

    tf.config.threading.set_intra_op_parallelism_threads(THREADS)
    # Default groups and capacity: each system is measured as its users train with it.
    config = ModelConfig(
        vocab_size=4096,
        d_model=256,
        d_kv=32,
        d_ff=1024,
        num_encoder_layers=4,
        num_decoder_layers=4,
        num_heads=8,
        num_experts=num_experts,
    )
    model = EncoderDecoder(config)
    model.build()
    with np.load(os.path.join(folder, "weights.npz")) as weights:
        load_weights(model, weights)
    optimizer = Adafactor(learning_rate=1e-3)
    optimizer.build(model.trainable_variables)
    run = types.SimpleNamespace(
        model=model,
        optimizer=optimizer,
        engine=SingleEngine(),
        step=tf.Variable(0, dtype=tf.int64),
        experiment=types.SimpleNamespace(seed=0),
        teacher=None,
    )
    update = make_update(run, Objective(z_loss=0.0, router_z_loss=1e-3, balance_loss=1e-3), 1)
    batch = {name: tf.constant(value) for name, value in features().items()}

    def generation(rows: int, num_beams: int):
        settings, inputs = Decoding(decoder="beam", num_beams=num_beams), batch["encoder_input_tokens"][:rows]
        # No token ends a sequence: both decode all of them.
        decoded = tf.function(
            lambda tokens: decode(model, {"encoder_input_tokens": tokens}, settings, TARGETS, end_of_sequence=-1),
            autograph=False,
        )
        return lambda: decoded(inputs).tokens.numpy()

    generations = {name: generation(*sizes) for name, sizes in GENERATIONS.items()}
    return {"step": lambda: update(batch).loss.numpy()} | generations


SYSTEMS = {"huggingface": theirs, "switch_tf": ours}
# What a process imports before it builds anything.
LIBRARIES = {
    "huggingface": "transformers.models.switch_transformers.modeling_switch_transformers",
    "switch_tf": "switch_tf.runs.loop",
}


def peak_memory() -> int:
    """The peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(system: str, num_experts: int, folder: str, pipe) -> None:
    """A system's process: runs what it receives through the pipe and answers with the seconds, or with its memory."""
    importlib.import_module(LIBRARIES[system])
    libraries = peak_memory()
    functions = SYSTEMS[system](num_experts, folder)
    pipe.send("ready")
    while (order := pipe.recv()) != "end":
        if order == "memory":
            pipe.send({"memory": peak_memory(), "libraries": libraries})
            continue
        start = time.perf_counter()
        functions[order]()
        pipe.send(time.perf_counter() - start)


def measure(num_experts: int, rounds: int, things: Sequence[str] = ("step", *GENERATIONS)) -> list[dict]:
    """Times both systems in turn.

    Args:
      num_experts: E; 0: the dense T5.
      rounds: how many times each does each thing.
      things: the training step and generations.

    Returns:
      A row for each system and thing: the spread of seconds and of the ratio of Hugging Face's time to it, and
      the peak memory so far in bytes, and that after nothing but imports.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = {}, []
        for system in SYSTEMS:
            pipes[system], end = context.Pipe()
            processes.append(context.Process(target=work, args=(system, num_experts, folder, end), daemon=True))
            processes[-1].start()
            assert pipes[system].recv() == "ready"

        def ask(system: str, order: str):
            pipes[system].send(order)
            return pipes[system].recv()

        rows = []
        for thing in things:
            for _ in range(2):  # Warm-up: the first calls compile and allocate.
                for system in SYSTEMS:
                    ask(system, thing)
            times = [{system: ask(system, thing) for system in SYSTEMS} for _ in range(rounds)]
            for system in SYSTEMS:
                taken = [round_[system] for round_ in times]
                ratios = [round_["huggingface"] / round_[system] for round_ in times]
                row = {"experts": num_experts, "thing": thing, "system": system} | ask(system, "memory")
                rows.append(row | spread("seconds", taken) | spread("ratio", ratios))
        for system, process in zip(SYSTEMS, processes):
            pipes[system].send("end")
            process.join()
    return rows


def main() -> None:
    """Times both systems, prints a table and saves it if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how many times each does each thing")
    parser.add_argument("--experts", type=int, nargs="*", default=[0, 8, 32, 64], help="0: the dense T5")
    parser.add_argument("--things", nargs="*", default=("step", *GENERATIONS), help="what to time")
    parser.add_argument("--json", metavar="FILE", help="where to save the table")
    options = parser.parse_args()

    print(f"4+4 layers, d_model 256, {BATCH} x {INPUTS} inputs and {TARGETS} targets, float32, {THREADS} threads")
    print(f"{'experts':>8}{'thing':>13}{'system':>13}{'median s':>10}{'speed-up':>10}{'quartiles':>15}", end="")
    print(f"{'peak MiB':>10}{'imports':>9}")
    rows = []
    for num_experts in options.experts:
        for row in measure(num_experts, options.rounds, options.things):
            rows.append(row)
            print(
                f"{row['experts']:>8}{row['thing']:>13}{row['system']:>13}{row['seconds']:>10.3f}{row['ratio']:>10.2f}"
                f"{row['ratio_low']:>8.2f} - {row['ratio_high']:.2f}{row['memory'] / 2**20:>10.0f}"
                f"{row['libraries'] / 2**20:>9.0f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
