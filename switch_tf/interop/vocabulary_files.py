"""The SentencePiece model beside somebody's weights: as it is, or built from a tokenizer.json."""

import base64
import json
import re

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from switch_tf.errors import SettingError
from switch_tf.interop import binary_files

NUM_SENTINELS = 100
_SENTINEL = re.compile("▁?<extra_id_[0-9]+>")
_CONTROL = ("<pad>", "</s>")
_UNKNOWN = "<unk>"


def sentencepiece_model(path: str) -> bytes:
    """Reads a vocabulary.

    Args:
      path: of a SentencePiece model (`spiece.model`) or of a `tokenizer.json` of the Unigram kind.

    Returns:
      The serialized SentencePiece model.

    Raises:
      SettingError: if it is neither.
    """
    content = binary_files.read_range(path, 0, binary_files.size_of(path)).tobytes()
    try:
        model = _from_tokenizer(json.loads(content)) if path.endswith(".json") else content
        sentencepiece.SentencePieceProcessor(model_proto=model)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise SettingError(
            f"{path} is no vocabulary of SentencePiece ({reason}): name one with --vocabulary=FILE."
        ) from error
    return model


def _from_tokenizer(values: dict) -> bytes:
    unigram = values["model"]
    if unigram["type"] != "Unigram":
        raise ValueError(f"its model is {unigram['type']}")
    vocabulary = unigram["vocab"]
    while vocabulary and _SENTINEL.fullmatch(vocabulary[-1][0]):
        vocabulary = vocabulary[:-1]  # The sentinels come after the pieces, here as there.
    model = sentencepiece_model_pb2.ModelProto()
    kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
    for piece, score in vocabulary:
        kind = kinds.CONTROL if piece in _CONTROL else kinds.UNKNOWN if piece == _UNKNOWN else kinds.NORMAL
        if unigram.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            kind = kinds.BYTE
        model.pieces.add(piece=piece, score=score, type=kind)
    names = [piece for piece, _ in vocabulary]
    model.trainer_spec.model_type = sentencepiece_model_pb2.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(names)
    model.trainer_spec.unk_id = unigram["unk_id"]
    model.trainer_spec.pad_id, model.trainer_spec.eos_id = (names.index(name) for name in _CONTROL)
    model.trainer_spec.bos_id = -1
    model.trainer_spec.byte_fallback = bool(unigram.get("byte_fallback"))
    model.normalizer_spec.name = "nmt_nfkc"
    model.normalizer_spec.precompiled_charsmap = base64.b64decode(_character_map(values.get("normalizer") or {}))
    return model.SerializeToString()


def _character_map(normalizer: dict) -> str:
    steps = normalizer.get("normalizers", [normalizer])
    return next((step["precompiled_charsmap"] or "" for step in steps if step.get("type") == "Precompiled"), "")


def check_size(model: bytes, vocab_size: int, source: str) -> None:
    """Checks that a model has a row for each id of a vocabulary, sentinels included.

    Args:
      model: the serialized SentencePiece model.
      vocab_size: V.
      source: where the vocabulary is from, for the error.

    Raises:
      SettingError: if there are more ids.
    """
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    has_sentinels = any(_SENTINEL.fullmatch(processor.id_to_piece(index)) for index in range(len(processor)))
    num_ids = len(processor) + (0 if has_sentinels else NUM_SENTINELS)
    if num_ids > vocab_size:
        raise SettingError(
            f"{source} has {num_ids} ids, sentinels included, and the token table {vocab_size} rows: name the weights' "
            "own vocabulary with --vocabulary=FILE."
        )
