"""Tasks on a little real text (some of Python's documentation topics), for runs that take seconds."""

import pydoc_data.topics

import seqio
import tensorflow as tf

from tasks.pretraining import add_span_corruption_task
from tasks.text_to_text import add_task

TOPICS = [text for _, text in sorted(pydoc_data.topics.topics.items()) if len(text) < 5000]


def _topics(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    chosen = [text for index, text in enumerate(TOPICS) if (index % 8 == 0) == (split == "validation")]
    dataset = tf.data.Dataset.from_tensor_slices({"text": chosen})
    return dataset.shuffle(len(chosen), seed=seed) if shuffle_files else dataset


def _pairs(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    """Short examples of different lengths: some words of a topic, and the words after them."""
    words = [text.split() for index, text in enumerate(TOPICS) if (index % 8 == 0) == (split == "validation")]
    inputs = [" ".join(some[: 2 + index % 4]) for index, some in enumerate(words)]
    targets = [" ".join(some[6 : 7 + index % 3]) for index, some in enumerate(words)]
    dataset = tf.data.Dataset.from_tensor_slices({"inputs": inputs, "targets": targets})
    return dataset.shuffle(len(words), seed=seed) if shuffle_files else dataset


def _nothing(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices({"text": tf.constant([], tf.string)})


SPLITS = ["train", "validation"]
add_span_corruption_task("tiny_span_corruption", seqio.FunctionDataSource(_topics, splits=SPLITS))
add_task("tiny_pairs", seqio.FunctionDataSource(_pairs, splits=SPLITS), preprocessors=[])
add_span_corruption_task("empty_span_corruption", seqio.FunctionDataSource(_nothing, splits=SPLITS))
