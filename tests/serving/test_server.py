"""The server with a model that answers in capitals: the API, its limits, batching, the end; the page in Chromium."""

import base64
import concurrent.futures
import json
import random
import re
import shutil
import subprocess

import pytest

from tests.support.model_server import ModelServer

pytest.importorskip("uvicorn", reason="the [serve] extra is not installed")
pytest.importorskip("prometheus_client", reason="the [serve] extra is not installed")

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), ""
)


def fake_server(seconds: float = 0.0, max_batch_size: int = 16, max_waiting: int = 1000) -> ModelServer:
    arguments = map(str, (seconds, max_batch_size, max_waiting))
    return ModelServer("tests.programs.serve_fake_model", *arguments, name="fake")


@pytest.fixture(scope="module")
def server():
    server = fake_server()
    yield server
    # Where a model fails, the server's log has the traceback.
    assert server.stop().count("Traceback") == 1


def test_rows_and_columns(server):
    row = {"outputs": "A TEXT", "scores": 6.0}
    assert server.predict({"instances": ["a text"]}) == (200, {"predictions": [row]})
    assert server.predict({"instances": [{"inputs": "a text"}]}) == (200, {"predictions": [row]})
    encoded = {"b64": base64.b64encode(b"a text").decode()}
    assert server.predict({"instances": [encoded, encoded]}) == (200, {"predictions": [row, row]})
    columns = {"outputs": {"outputs": ["A TEXT", "B"], "scores": [6.0, 1.0]}}
    for inputs in (["a text", "b"], {"inputs": ["a text", "b"]}):
        assert server.predict({"inputs": inputs, "signature_name": "serving_default"}) == (200, columns)
    score = {"signature_name": "score", "instances": [{"inputs": "abc", "targets": "x"}]}
    assert server.predict(score) == (200, {"predictions": [3.0]})
    score = {"signature_name": "score", "inputs": {"inputs": ["abc"], "targets": ["x"]}}
    assert server.predict(score) == (200, {"outputs": [3.0]})
    not_utf8 = {"b64": base64.b64encode(b"\xff").decode()}
    assert server.predict({"instances": [not_utf8]})[1]["predictions"][0]["outputs"] == "\N{REPLACEMENT CHARACTER}"


def test_status_and_metadata(server):
    status = {"error_code": "OK", "error_message": ""}
    expected = {"model_version_status": [{"version": "3", "state": "AVAILABLE", "status": status}]}
    for path in ("/v1/models/fake", "/v1/models/fake/versions/3"):
        assert json.loads(server.request("GET", path)[1]) == expected
    metadata = json.loads(server.request("GET", "/v1/models/fake/metadata")[1])
    assert metadata["model_spec"] == {"name": "fake", "signature_name": "", "version": "3"}
    assert "score" in metadata["metadata"]["signature_def"]["signature_def"]
    assert server.request("POST", "/v1/models/fake/versions/3:predict", {"instances": ["x"]})[0] == 200
    for path in ("/v1/models/other", "/v1/models/fake/versions/2"):
        status, text = server.request("GET", path)
        assert status == 404 and "one model here, 'fake'" in json.loads(text)["error"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("{", "not JSON"),
        ("[" * 5000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ([], "must be a JSON object"),
        ({}, "either 'instances' or 'inputs'"),
        ({"instances": ["x"], "inputs": ["x"]}, "either 'instances' or 'inputs'"),
        ({"instances": []}, "at least one text"),
        ({"instances": "x"}, "must be a list"),
        ({"instances": [3]}, "A text must be a string"),
        ({"instances": [{"b64": "*"}]}, "A text cannot be read"),
        ('{"instances": ["\\ud800"]}', "A text cannot be read"),
        ({"instances": [{"text": "x"}]}, "must have the inputs inputs"),
        ({"inputs": {"inputs": "x"}}, "must be a list"),
        ({"inputs": ["x"], "signature_name": "none"}, "There is no signature 'none'"),
        ({"inputs": ["x"], "signature_name": ["score"]}, "There is no signature"),
        ({"signature_name": "score", "instances": ["x"]}, "must be an object with the inputs inputs, targets"),
        ({"signature_name": "score", "inputs": {"inputs": ["x"], "targets": ["a", "b"]}}, "equally many"),
    ],
)
def test_bad_requests_get_a_sentence(server, body, sentence):
    status, answer = server.predict(body)
    assert status == 400 and sentence in answer["error"]


def test_large_requests_and_failures(server):
    status, answer = server.predict({"instances": ["x" * 20_000]})
    assert status == 413 and answer["error"] == "A request may have 10000 bytes."
    assert server.predict({"instances": ["fail"]}) == (500, {"error": "The model failed: It cannot."})
    assert server.request("POST", "/v1/models/fake", "{}")[0] == 405
    assert server.request("GET", "/nothing")[0] == 404


def test_a_thousand_malformed_requests_leave_it_serving(server):
    random_ = random.Random(0)
    head = b"POST /v1/models/fake:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    kinds = [
        lambda: random_.randbytes(200),
        lambda: head % 500 + b'{"instances": ["cut',
        lambda: head % 2 + b"{]",
        lambda: head % 10**12 + b'{"instances": ["x"]}',
        lambda: b"POST /v1/models/fake:predict HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        lambda: b"GET " + b"/" * 70_000 + b" HTTP/1.1\r\n\r\n",
        lambda: b"POST /v1/models/fake:pre",
    ]
    for index in range(1000):
        server.raw(kinds[index % len(kinds)]())
    assert server.predict({"instances": ["x"]})[0] == 200
    assert server.process.poll() is None


def test_metrics(server):
    server.predict({"instances": ["x"]})
    values = server.metrics()
    assert values['switch_tf_requests_total{status="200"}'] >= 1
    assert values["switch_tf_texts_total"] >= 1 and values["switch_tf_waiting_texts"] == 0
    assert values["switch_tf_request_seconds_count"] >= 1 and values["switch_tf_batches"] >= 1


def test_requests_that_wait_share_batches_and_too_many_are_turned_down():
    server = fake_server(seconds=0.3, max_batch_size=4, max_waiting=8)
    texts = [f"text {index}" for index in range(40)]
    with concurrent.futures.ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda text: server.predict({"instances": [text]}), texts))
    statuses = [status for status, _ in answers]
    assert set(statuses) == {200, 503}
    for text, (status, answer) in zip(texts, answers):
        if status == 200:
            assert answer["predictions"][0]["outputs"] == text.upper()
        else:
            assert answer["error"] == "Too many texts wait: try again later."
    assert server.metrics()["switch_tf_batches"] < statuses.count(200)
    server.stop()


def test_what_has_come_is_answered_after_sigterm():
    server = fake_server(seconds=0.4, max_batch_size=1)
    with concurrent.futures.ThreadPoolExecutor(5) as clients:
        answers = [clients.submit(server.predict, {"instances": [f"text {index}"]}) for index in range(5)]
        while server.metrics()["switch_tf_waiting_texts"] < 4:  # One is with the model.
            pass
        server.stop()
        assert [answer.result()[0] for answer in answers] == [200] * 5


@pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium")
def test_the_page_shows_the_answer_and_the_experts(server, tmp_path):
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    command += ["--virtual-time-budget=20000", f"http://127.0.0.1:{server.port}/?text=one%20two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    page = done.stdout
    assert '<div id="answer">ONE TWO</div>' in page, done.stderr[-1000:]
    chips = re.findall(
        r'<span class="token" title="expert (\d)" style="background: ([^"]+);">([^<]+)<small>(\d)</small>', page
    )
    assert [(chip[0], chip[2]) for chip in chips] == [("2", "·one"), ("3", "·two")] * 2
    assert len({chip[1] for chip in chips}) == 2 and all(chip[0] == chip[3] for chip in chips)
    assert "encoder/layer_1" in page and "decoder/layer_1" in page
