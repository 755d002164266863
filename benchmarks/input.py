"""Throughput of the input pipelines: text tokenized on the fly (stock), cached tokens, mC4's blocks of 107 languages.

Run by `make bench`. The text is the documentation that ships with Python, with a vocabulary trained on it; for the
blocks it is divided among the languages. For comparison, training steps of several models are timed on the same
machine. Each round times every pipeline once, in turn, so that a machine that slows down affects all of them alike.
"""

import argparse
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import seqio
import tensorflow as tf

from benchmarks.measuring import spread
from benchmarks.training_steps import LONG, MODELS, SHORT, measure_in_a_process
from switch_tf.data import cache_writer
from switch_tf.data.cached_tasks import Cache
from switch_tf.data.training_batches import training_dataset
from tasks import multilingual, python_docs
from tasks.vocabularies import TrainedVocabulary
from tools.offline_tfds import write_documents

TASK = "python_docs_span_corruption"
BATCH_SIZE = 16
NUM_PIECES = 4096


def write_languages(folder: pathlib.Path) -> None:
    """Writes mC4 as a TFDS data set in which every language has some of Python's documentation."""
    texts = [text for text in python_docs.documents() if not python_docs.is_held_out(text)]
    splits = {}
    for index, code in enumerate(multilingual.CODES):
        splits[code] = texts[index :: len(multilingual.CODES)]
        splits[f"{code}-validation"] = texts[:2]
    write_documents(multilingual.TFDS_NAME, folder, splits, 2)
    seqio.set_tfds_data_dir_override(str(folder))


def open_pipeline(name: str, lengths: dict[str, int], cache: Cache) -> tf.data.Iterator:
    """Opens a pipeline and takes 100 batches from it, so that its start-up is not measured."""
    task = "mc4" if name == "blocks" else TASK
    iterator = iter(training_dataset(task, lengths, BATCH_SIZE, 0, cache=cache if name == "cached" else None))
    for _ in range(100):
        next(iterator)
    return iterator


def examples_per_second(iterator: tf.data.Iterator, batches: int) -> float:
    """Times some batches."""
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batches * BATCH_SIZE / (time.perf_counter() - start)


def measure(lengths: dict[str, int], cache: Cache, rounds: int, batches: int) -> list[dict]:
    """Times the pipelines side by side.

    Args:
      lengths: tokens of inputs and targets.
      cache: which has the task.
      rounds: how many times each is timed.
      batches: batches of each measurement.

    Returns:
      A row for each: medians and quartiles of examples and tokens per second.
    """
    iterators = {name: open_pipeline(name, lengths, cache) for name in ("stock", "cached", "blocks")}
    speeds = [{name: examples_per_second(it, batches) for name, it in iterators.items()} for _ in range(rounds)]
    tokens = sum(lengths.values())
    rows = []
    for name in iterators:
        examples = [round_[name] for round_ in speeds]
        row = {"pipeline": name} | lengths | spread("examples_per_second", examples)
        rows.append(row | spread("tokens_per_second", [tokens * speed for speed in examples]))
    return rows


def needs() -> list[dict]:
    """Trains each model for some steps; returns the examples it consumed and how long it waited for them, as rows."""
    rows = []
    for index, model in enumerate(MODELS):
        times = measure_in_a_process(index)
        if times is None:
            print(f"{model.name} needs {model.gigabytes} GB of free memory: left out.")
            continue
        examples = [model.batch_size / seconds for seconds in times["step"]]
        tokens = sum(model.lengths.values())
        row = (
            {"pipeline": f"{model.name}, {model.batch_size}"} | model.lengths | spread("examples_per_second", examples)
        )
        row |= spread("tokens_per_second", [tokens * speed for speed in examples])
        rows.append(row | {"waits": sum(times["wait"]) / sum(times["step"])})
    return rows


def table(rows: list[dict]) -> str:
    """Formats rows as a Markdown table."""
    lines = ["| | lengths | examples/s | tokens/s | quartiles |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['pipeline']} | {row['inputs']} + {row['targets']} | {row['examples_per_second']:,.1f} | "
        f"{row['tokens_per_second']:,.0f} | "
        f"{row['tokens_per_second_low']:,.0f} - {row['tokens_per_second_high']:,.0f} |"
        for row in rows
    ]
    return "\n".join(lines)


def verdict(need: dict, pipelines: list[dict]) -> str:
    """Compares a training step with the slowest pipeline of its lengths."""
    same = [row for row in pipelines if row["inputs"] == need["inputs"]]
    slowest = min(same, key=lambda row: row["tokens_per_second"])
    times = slowest["tokens_per_second"] / need["tokens_per_second"]
    return (
        f"{need['pipeline']} sequences of {need['inputs']} + {need['targets']}: the slowest pipeline "
        f"({slowest['pipeline']}) yields {times:,.0f} times what the training consumes, which waits for input "
        f"{100 * need['waits']:.2f} % of the time."
    )


def run() -> None:
    """Times all pipelines and training steps, prints a table and saves it if requested."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how many times each pipeline is timed")
    parser.add_argument("--batches", type=int, default=100, help="batches of 16 examples in each measurement")
    parser.add_argument("--json", metavar="FILE", help="where to save the table")
    options = parser.parse_args()

    training = needs()
    pipelines: list[dict] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        TrainedVocabulary(TASK, NUM_PIECES).install(str(folder))
        cache = Cache(str(folder / "cache"), use=True)
        cache_writer.write_cache(TASK, cache.folder, splits=["train"])
        write_languages(folder / "tfds")
        for lengths in (LONG, SHORT):
            pipelines += measure(lengths, cache, options.rounds, options.batches)
    print(table([*pipelines, *training]))
    for need in training:
        print(verdict(need, pipelines))
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(pipelines + training, indent=2))


if __name__ == "__main__":
    run()
