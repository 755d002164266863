"""A task on constructed documents of four kinds, each with words of its own, for what experts learn."""

import numpy as np
import seqio
import tensorflow as tf

from tasks.pretraining import add_span_corruption_task

KINDS = {
    "fish": ["salmon", "trout", "herring", "carp", "pike", "tuna", "perch", "eel"],
    "bird": ["sparrow", "eagle", "owl", "robin", "crow", "swan", "heron", "finch"],
    "tree": ["oak", "birch", "maple", "willow", "cedar", "pine", "elm", "larch"],
    "rock": ["granite", "basalt", "marble", "slate", "quartz", "flint", "chalk", "gneiss"],
}


def _documents(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    generator = np.random.default_rng(0 if split == "train" else 1)
    rounds = 500 if split == "train" else 50
    texts = [" ".join(generator.choice(words, size=60)) for words in [*KINDS.values()] * rounds]
    dataset = tf.data.Dataset.from_tensor_slices({"text": texts})
    return dataset.shuffle(len(texts), seed=seed) if shuffle_files else dataset


add_span_corruption_task("four_kinds", seqio.FunctionDataSource(_documents, splits=["train", "validation"]))
