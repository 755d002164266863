"""Examples of seqio tasks and mixtures as features of the model."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from switch_tf import compat
from switch_tf.data.autotuning import without_autotuning
from switch_tf.data.cached_tasks import Cache, open_cache
from switch_tf.data.task_lookup import check_split, find_task
from switch_tf.errors import SettingError

# int32 [rows, length] by feature.
Batch = dict[str, np.ndarray]

# What the model reads of what seqio's converter makes; only packed examples have segments.
_FEATURES = (
    "encoder_input_tokens",
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "encoder_segment_ids",
    "decoder_segment_ids",
)


def example_dataset(
    mixture_or_task: str,
    lengths: Mapping[str, int],
    split: str,
    pack: bool = False,
    cache: Cache | None = None,
    **options: Any,
) -> tf.data.Dataset:
    """Reads a split, one example at a time.

    Args:
      mixture_or_task: a seqio name.
      lengths: tokens of each task feature, {"inputs": 512, "targets": 114}.
      split: which split.
      pack: whether to put several short examples, kept apart by their segment ids, into one.
      cache: where tokens are cached; None to tokenize the text.
      **options: of `seqio.get_dataset`: order, epochs, shard, seed.

    Returns:
      Dataset of dicts of int32 [length], padded with 0.

    Raises:
      SettingError: for an unknown task, a missing split, or lengths that do not fit the task.
    """
    task = find_task(mixture_or_task)
    missing = sorted(set(task.output_features) - set(lengths))
    if missing:
        raise SettingError(f"TASK_FEATURE_LENGTHS = {dict(lengths)} names no length for {', '.join(missing)}.")
    check_split(task, split)
    try:
        with open_cache(cache, task, split) as use_cached:
            dataset = _with_autograph_if_needed(
                lambda: seqio.get_dataset(
                    mixture_or_task,
                    task_feature_lengths=dict(lengths),
                    dataset_split=split,
                    feature_converter=seqio.EncDecFeatureConverter(pack=pack),
                    verbose=False,
                    use_cached=use_cached,
                    **options,
                )
            )
    except SettingError:
        raise
    except ValueError as error:
        # t5's span corruption checks its target length while the pipeline is built.
        if "targets" not in str(error) and "length" not in str(error):
            raise
        raise SettingError(f"TASK_FEATURE_LENGTHS = {dict(lengths)}: {' '.join(str(error).split())}") from error
    with compat.without_autograph():
        features = dataset.map(lambda example: {name: example[name] for name in _FEATURES if name in example})
    return without_autotuning(features)


def _with_autograph_if_needed(make: Callable[[], tf.data.Dataset]) -> tf.data.Dataset:
    """Builds a pipeline without AutoGraph, whose conversions take two thirds of the time of building one.

    A preprocessor with Python's control flow on tensors fails then, in ways that cannot be told from other errors, and
    the pipeline is built with AutoGraph.
    """
    try:
        with compat.without_autograph():
            return make()
    except Exception:
        return make()
