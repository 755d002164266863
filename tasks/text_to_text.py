"""Labeled data as text to text: how every fine-tuning and evaluation task of this package is registered."""

from collections.abc import Callable, Sequence
from typing import Any

import seqio
import tensorflow as tf

from tasks.vocabularies import RunVocabulary

Preprocessor = Callable[[tf.data.Dataset], tf.data.Dataset]


def add_task(
    name: str,
    source: seqio.DataSource,
    preprocessors: Sequence[Preprocessor],
    metrics: Sequence[Callable[..., dict[str, float]]] = (),
    postprocessor: Callable[..., Any] | None = None,
) -> seqio.Task:
    """Registers a task whose examples are tokenized with the run's vocabulary, trimmed, and end with EOS.

    Args:
      name: of the task.
      source: of raw examples; `PreparedTfds` for a data set of TensorFlow Datasets.
      preprocessors: raw examples to {"inputs": string, "targets": string, ...}; other fields go to the postprocessor.
      metrics: (targets, predictions) -> scores by name; empty if the answers are hidden.
      postprocessor: converts text to what the metrics take; None for the text itself.

    Returns:
      The registered task.
    """
    vocabulary = RunVocabulary()
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            *preprocessors,
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features={
            "inputs": seqio.Feature(vocabulary, add_eos=True),
            "targets": seqio.Feature(vocabulary, add_eos=True),
        },
        metric_fns=list(metrics),
        postprocess_fn=postprocessor,
    )
