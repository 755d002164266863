"""Warm-up requests for TensorFlow Serving: a TFRecord file of `PredictionLog` protocol buffers.

The classes of these messages are in another distribution (tensorflow-serving-api), so the few fields that are needed
are encoded here.
"""

import os

import tensorflow as tf

from switch_tf.export.model_functions import Shapes

_FILE = "tf_serving_warmup_requests"


def write_warmup_requests(folder: str, shapes: Shapes) -> None:
    """Writes one request for each shape that the model has a graph for.

    Args:
      folder: `assets.extra` of the SavedModel.
      shapes: of the model.
    """
    with tf.io.TFRecordWriter(os.path.join(folder, _FILE)) as writer:
        for length in shapes.lengths:
            for size in shapes.batch_sizes:
                # One letter is at least one token, and the longest graph takes whatever is cut.
                text = " ".join(["a"] * (length - 1))
                writer.write(_prediction_log({"inputs": tf.make_tensor_proto([text] * size, tf.string)}))


def _prediction_log(inputs: dict) -> bytes:
    # PredictRequest: model_spec = 1 (signature_name = 3), inputs = 2, a map of names to tensors.
    request = _message(1, _message(3, b"serving_default"))
    for name, tensor in inputs.items():
        request += _message(2, _message(1, name.encode()) + _message(2, tensor.SerializeToString()))
    # PredictionLog: predict_log = 6; PredictLog: request = 1.
    return _message(6, _message(1, request))


def _message(field: int, contents: bytes) -> bytes:
    """Encodes a field of wire type 2: bytes with their length before them."""
    return _varint(field << 3 | 2) + _varint(len(contents)) + contents


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
