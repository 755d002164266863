"""The HTTP server: TensorFlow Serving's REST API over one model, metrics for Prometheus, and a page to try it."""

import asyncio
import contextlib
import html
import json
import pathlib
import signal
import socket
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

import prometheus_client
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from switch_tf.errors import SettingError
from switch_tf.serving import rest_api
from switch_tf.serving.batching import Batcher, QueueFull

if TYPE_CHECKING:
    from switch_tf.serving.served_model import ServedModel

_PAGE = pathlib.Path(__file__).parent / "page.html"
_SECONDS_TO_STOP = 60


class Limits(NamedTuple):
    """What the server accepts.

    max_batch_size: texts that go through the model together; 1: no batching.
    batch_timeout: seconds that a request waits for others.
    max_waiting: texts that may wait; a request that finds no room gets status 503.
    max_request_bytes: of a request's body; a larger one gets status 413.
    """

    max_batch_size: int = 16
    batch_timeout: float = 0.005
    max_waiting: int = 1024
    max_request_bytes: int = 2**20


class TooLarge(Exception):
    """A request's body has more bytes than are accepted."""


class ModelServer:
    """The routes of one model.

    Attributes:
      app: the ASGI application.
    """

    def __init__(self, model: "ServedModel", name: str, limits: Limits):
        """Starts the batching thread.

        Args:
          model: loaded.
          name: in the addresses, /v1/models/NAME.
          limits: what is accepted.
        """
        self._model = model
        self._name = name
        self._limits = limits
        self._input_names = {signature: model.input_names(signature) for signature in model.signatures}
        self._batcher = Batcher(model.run, limits.max_batch_size, limits.batch_timeout, limits.max_waiting)
        self._registry = prometheus_client.CollectorRegistry()
        self._count_metrics()
        self.app = Starlette(
            routes=[
                Route("/", self._page),
                Route("/metrics", self._metrics),
                Route("/v1/models/{name}:predict", self._predict, methods=["POST"]),
                Route("/v1/models/{name}/versions/{version}:predict", self._predict, methods=["POST"]),
                Route("/v1/models/{name}/metadata", self._metadata),
                Route("/v1/models/{name}/versions/{version}/metadata", self._metadata),
                Route("/v1/models/{name}", self._status),
                Route("/v1/models/{name}/versions/{version}", self._status),
            ],
            lifespan=self._lifespan,
        )

    def _count_metrics(self) -> None:
        registry = self._registry
        self._requests = prometheus_client.Counter(
            "switch_tf_requests", "Predict requests by status.", ["status"], registry=registry
        )
        self._texts = prometheus_client.Counter("switch_tf_texts", "Texts predicted.", registry=registry)
        self._seconds = prometheus_client.Histogram(
            "switch_tf_request_seconds",
            "Seconds from a predict request to its answer.",
            buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60),
            registry=registry,
        )
        waiting = prometheus_client.Gauge("switch_tf_waiting_texts", "Texts in the queue.", registry=registry)
        waiting.set_function(lambda: self._batcher.num_waiting)
        batches = prometheus_client.Gauge("switch_tf_batches", "Batches that the model has run.", registry=registry)
        batches.set_function(lambda: self._batcher.num_batches)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        del app
        yield
        # After the last request has been answered.
        self._batcher.close()

    async def _page(self, request: Request) -> Response:
        """GET /."""
        del request
        settings = {
            "name": self._name,
            "signature": "experts" if "experts" in self._input_names else "serving_default",
            "sparse_layers": self._model.description.get("sparse_layers", {}),
            "num_experts": self._model.description.get("num_experts", 0),
        }
        page = _PAGE.read_text(encoding="utf-8").replace("MODEL_NAME", html.escape(self._name))
        # "<" could end the script.
        return HTMLResponse(page.replace("MODEL_SETTINGS", json.dumps(settings).replace("<", "\\u003c")))

    async def _metrics(self, request: Request) -> Response:
        """GET /metrics."""
        del request
        text = prometheus_client.generate_latest(self._registry)
        return Response(text, media_type=prometheus_client.CONTENT_TYPE_LATEST)

    def _refusal(self, request: Request) -> Response | None:
        """Returns the error for another model's or version's address."""
        version = request.path_params.get("version", self._model.version)
        if request.path_params["name"] == self._name and version == self._model.version:
            return None
        return _error(404, f"There is one model here, '{self._name}', with one version, {self._model.version}.")

    async def _status(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        status = {"error_code": "OK", "error_message": ""}
        version = {"version": self._model.version, "state": "AVAILABLE", "status": status}
        return self._refusal(request) or JSONResponse({"model_version_status": [version]})

    async def _metadata(self, request: Request) -> Response:
        """GET /v1/models/NAME/metadata."""
        spec = {"name": self._name, "signature_name": "", "version": self._model.version}
        signatures = {"signature_def": {"signature_def": self._model.metadata()}}
        return self._refusal(request) or JSONResponse({"model_spec": spec, "metadata": signatures})

    async def _predict(self, request: Request) -> Response:
        """POST /v1/models/NAME:predict."""
        start = time.perf_counter()
        response = self._refusal(request) or await _or_error(lambda: self._answer(request))
        self._requests.labels(str(response.status_code)).inc()
        self._seconds.observe(time.perf_counter() - start)
        return response

    async def _answer(self, request: Request) -> Response:
        parsed = rest_api.parse(await self._body(request), self._input_names)
        outputs = await asyncio.wrap_future(self._batcher.submit(parsed.signature, parsed.inputs))
        self._texts.inc(len(next(iter(parsed.inputs.values()))))
        # In a thread, for thousands of texts take a while, in which others would not be answered.
        return await asyncio.to_thread(lambda: JSONResponse(rest_api.answer(outputs, parsed.is_by_row)))

    async def _body(self, request: Request) -> bytes:
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self._limits.max_request_bytes:
                raise TooLarge(f"A request may have {self._limits.max_request_bytes} bytes.")
        return bytes(body)


async def _or_error(answer: Callable[[], Awaitable[Response]]) -> Response:
    """Answers, or tells by a status and a sentence why not."""
    try:
        return await answer()
    except rest_api.BadRequest as error:
        return _error(400, str(error))
    except TooLarge as error:
        return _error(413, str(error))
    except QueueFull:
        return _error(503, "Too many texts wait: try again later.")
    except ClientDisconnect:
        return _error(400, "The request was cut off.")
    except Exception as error:
        traceback.print_exc()
        return _error(500, f"The model failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}")


def _error(status: int, sentence: str) -> Response:
    return JSONResponse({"error": sentence}, status_code=status)


def serve(model: "ServedModel", name: str, host: str, port: int, limits: Limits) -> None:
    """Serves a model until SIGTERM or Ctrl-C; requests that have come by then are answered.

    Args:
      model: loaded.
      name: of the model in addresses.
      host: address to listen at; 127.0.0.1 for this machine alone.
      port: 0 for any that is free.
      limits: what is accepted.

    Raises:
      SettingError: if the port is taken, or is none.
    """
    try:
        listener = socket.create_server((host, port), backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingError(f"--host={host} --port={port} cannot be opened: {reason}.") from error
    server = ModelServer(model, name, limits)
    config = uvicorn.Config(server.app, log_level="error", timeout_graceful_shutdown=_SECONDS_TO_STOP)
    address = f"http://{host}:{listener.getsockname()[1]}"
    # uvicorn sends itself the signal that stopped it once more, and one may come before uvicorn runs.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print(f"Serving version {model.version}: {address}/v1/models/{name}, a page at {address}/", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])
