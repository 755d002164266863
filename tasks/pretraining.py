"""Span corruption (Raffel et al. 2020, Sec. 3.1.4): 15 % of the tokens in spans of 3 on average become sentinels."""

import functools
from collections.abc import Mapping, Sequence

import seqio
import t5.data.preprocessors
import tensorflow as tf

from tasks.vocabularies import RunVocabulary


def text_files(split_to_pattern: Mapping[str, str | Sequence[str]]) -> seqio.FileDataSource:
    """Makes a source of plain text files with a document on each line.

    Args:
      split_to_pattern: file names or patterns of each split, {"train": "text/train-*.txt", "validation": ...}.

    Returns:
      A source of {"text": string} examples.
    """

    def read(file: tf.Tensor) -> tf.data.Dataset:
        lines = tf.data.TextLineDataset(file).filter(lambda line: tf.strings.length(tf.strings.strip(line)) > 0)
        return lines.map(lambda line: {"text": line})

    return seqio.FileDataSource(read, dict(split_to_pattern))


def add_span_corruption_task(name: str, source: seqio.DataSource) -> seqio.Task:
    """Registers T5's pre-training task over a source of {"text": string} examples.

    Raw text is cut into pieces of such a length that the corrupted inputs and targets fill `TASK_FEATURE_LENGTHS`:
    568 raw tokens for 512 inputs and 114 targets.

    Args:
      name: of the task.
      source: where the text comes from.

    Returns:
      The registered task.
    """
    vocabulary = RunVocabulary()
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            functools.partial(t5.data.preprocessors.rekey, key_map={"inputs": None, "targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            t5.data.preprocessors.span_corruption,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=True),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
    )
