"""Span corruption (Raffel et al. 2020, Sec. 3.1.4): 15 % of the tokens in spans of 3 on average become sentinels."""

import functools
from collections.abc import Mapping

import seqio
import t5.data.preprocessors
import tensorflow as tf

from switch_tf.data.text_files import Patterns, read_documents
from switch_tf.errors import SettingError
from tasks.vocabularies import RunVocabulary

NOISE_DENSITY = 0.15
MEAN_SPAN_LENGTH = 3.0


def text_files(split_to_pattern: Mapping[str, Patterns], key: str = "text") -> seqio.FileDataSource:
    """Makes a source of text files: plain (a document on each line), or JSON lines by their name; gzipped or not.

    Args:
      split_to_pattern: file names or patterns of each split, {"train": "text/train-*.txt", "validation": ...}.
      key: of the text in a JSON object.

    Returns:
      A source of {"text": string} examples.
    """
    return seqio.FileDataSource(functools.partial(read_documents, key=key), dict(split_to_pattern))


def num_spans(
    inputs_length: int, noise_density: float = NOISE_DENSITY, mean_span_length: float = MEAN_SPAN_LENGTH
) -> int:
    """Returns how many spans, and so sentinels, an example has whose corrupted inputs fill `inputs_length`."""
    raw, _ = t5.data.preprocessors.random_spans_helper(
        inputs_length=inputs_length,
        noise_density=noise_density,
        mean_noise_span_length=mean_span_length,
        extra_tokens_per_span_inputs=1,
        extra_tokens_per_span_targets=1,
    )
    return round(round(raw * noise_density) / mean_span_length)


# AutoGraph would spend seconds on converting t5's functions, which have no control flow that depends on tensors.
@tf.autograph.experimental.do_not_convert
def span_corruption(
    dataset: tf.data.Dataset,
    sequence_length: Mapping[str, int],
    output_features: Mapping[str, seqio.Feature],
    merge_documents: bool = True,
    noise_density: float = NOISE_DENSITY,
    mean_span_length: float = MEAN_SPAN_LENGTH,
) -> tf.data.Dataset:
    """T5's span corruption, and the check that it lacks: past the last sentinel it would use ids of text as sentinels.

    Args:
      dataset: of {"targets": int32 [any length]}.
      sequence_length: tokens of each feature.
      output_features: whose vocabulary is `RunVocabulary`.
      merge_documents: whether sequences may span documents, concatenated 128 at a time.
      noise_density: the share of the tokens that become targets.
      mean_span_length: tokens of a corrupted span, on average.

    Returns:
      Dataset of {"inputs": int32 [L], "targets": int32 [L]}, without their end tokens.

    Raises:
      SettingError: if an example would have more spans than there are sentinels.
    """
    length, sentinels = sequence_length["inputs"], output_features["targets"].vocabulary.num_sentinels
    noise = (noise_density, mean_span_length)
    if num_spans(length, *noise) > sentinels:
        longest = next(shorter for shorter in range(length - 1, 0, -1) if num_spans(shorter, *noise) <= sentinels)
        raise SettingError(
            f"TASK_FEATURE_LENGTHS['inputs'] = {length} has {num_spans(length, *noise)} spans and the vocabulary has "
            f"{sentinels} sentinels: set it to {longest} at most."
        )
    return t5.data.preprocessors.span_corruption(
        dataset,
        sequence_length,
        output_features,
        mean_noise_span_length=mean_span_length,
        noise_density=noise_density,
        merge_examples_to_reduce_padding=merge_documents,
    )


def text_features() -> dict[str, seqio.Feature]:
    """Returns inputs and targets in the run's vocabulary."""
    return {name: seqio.Feature(RunVocabulary(), add_eos=True) for name in ("inputs", "targets")}


def add_span_corruption_task(
    name: str,
    source: seqio.DataSource,
    noise_density: float = NOISE_DENSITY,
    mean_span_length: float = MEAN_SPAN_LENGTH,
) -> seqio.Task:
    """Registers T5's pre-training task over a source of {"text": string} examples.

    Text is split into chunks of such a length that the corrupted inputs and targets fill `TASK_FEATURE_LENGTHS`: 568
    tokens of text for 512 inputs and 114 targets.

    Args:
      name: of the task.
      source: of the text.
      noise_density: the share of the tokens that become targets; T5's by default.
      mean_span_length: tokens of a corrupted span, on average; T5's by default.

    Returns:
      The registered task.
    """
    corrupt = functools.partial(span_corruption, noise_density=noise_density, mean_span_length=mean_span_length)
    return seqio.TaskRegistry.add(
        name,
        source=source,
        preprocessors=[
            functools.partial(t5.data.preprocessors.rekey, key_map={"inputs": None, "targets": "text"}),
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            corrupt,
            seqio.preprocessors.append_eos_after_trim,
        ],
        output_features=text_features(),
    )
