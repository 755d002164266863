"""A Switch layer, training steps and generation: ours, Hugging Face's, Mesh TensorFlow's and one in JAX.

Run by `make bench`. All have the same sizes and number of threads; each system runs in a process of its own, so that
peak memory is measured separately, and they take turns, so that a machine that slows down affects all alike. Ratios are
taken within a round. The layer has the same weights everywhere (d_model 512, d_ff 2048, 16 groups of 1,024 tokens); the
whole model has Hugging Face's in ours too (4+4 layers, d_model 256, d_ff 1024, a vocabulary of 4096, 16 x 256 inputs
and 64 targets). Ours takes its step a second time with `Adafactor.skip_by_matrix`, which needs less memory. In bfloat16
it is our training step alone, beside Hugging Face's under PyTorch's autocast.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection

from benchmarks.measuring import spread
from benchmarks.peer_sizes import DTYPES, GENERATIONS, THREADS

# Hugging Face's process writes the weights that ours reads.
SYSTEMS = ("huggingface", "mesh_tensorflow", "jax", "switch_tf", "switch_tf_by_matrix")
OURS = "switch_tf"
# The layer comes last: its weights are in memory from then on.
THINGS = ("step", *GENERATIONS, "layer")


def prepare(system: str) -> None:
    """Sets this process up for a system, and imports what it needs before it builds anything."""
    if system == "huggingface":
        importlib.import_module("transformers.models.switch_transformers.modeling_switch_transformers")
    elif system == "jax":
        importlib.import_module("jax.numpy")
    else:
        from switch_tf import startup

        # As `switch-tf` does; oneDNN's matmuls are for Mesh TensorFlow too, which is given the same TensorFlow.
        startup.prepare_libraries()
        startup.import_tensorflow()
        if system == "mesh_tensorflow":
            importlib.import_module("benchmarks.peer_mesh_tensorflow").mesh_tensorflow()
        else:
            startup.defer_imports()
            importlib.import_module("switch_tf.runs.loop")


def peak_memory() -> int:
    """The peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def work(system: str, num_experts: int, dtype: str, folder: str, pipe) -> None:
    """A system's process: runs what it receives through the pipe and answers with the seconds, or with its memory."""
    os.environ["OMP_NUM_THREADS"] = str(THREADS)
    prepare(system)
    libraries = peak_memory()
    functions = importlib.import_module(f"benchmarks.peer_{system}").functions(num_experts, folder, dtype)
    pipe.send(tuple(functions))
    while (order := pipe.recv()) != "end":
        if order == "memory":
            pipe.send({"memory": peak_memory(), "libraries": libraries})
            continue
        start = time.perf_counter()
        functions[order]()
        pipe.send(time.perf_counter() - start)


def _answer(pipe: Connection, system: str):
    try:
        return pipe.recv()
    except EOFError:
        raise SystemExit(f"The process of {system} has ended: its error is above.") from None


def measure(
    num_experts: int, rounds: int, things: Sequence[str], systems: Sequence[str], dtype: str = "float32"
) -> list[dict]:
    """Times systems in turn.

    Args:
      num_experts: E; 0: the dense T5.
      rounds: how many times each does each thing.
      things: the layer, the training step and generations; a system is left out of what it does not do.
      systems: which, of `SYSTEMS`; ours is one of them, and Hugging Face where ours needs a model's weights.
      dtype: of activations. "bfloat16" leaves out all but the step, and all but ours and Hugging Face.

    Returns:
      A row for each system and thing: the spread of seconds and of the ratio to ours of the same round, and the peak
      memory so far in bytes, and that after nothing but imports.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes, does = {}, {}, {}
        for system in systems:
            pipes[system], end = context.Pipe()
            arguments = (system, num_experts, dtype, folder, end)
            processes[system] = context.Process(target=work, args=arguments, daemon=True)
            processes[system].start()
            end.close()
            does[system] = _answer(pipes[system], system)

        def ask(system: str, order: str):
            pipes[system].send(order)
            return _answer(pipes[system], system)

        rows = []
        for thing in things:
            doing = [system for system in systems if thing in does[system]]
            if OURS not in doing:
                continue
            for _ in range(2):  # Warm-up: the first calls compile and allocate.
                for system in doing:
                    ask(system, thing)
            times = [{system: ask(system, thing) for system in doing} for _ in range(rounds)]
            for system in doing:
                taken = [round_[system] for round_ in times]
                ratios = [round_[system] / round_[OURS] for round_ in times]
                row = {"experts": num_experts, "thing": thing, "system": system} | ask(system, "memory")
                rows.append(row | spread("seconds", taken) | spread("ratio", ratios))
        for system in systems:
            pipes[system].send("end")
            processes[system].join()
    return rows


def main() -> None:
    """Times all systems, prints a table and saves it if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="how many times each does each thing")
    parser.add_argument("--experts", type=int, nargs="*", default=[0, 8, 32, 64], help="0: the dense T5")
    parser.add_argument("--things", nargs="*", default=THINGS, choices=THINGS, help="what to time")
    parser.add_argument("--systems", nargs="*", default=SYSTEMS, choices=SYSTEMS, help="which to compare")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of activations (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where to save the table")
    options = parser.parse_args()

    print(f"{options.dtype}, {THREADS} threads; ratio: the system's time over ours")
    print(f"{'experts':>8}{'thing':>13}{'system':>17}{'median s':>10}{'ratio':>8}{'quartiles':>15}", end="")
    print(f"{'peak MiB':>10}{'imports':>9}")
    rows = []
    for num_experts in options.experts:
        for row in measure(num_experts, options.rounds, options.things, options.systems, options.dtype):
            rows.append(row)
            print(
                f"{row['experts']:>8}{row['thing']:>13}{row['system']:>17}{row['seconds']:>10.3f}{row['ratio']:>8.2f}"
                f"{row['ratio_low']:>8.2f} - {row['ratio_high']:.2f}{row['memory'] / 2**20:>10.0f}"
                f"{row['libraries'] / 2**20:>9.0f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"rows": rows}, file, indent=2)


if __name__ == "__main__":
    main()
