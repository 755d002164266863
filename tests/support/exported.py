"""A tiny model with random weights, exported once in a process."""

import functools
import pathlib
import pydoc_data.topics
import tempfile
from typing import NamedTuple

import seqio

from switch_tf.data.sentencepiece import train_sentencepiece
from switch_tf.decoding.settings import Decoding
from switch_tf.export.model_functions import Shapes
from switch_tf.export.saved_model import export_saved_model, in_bfloat16
from switch_tf.models.config import ModelConfig
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.engine import SingleEngine
from switch_tf.partitioning.layout import Layout
from switch_tf.runs.predictor import Predictor

CONFIG = ModelConfig(
    vocab_size=640,
    d_model=32,
    d_ff=64,
    d_kv=8,
    num_heads=4,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_experts=4,
    initializer_scale=1.0,
)
SHAPES = Shapes((8, 32), 8, (4,))
# Emoji, Chinese, nothing, bytes that are no UTF-8, 10,000 words, sentinels.
TEXTS = [
    b"the statement returns a value",
    "\N{PARTY POPPER} \N{LLAMA}\N{VARIATION SELECTOR-16} and \u4e2d\u6587\u5b57\u7b26".encode(),
    b"",
    b"\xff\xfe bytes \xe4\xb8",
    b"word " * 10_000,
    b"The <extra_id_0> statement <extra_id_1>.",
    b"x",
]


class Exported(NamedTuple):
    """folder: of the SavedModel; predictor: of the same weights, in this process; vocabulary: of both."""

    folder: str
    predictor: Predictor
    vocabulary: seqio.SentencePieceVocabulary
    model: EncoderDecoder


@functools.cache
def vocabulary() -> seqio.SentencePieceVocabulary:
    """512 pieces with those of single bytes, and 100 sentinels."""
    path = pathlib.Path(tempfile.mkdtemp()) / "sentencepiece.model"
    lines = "\n".join(pydoc_data.topics.topics.values()).splitlines()
    path.write_bytes(train_sentencepiece(iter(lines), 512))
    return seqio.SentencePieceVocabulary(str(path), extra_ids=100)


@functools.cache
def exported(decoding: Decoding = Decoding(), dtype: str = "float32") -> Exported:  # noqa: B008 (immutable)
    """The model, exported into a folder named by a version."""
    model = EncoderDecoder(CONFIG, seed=3)
    model.build()
    if dtype == "bfloat16":
        model = in_bfloat16(model)
    folder = str(pathlib.Path(tempfile.mkdtemp()) / "7")
    export_saved_model(model, vocabulary().sp_model, decoding, SHAPES, folder)
    lengths = {"inputs": SHAPES.max_length, "targets": SHAPES.target_length}
    engine = SingleEngine(Layout.parse("", ""))
    predictor = Predictor(model, engine, vocabulary(), lengths, decoding, batch_size=4, too_long="cut")
    return Exported(folder, predictor, vocabulary(), model)
