"""A model as a SavedModel: text in, text out, with nothing of this package needed to run it."""

import json
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from switch_tf.decoding.settings import Decoding
from switch_tf.export.model_functions import ModelFunctions, Outputs, Shapes
from switch_tf.export.text_processing import TextProcessing
from switch_tf.export.warmup import write_warmup_requests
from switch_tf.models.encoder_decoder import EncoderDecoder
from switch_tf.partitioning.axes import weight_being_made

DESCRIPTION = "switch_tf.json"
_TEXTS = tf.TensorSpec([None], tf.string)


class Size(NamedTuple):
    """Bytes of a SavedModel: of its weights, and of its graphs."""

    weights: int
    graphs: int


class TextModel(tf.Module):
    """The signatures of the SavedModel.

    `serving_default`: inputs -> outputs, scores. `score`: inputs, targets -> scores. `encode`: inputs -> embeddings,
    lengths. `experts` (of a sparse model whose tokens choose experts): inputs -> outputs and where each token went.
    """

    def __init__(self, functions: ModelFunctions, text: TextProcessing):
        super().__init__(name="text_model")
        self._functions = functions
        self._weights = functions.weights
        self._text = text
        self._has_one_result = functions.decoding.num_results == 1

    @tf.function(input_signature=[_TEXTS], autograph=False)
    def predict(self, inputs: tf.Tensor) -> Outputs:
        """Predicts: string [n] -> outputs string [n], scores float32 [n]; [n, k] of several beams or samples."""
        decoded = self._functions.decode(self._tokenize(inputs))
        texts, scores = self._texts(decoded["tokens"]), decoded["scores"]
        if self._has_one_result:
            texts, scores = tf.squeeze(texts, 1), tf.squeeze(scores, 1)
        return {"outputs": texts, "scores": scores}

    @tf.function(input_signature=[_TEXTS, _TEXTS], autograph=False)
    def score(self, inputs: tf.Tensor, targets: tf.Tensor) -> Outputs:
        """Measures log likelihoods in nats: string [n] twice -> scores float32 [n]."""
        ids = self._text.tokenize(targets, self._functions.shapes.target_length)
        return self._functions.score(self._tokenize(inputs), ids)

    @tf.function(input_signature=[_TEXTS], autograph=False)
    def encode(self, inputs: tf.Tensor) -> Outputs:
        """Encodes: string [n] -> embeddings float32 [n, L, M], and how many of the L are of tokens, int32 [n]."""
        tokens = self._tokenize(inputs)
        lengths = tf.cast(tokens.row_lengths(), tf.int32)
        return self._functions.encode(tokens) | {"lengths": lengths}

    @tf.function(input_signature=[_TEXTS], autograph=False)
    def experts(self, inputs: tf.Tensor) -> Outputs:
        """Predicts, and tells each token's expert in each sparse layer.

        Args:
          inputs: string [n].

        Returns:
          outputs string [n]; input_pieces string [n, L] and output_pieces [n, T], "" for padding; encoder_experts int32
          [n, layers, L] and decoder_experts [n, layers, T].
        """
        tokens = self._tokenize(inputs)
        targets = self._functions.decode(tokens)["tokens"][:, 0]
        routed = self._functions.route(tokens, targets)
        return {
            "outputs": self._text.detokenize(targets),
            "input_pieces": self._text.pieces(routed.pop("input_tokens")),
            "output_pieces": self._text.pieces(targets),
            **routed,
        }

    def _tokenize(self, texts: tf.Tensor) -> tf.RaggedTensor:
        return self._text.tokenize(texts, self._functions.shapes.max_length)

    def _texts(self, tokens: tf.Tensor) -> tf.Tensor:
        """Detokenizes int32 [n, k, T]: string [n, k]."""
        _, results, length = tokens.shape
        return tf.reshape(self._text.detokenize(tf.reshape(tokens, [-1, length])), [-1, results])


def export_saved_model(
    model: EncoderDecoder, sentencepiece_model: bytes, decoding: Decoding, shapes: Shapes, folder: str
) -> Size:
    """Writes a SavedModel, with warm-up requests and a description in `assets.extra`.

    Args:
      model: built, with its weights, float32 or of `in_bfloat16`.
      sentencepiece_model: the vocabulary.
      decoding: which decoder, and its settings.
      shapes: static shapes to trace.
      folder: to write; a number, for TensorFlow Serving.

    Returns:
      How large it is.

    Raises:
      OSError, tf.errors.OpError: if it cannot be written.
    """
    functions = ModelFunctions(model, decoding, shapes)
    exported = TextModel(functions, TextProcessing(sentencepiece_model))
    signatures = {"serving_default": exported.predict, "score": exported.score, "encode": exported.encode}
    if _experts_are_chosen(model):
        signatures["experts"] = exported.experts
    tf.saved_model.save(exported, folder, signatures=signatures)
    extra = os.path.join(folder, "assets.extra")
    tf.io.gfile.makedirs(extra)
    write_warmup_requests(extra, shapes)
    description = {
        "decoder": decoding.decoder,
        "results": decoding.num_results,
        "lengths": {"inputs": shapes.max_length, "targets": shapes.target_length},
        "num_experts": model.config.num_experts,
        "sparse_layers": functions.sparse_layers if "experts" in signatures else {},
    }
    with tf.io.gfile.GFile(os.path.join(extra, DESCRIPTION), "w") as file:
        file.write(json.dumps(description, indent=2) + "\n")
    return Size(_bytes_in(os.path.join(folder, "variables")), _bytes_in(folder))


def in_bfloat16(model: EncoderDecoder) -> EncoderDecoder:
    """Returns a copy of a model whose matrices and tables are stored as bfloat16 and cast where they are used.

    Routers, norms and position biases stay float32 (selective precision, Sec. 2.4).
    """

    def make(next_creator: Callable[..., tf.Variable], **settings: Any) -> tf.Variable:
        made = weight_being_made()
        assert made is not None, "An EncoderDecoder makes weights alone."
        is_large = len(made.axes) > 1 and None not in made.axes
        dtype = tf.bfloat16 if is_large else tf.float32
        # The values are assigned below.
        return next_creator(**{**settings, "dtype": dtype, "initial_value": tf.zeros(made.shape, dtype)})

    copy = EncoderDecoder(model.config)
    with tf.variable_creator_scope(make):
        copy.build()
    for ours, theirs in zip(copy.trainable_variables, model.trainable_variables):
        ours.value.assign(tf.cast(theirs.value, ours.value.dtype))
    return copy


def _experts_are_chosen(model: EncoderDecoder) -> bool:
    config = model.config
    return bool(config.sparse_layer_names) and all(
        config.make_router(is_decoder).tokens_choose_experts for is_decoder in (False, True)
    )


def _bytes_in(folder: str) -> int:
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for name in tf.io.gfile.listdir(folder)
        if not tf.io.gfile.isdir(os.path.join(folder, name))
    )
