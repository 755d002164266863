"""The manifest is the same after a round trip through JSON, and says what differs."""

import json

import pytest

from switch_tf.checkpoints.manifest import FORMAT, Manifest, Score, WrongFormat

MANIFEST = Manifest(
    step=7,
    settings={"SEED": 3, "TASK_FEATURE_LENGTHS": {"inputs": 8}},
    data={"USE_CACHED": False},
    model={"d_model": 16},
    shapes={"step": (), "token_embedder/embedding": (96, 16), "token_embedder/embedding/slots/v": (96, 16)},
    vocabulary="0" * 64,
    score=Score("glue/average", 83.25),
    versions={"keras": "3.15.1"},
)


def test_round_trip():
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST
    assert Manifest.from_json(Manifest(1).to_json()) == Manifest(1)


def test_the_keys_of_the_file_are_those_of_format_2():
    assert set(json.loads(MANIFEST.to_json())) == {
        "format", "step", "settings", "data", "model", "shapes", "vocabulary", "score", "slots_since", "versions",
        "digest",
    }  # fmt: skip
    assert "data" not in json.loads(Manifest(1).to_json())


def test_another_format_is_told_from_damage():
    values = json.loads(MANIFEST.to_json())
    values.pop("digest")  # As earlier versions wrote it.
    assert Manifest.from_json(json.dumps(values)) == MANIFEST
    with pytest.raises(WrongFormat):
        Manifest.from_json(json.dumps(values | {"format": FORMAT + 1}))
    for text in ("", "{", "[]", "3", json.dumps({"format": FORMAT}), json.dumps(values | {"shapes": 3})):
        with pytest.raises(ValueError) as caught:
            Manifest.from_json(text)
        assert not isinstance(caught.value, WrongFormat)


def test_difference_names_the_first_tensor_that_does_not_fit():
    shapes = {"step": (), "token_embedder/embedding": (96, 16)}
    assert MANIFEST.difference(shapes, with_slots=False) is None
    assert MANIFEST.difference(dict(MANIFEST.shapes), with_slots=True) is None
    assert MANIFEST.difference(shapes, with_slots=True) == (
        "token_embedder/embedding/slots/v is (96, 16) there and absent here"
    )
    wider = shapes | {"token_embedder/embedding": (96, 32)}
    assert MANIFEST.difference(wider, with_slots=False) == (
        "token_embedder/embedding is (96, 16) there and (96, 32) here"
    )
