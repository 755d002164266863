"""Takes a batch of a task whose filter drops every example in each epoch: `... VOCABULARY`; prints the error."""

import sys

import seqio
import tensorflow as tf

import tests.support.tiny_task  # noqa: F401 (registers tasks)
from switch_tf.data import training_batches
from switch_tf.data.task_lookup import find_task
from switch_tf.errors import SettingError
from tasks import vocabularies


def _text(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensors({"inputs": "a", "targets": "a"})


def main() -> None:
    """Ends with the error's sentence and status 1."""
    vocabularies.select_vocabulary(sys.argv[1])
    seqio.TaskRegistry.add(
        "blank",
        seqio.FunctionDataSource(_text, ["train"]),
        preprocessors=[
            seqio.preprocessors.tokenize,
            seqio.CacheDatasetPlaceholder(),
            lambda dataset: dataset.filter(lambda example: tf.size(example["targets"]) > 1000),
        ],
        output_features=find_task("tiny_span_corruption").output_features,
    )
    training_batches._FIRST_BATCH_TIMEOUT = 1.0
    try:
        next(training_batches.TrainingBatches("blank", {"inputs": 8, "targets": 8}, 4, 0))
    except SettingError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
