"""The server over a SavedModel: its answers are `predict`'s, whatever shares a batch with them."""

import base64
import concurrent.futures
import json
import random

import pytest

pytest.importorskip("uvicorn", reason="the [serve] extra is not installed")
pytest.importorskip("prometheus_client", reason="the [serve] extra is not installed")

from tests.support.exported import TEXTS, exported
from tests.support.model_server import ModelServer

MALFORMED = [b"{", b'{"instances": [3]}', b'{"instances": ["' + b"x" * 2**20 + b'"]}', b'{"inputs": {"x": ["y"]}}']


@pytest.mark.slow
def test_answers_under_load_are_those_of_predict():
    folder, predictor, *_ = exported()
    words = ["the", "statement", "returns", "a", "value", "of", "each", "object", "that", "is", "given"]
    draw = random.Random(1)
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 40))).encode() for _ in range(150)] + TEXTS
    expected = [prediction.text for prediction in predictor.predict(texts)]
    server = ModelServer("switch_tf.cli.main", "serve", folder, "--port=0")

    def ask(index: int) -> tuple[int, dict]:
        if index % 10 == 0:  # Among the others come requests that are none.
            status, _ = server.predict(MALFORMED[index // 10 % len(MALFORMED)])
            assert status in (400, 413)
        return server.predict({"instances": [{"b64": base64.b64encode(texts[index]).decode()}]})

    with concurrent.futures.ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(ask, range(len(texts))))
    assert [status for status, _ in answers] == [200] * len(texts)
    assert [answer["predictions"][0]["outputs"] for _, answer in answers] == expected
    assert server.metrics()["switch_tf_batches"] < len(texts) / 2

    metadata = json.loads(server.request("GET", "/v1/models/model/versions/7/metadata")[1])
    signatures = metadata["metadata"]["signature_def"]["signature_def"]
    assert sorted(signatures) == ["encode", "experts", "score", "serving_default"]
    strings = {"dtype": "DT_STRING", "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}}
    assert signatures["serving_default"]["inputs"] == {"inputs": strings | {"name": "inputs"}}
    server.stop()
