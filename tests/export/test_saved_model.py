"""The SavedModel without this package: in a process with TensorFlow alone, by its command-line tool, and from C."""

import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_text
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from switch_tf.decoding.settings import Decoding
from switch_tf.errors import SettingError
from switch_tf.export.model_functions import Shapes
from tests.support.exported import SHAPES, TEXTS, exported

ROOT = pathlib.Path(__file__).parents[2]
# Runs a signature in a process that cannot see this package; texts and outputs as JSON.
ALONE = """
import json, sys
import tensorflow as tf
import tensorflow_text
folder, texts = sys.argv[1], [bytes.fromhex(text) for text in json.loads(sys.argv[2])]
outputs = tf.saved_model.load(folder).signatures["serving_default"](inputs=tf.constant(texts))
assert not any(name.startswith("switch_tf") for name in sys.modules)
print(json.dumps({name: [str(value) if isinstance(value, bytes) else value for value in tensor.numpy().tolist()]
                  for name, tensor in outputs.items()}))
"""


@functools.cache
def signatures(folder: str):
    return tf.saved_model.load(folder)


def run(folder: str, signature: str, **texts) -> dict[str, np.ndarray]:
    outputs = signatures(folder).signatures[signature](**{name: tf.constant(value) for name, value in texts.items()})
    return {name: tensor.numpy() for name, tensor in outputs.items()}


def predicted() -> list[bytes]:
    return [prediction.text.encode() for prediction in exported().predictor.predict(TEXTS)]


def test_in_a_process_of_its_own(tmp_path):
    command = [sys.executable, "-I", "-c", ALONE, exported().folder, json.dumps([text.hex() for text in TEXTS])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["outputs"] == [str(text) for text in predicted()]
    expected = [prediction.score for prediction in exported().predictor.predict(TEXTS)]
    np.testing.assert_allclose(found["scores"], expected, rtol=1e-4)


def test_any_number_of_texts(tmp_path):
    folder = exported().folder
    expected = run(folder, "serving_default", inputs=TEXTS)
    for number in (1, 2, 4, 5):
        found = run(folder, "serving_default", inputs=TEXTS[:number])
        np.testing.assert_array_equal(found["outputs"], expected["outputs"][:number])
        np.testing.assert_allclose(found["scores"], expected["scores"][:number], rtol=1e-4)
    assert run(folder, "serving_default", inputs=tf.zeros([0], tf.string))["outputs"].shape == (0,)


def test_scores_vectors_and_experts():
    folder, predictor, vocabulary, model = exported()
    targets = [b"a value"] * len(TEXTS)
    scores = run(folder, "score", inputs=TEXTS, targets=targets)["scores"]
    np.testing.assert_allclose(scores, predictor.score(TEXTS, targets), rtol=1e-4)

    encoded = run(folder, "encode", inputs=TEXTS)
    for states, length, expected in zip(encoded["embeddings"], encoded["lengths"], predictor.encode(TEXTS)):
        np.testing.assert_allclose(states[:length], expected, atol=1e-4)

    routed = run(folder, "experts", inputs=TEXTS[:1])
    ids = predictor.tokenize(TEXTS[0])
    np.testing.assert_array_equal(
        routed["input_pieces"][0, : len(ids)], [vocabulary.tokenizer.id_to_piece(token).encode() for token in ids]
    )
    features = {"encoder_input_tokens": tf.constant([ids]), "decoder_input_tokens": tf.constant([[0]])}
    routing = model(features, dropless=True, return_routing=True).routings["encoder/layer_1"]
    chosen = tf.argmax(routing.logits[0], axis=-1)
    np.testing.assert_array_equal(routed["encoder_experts"][0, 0, : len(ids)], chosen)
    assert routed["outputs"][0] == predicted()[0]


@pytest.mark.slow
def test_beams_in_bfloat16():
    folder, predictor, _, _ = exported(Decoding(decoder="beam", num_beams=2), "bfloat16")
    found = run(folder, "serving_default", inputs=TEXTS)
    for texts, scores, prediction in zip(found["outputs"], found["scores"], predictor.predict(TEXTS)):
        assert [text.decode() for text in texts] == [candidate.text for candidate in prediction.candidates]
        np.testing.assert_allclose(scores, [candidate.score for candidate in prediction.candidates], rtol=1e-3)
    sizes = {
        dtype: weights_bytes(exported(*arguments).folder)
        for dtype, arguments in (
            ("float32", ()),
            ("bfloat16", (Decoding(decoder="beam", num_beams=2), "bfloat16")),
        )
    }
    assert sizes["bfloat16"] < 0.6 * sizes["float32"]


def weights_bytes(folder: str) -> int:
    return sum(path.stat().st_size for path in pathlib.Path(folder, "variables").iterdir())


@pytest.mark.slow
def test_through_saved_model_cli(tmp_path):
    program = "import tensorflow_text; from tensorflow.python.tools import saved_model_cli as c; c.main()"
    arguments = ["run", "--dir", exported().folder, "--tag_set", "serve", "--signature_def", "serving_default"]
    arguments += ["--input_exprs", f"inputs={TEXTS[:2]!r}", "--outdir", str(tmp_path)]
    done = subprocess.run([sys.executable, "-I", "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert np.load(tmp_path / "outputs.npy", allow_pickle=True).tolist() == predicted()[:2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no gcc")
def test_from_c(tmp_path):
    libraries = pathlib.Path(tf.sysconfig.get_lib())
    program = str(tmp_path / "read_saved_model")
    links = [f"-l:{name}" for name in ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")]
    subprocess.run(
        [
            *("gcc", "-o", program, str(ROOT / "tests" / "programs" / "read_saved_model.c")),
            *(f"-I{tf.sysconfig.get_include()}", f"-L{libraries}", f"-Wl,-rpath,{libraries}", *links),
        ],
        check=True,
    )
    operations = pathlib.Path(tensorflow_text.__file__).parent / "python" / "ops" / "_sentencepiece_tokenizer.so"
    meta = tf.compat.v1.MetaGraphDef()
    saved = pathlib.Path(exported().folder, "saved_model.pb").read_bytes()
    from tensorflow.core.protobuf import saved_model_pb2

    meta = saved_model_pb2.SavedModel.FromString(saved).meta_graphs[0]
    signature = meta.signature_def["serving_default"]
    feed, fetch = signature.inputs["inputs"].name, signature.outputs["outputs"].name
    texts = [text for text in TEXTS if b"\0" not in text]
    done = subprocess.run(
        [program, str(operations), exported().folder, feed.split(":")[0], *fetch.split(":")],
        input=b"".join(text + b"\0" for text in texts),
        capture_output=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(libraries)},
    )
    assert done.returncode == 0, done.stderr[-2000:].decode()
    assert done.stdout.split(b"\0")[:-1] == predicted()


def prediction_log_class():
    """The messages of tensorflow_serving/apis, as far as they matter here."""
    file = descriptor_pb2.FileDescriptorProto(name="log.proto", package="t", syntax="proto3")
    file.dependency.append("tensorflow/core/framework/tensor.proto")
    field = descriptor_pb2.FieldDescriptorProto
    messages = {
        "ModelSpec": [("signature_name", 3, None)],
        "Entry": [("key", 1, None), ("value", 2, "tensorflow.TensorProto")],
        "PredictRequest": [("model_spec", 1, "t.ModelSpec"), ("inputs", 2, "t.Entry")],
        "PredictLog": [("request", 1, "t.PredictRequest")],
        "PredictionLog": [("predict_log", 6, "t.PredictLog")],
    }
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            label = field.LABEL_REPEATED if field_name == "inputs" else field.LABEL_OPTIONAL
            added = message.field.add(name=field_name, number=number, label=label)
            added.type = field.TYPE_STRING if kind is None else field.TYPE_MESSAGE
            if kind is not None:
                added.type_name = f".{kind}"
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.PredictionLog"))


def test_warm_up_requests_are_prediction_logs():
    path = os.path.join(exported().folder, "assets.extra", "tf_serving_warmup_requests")
    records = [
        prediction_log_class().FromString(record) for record in tf.data.TFRecordDataset(path).as_numpy_iterator()
    ]
    assert len(records) == len(SHAPES.lengths) * len(SHAPES.batch_sizes)
    for record in records:
        request = record.predict_log.request
        assert request.model_spec.signature_name == "serving_default"
        (entry,) = request.inputs
        assert entry.key == "inputs" and len(tf.make_ndarray(entry.value)) in SHAPES.batch_sizes


def test_shapes_that_make_no_sense_are_errors():
    with pytest.raises(SettingError, match="--lengths=64,32 must be ascending"):
        Shapes((64, 32), 8, (1,))
