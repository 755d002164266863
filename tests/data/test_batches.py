"""Pipelines are built without AutoGraph where no preprocessor needs it, and with it where one does."""

import pytest
import seqio
import tensorflow as tf

from switch_tf import compat
from switch_tf.data.batches import example_dataset

WORDS = ["a", "long text", "b", "another long text"]
VOCABULARY = seqio.ByteVocabulary()


def words(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
    del split, shuffle_files, seed
    return tf.data.Dataset.from_tensor_slices({"inputs": WORDS, "targets": WORDS})


@seqio.map_over_dataset
def with_pythons_if(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {**example, "targets": "long" if tf.strings.length(example["inputs"]) > 3 else "short"}


@seqio.map_over_dataset
def with_tensorflows_where(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {**example, "targets": tf.where(tf.strings.length(example["inputs"]) > 3, "long", "short")}


for name, preprocessor in (("python", with_pythons_if), ("tensorflow", with_tensorflows_where)):
    seqio.TaskRegistry.add(
        f"long_or_short_in_{name}",
        source=seqio.FunctionDataSource(words, splits=["train"]),
        preprocessors=[preprocessor, seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={feature: seqio.Feature(VOCABULARY) for feature in ("inputs", "targets")},
    )


def targets(task: str) -> list[str]:
    lengths = {"inputs": 20, "targets": 8}
    dataset = example_dataset(task, lengths, "train", shuffle=False, num_epochs=1)
    return [VOCABULARY.decode(example["decoder_target_tokens"].tolist()) for example in dataset.as_numpy_iterator()]


def test_control_flow_on_tensors():
    assert targets("long_or_short_in_python") == targets("long_or_short_in_tensorflow")
    assert targets("long_or_short_in_python") == ["short", "long", "short", "long"]


def test_autograph_is_on_again_afterwards():
    def sign(number: tf.Tensor) -> tf.Tensor:
        if number > 0:
            return tf.constant(1)
        return tf.constant(-1)

    with compat.without_autograph(), pytest.raises(tf.errors.OperatorNotAllowedInGraphError):
        tf.data.Dataset.range(1).map(sign)
    assert int(next(iter(tf.data.Dataset.range(3, 4).map(sign)))) == 1
