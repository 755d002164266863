"""How fast examples come: text tokenised on the way (stock), tokens from a cache, and mC4's blocks of 107 languages.

Run by `make bench`. The text is the documentation that comes with Python, with a vocabulary trained on it; for the
blocks, every language gets a share of it. Beside them stands what the quick start's training step takes in on this
machine. Each round times every pipeline once, in turn, so that a machine that slows down slows all of them.
"""

import argparse
import csv
import json
import os
import pathlib
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gin
import seqio
import tensorflow as tf

from benchmarks.measuring import spread
from switch_tf import caching, data, main
from tasks import multilingual, python_docs
from tasks.vocabularies import TrainedVocabulary
from tests.tasks import tiny_c4

TASK = "python_docs_span_corruption"
BATCH_SIZE = 16
LENGTHS = ({"inputs": 512, "targets": 114}, {"inputs": 128, "targets": 29})
NUM_PIECES = 4096


def write_languages(folder: pathlib.Path) -> None:
    """Writes mC4 as a TFDS data set in which every language has some of Python's documentation."""
    texts = [text for text in python_docs.documents() if not python_docs.is_held_out(text)]
    splits = {}
    for index, code in enumerate(multilingual.CODES):
        splits[code] = texts[index :: len(multilingual.CODES)]
        splits[f"{code}-validation"] = texts[:2]
    tiny_c4.make(multilingual.TFDS_NAME, folder, splits, 2)
    seqio.set_tfds_data_dir_override(str(folder))


def open_pipeline(name: str, lengths: dict[str, int]) -> tf.data.Iterator:
    """Opens a pipeline, and takes what is slow at its beginning out of the measurement."""
    gin.bind_parameter("Cache.use", name == "cached")
    task = "mc4" if name == "blocks" else TASK
    iterator = iter(data.training_dataset(task, lengths, BATCH_SIZE, 0))
    for _ in range(100):
        next(iterator)
    return iterator


def examples_per_second(iterator: tf.data.Iterator, batches: int) -> float:
    """Times some batches."""
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batches * BATCH_SIZE / (time.perf_counter() - start)


def measure(lengths: dict[str, int], rounds: int, batches: int) -> list[dict]:
    """Times the pipelines side by side.

    Args:
      lengths: tokens of inputs and targets.
      rounds: how many times each is timed.
      batches: in each time.

    Returns:
      A row for each: medians and quartiles of examples and of tokens a second.
    """
    iterators = {name: open_pipeline(name, lengths) for name in ("stock", "cached", "blocks")}
    speeds = [{name: examples_per_second(it, batches) for name, it in iterators.items()} for _ in range(rounds)]
    tokens = sum(lengths.values())
    rows = []
    for name in iterators:
        examples = [round_[name] for round_ in speeds]
        row = {"pipeline": name} | lengths | spread("examples_per_second", examples)
        rows.append(row | spread("tokens_per_second", [tokens * speed for speed in examples]))
    return rows


def step_of_training(folder: pathlib.Path, steps: int) -> dict:
    """Trains the quick start's Switch Transformer for some steps; returns what it took in, as a row."""
    bindings = {"MODEL_DIR": f'"{folder}"', "TRAIN_STEPS": steps, "LOG_PERIOD": 5, "NUM_EVAL_BATCHES": 1}
    files = ("gin/models/switch_tiny_8.gin", "gin/runs/quickstart.gin")
    arguments = [f"--gin_file={file}" for file in files] + [f"--gin.{name}={value}" for name, value in bindings.items()]
    main.main(["train", *arguments])
    with open(folder / "metrics.csv") as file:
        speeds = [float(row["tokens_per_second"]) for row in csv.DictReader(file) if row["tokens_per_second"]]
    # The first steps compile.
    tokens = spread("tokens_per_second", speeds[len(speeds) // 3 :])
    lengths = LENGTHS[1]
    return (
        {"pipeline": "training"}
        | lengths
        | {name.replace("tokens", "examples"): value / sum(lengths.values()) for name, value in tokens.items()}
        | tokens
    )


def run() -> None:
    """Times all pipelines and the step, prints a table and saves it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="how many times each pipeline is timed")
    parser.add_argument("--batches", type=int, default=100, help="batches of 16 examples in each time")
    parser.add_argument("--steps", type=int, default=60, help="steps of training")
    parser.add_argument("--json", metavar="FILE", help="where to save the table")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        rows = [step_of_training(folder / "run", options.steps)]
        gin.clear_config()
        TrainedVocabulary(TASK, NUM_PIECES).install(str(folder))
        gin.bind_parameter("Cache.folder", str(folder / "cache"))
        caching.cache(TASK, splits=["train"])
        write_languages(folder / "tfds")
        for lengths in LENGTHS:
            rows += measure(lengths, options.rounds, options.batches)
    print(f"{'pipeline':>10}{'inputs':>8}{'targets':>9}{'examples/s':>12}{'tokens/s':>12}{'quartiles':>24}")
    for row in rows:
        print(
            f"{row['pipeline']:>10}{row['inputs']:>8}{row['targets']:>9}{row['examples_per_second']:>12,.0f}"
            f"{row['tokens_per_second']:>12,.0f}"
            f"{row['tokens_per_second_low']:>12,.0f} - {row['tokens_per_second_high']:,.0f}"
        )
    need = rows[0]["tokens_per_second"]
    slowest = min(row["tokens_per_second"] for row in rows[1:] if row["inputs"] == rows[0]["inputs"])
    print(f"The slowest pipeline gives {slowest / need:.0f} times what the training step takes in.")
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    run()
