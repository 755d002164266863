"""Packed training data: the same examples, and the loss that they have alone."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

import tests.support.tiny_task  # noqa: F401 (registers tasks)
from switch_tf.data.batches import example_dataset
from switch_tf.data.training_batches import TrainingBatches
from switch_tf.errors import SettingError
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.training.losses import token_losses, token_weights
from tasks import vocabularies

TASK = "tiny_pairs"
LENGTHS = {"inputs": 64, "targets": 32}


@pytest.fixture(scope="module", autouse=True)
def _vocabulary(tmp_path_factory) -> None:
    vocabularies.TrainedVocabulary(task=TASK, num_pieces=400).install(str(tmp_path_factory.mktemp("run")))


def examples(pack: bool) -> dict[str, np.ndarray]:
    """Every example of the training split once, [rows, length] by feature."""
    dataset = example_dataset(TASK, LENGTHS, "train", pack=pack, shuffle=False, num_epochs=1, seed=0)
    rows = list(dataset.as_numpy_iterator())
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def pairs(batch: dict[str, np.ndarray]) -> list[tuple[bytes, bytes, bytes]]:
    """Input, decoder input and target tokens of each example, taken out of the rows by their segments."""
    found = []
    for row in range(len(batch["encoder_input_tokens"])):
        ends = {}
        for side, tokens in (("encoder", "encoder_input_tokens"), ("decoder", "decoder_target_tokens")):
            no_segments = (batch[tokens] != 0).astype(np.int32)
            ends[side] = batch.get(f"{side}_segment_ids", no_segments)[row]
        for segment in range(1, ends["encoder"].max() + 1):
            decoder = ends["decoder"] == segment
            found.append(
                (
                    batch["encoder_input_tokens"][row][ends["encoder"] == segment].tobytes(),
                    batch["decoder_input_tokens"][row][decoder].tobytes(),
                    batch["decoder_target_tokens"][row][decoder].tobytes(),
                )
            )
    return found


def test_packed_rows_hold_every_example_once():
    single, packed = examples(pack=False), examples(pack=True)
    assert packed.keys() - single.keys() == {"encoder_segment_ids", "decoder_segment_ids"}
    assert {array.dtype for array in packed.values()} == {np.dtype(np.int32)}
    assert {len(array[0]) for array in packed.values()} == {64, 32}
    assert len(packed["encoder_input_tokens"]) < len(single["encoder_input_tokens"]) / 3
    assert sorted(pairs(packed)) == sorted(pairs(single))
    assert len(pairs(single)) == len(single["encoder_input_tokens"])


@pytest.mark.parametrize("num_experts", [0, 4])
def test_the_loss_is_that_of_the_examples_alone(tiny_config, num_experts):
    """Every token gets its expert here: with capacity limits, which tokens share a group matters."""
    config = dataclasses.replace(
        tiny_config, vocab_size=512, num_experts=num_experts, group_size=64, eval_capacity_factor=4.0
    )
    model = EncoderDecoder(config)
    model.build()

    def losses(pack: bool) -> np.ndarray:
        features = {name: tf.constant(array) for name, array in examples(pack).items()}
        return np.array(token_losses(model(features), features["decoder_target_tokens"], token_weights(features)))

    np.testing.assert_allclose(losses(pack=True), losses(pack=False), rtol=1e-4)


def test_packed_streams_resume_exactly():
    def streams() -> TrainingBatches:
        return TrainingBatches(TASK, LENGTHS, 4, seed=0, num_shards=2, pack=True)

    first = streams()
    for _ in range(30):  # More than an epoch.
        next(first)
    positions = first.positions()
    expected = [next(first) for _ in range(3)]
    resumed = streams()
    resumed.restore(positions.__getitem__)
    for batch in expected:
        again = next(resumed)
        assert again.keys() == batch.keys() and "decoder_segment_ids" in batch
        for name, array in batch.items():
            np.testing.assert_array_equal(again[name], array)


def test_a_position_of_another_pipeline_is_refused():
    packed = TrainingBatches(TASK, LENGTHS, 4, seed=0, pack=True)
    next(packed)
    positions = packed.positions()
    padded = TrainingBatches(TASK, LENGTHS, 4, seed=0)
    with pytest.raises(SettingError, match=f"position in '{TASK}' was saved by another version of its input pipeline"):
        padded.restore(positions.__getitem__)
