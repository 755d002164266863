"""Span corruption (Raffel et al. 2020, Sec. 3.1.4): 15 % of the tokens in spans of 3 on average become sentinels."""

import functools

import seqio
import t5.data.preprocessors

from tasks.vocabularies import RunVocabulary


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
