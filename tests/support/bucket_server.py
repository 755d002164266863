"""Cloud Storage on loopback: the part of its JSON API that TensorFlow's own `gs://` file system speaks.

TensorFlow knows one address for Cloud Storage, but takes a proxy and a certificate authority from the environment. The
server is that proxy: it answers CONNECT, speaks TLS as the hosts that TensorFlow asks for, and keeps objects in memory.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing.managers import BaseManager
from typing import NamedTuple

import trustme

_HOSTS = ("www.googleapis.com", "storage.googleapis.com")
TOKEN = "a-token"
_GRANULE = 1024  # The server keeps a multiple of this many bytes of an interrupted upload.
_PAGE = 10  # Entries of a listing; the service gives a thousand at once.


class Request(NamedTuple):
    """A request: its decoded path with the query, and the bytes that were sent and received."""

    method: str
    path: str
    sent: int
    answered: int


@dataclasses.dataclass
class _Fault:
    method: str
    fragment: str
    times: int
    status: int | None


class BucketServer:
    """Buckets in memory. Tests call its methods from another process, to look into them and to say what goes wrong.

    An account has what `roles/storage.objectAdmin` gives: it may do everything with objects, and not ask for a bucket.
    """

    def __init__(self, folder: str):
        """Starts to serve; `folder` gets its certificate."""
        self.buckets: dict[str, dict[str, bytes]] = {}
        self.generations: dict[tuple[str, str], int] = {}
        self.sessions: dict[str, bytearray] = {}
        self.read_only: set[str] = set()
        self.refused: set[str] = set()
        self.seen: list[Request] = []
        self.lock = threading.RLock()
        self._faults: list[_Fault] = []
        self._delays: list[float] = []
        self._delay = 0.0
        authority = trustme.CA()
        self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*_HOSTS).configure_cert(self.tls)
        self._certificate = os.path.join(folder, "authority.pem")
        authority.cert_pem.write_to_path(self._certificate)
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of": self}))
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """Returns the environment variables that direct TensorFlow to this server."""
        proxy = f"http://127.0.0.1:{self._http.server_port}"
        return {
            "HTTPS_PROXY": proxy,
            "https_proxy": proxy,
            "CURL_CA_BUNDLE": self._certificate,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": TOKEN,
        }

    def make(self, bucket: str, read_only: bool = False, refused: bool = False) -> None:
        """Makes an empty bucket, which the account may be able to read only, or not at all."""
        with self.lock:
            self.buckets[bucket] = {}
            self.read_only |= {bucket} if read_only else set()
            self.refused |= {bucket} if refused else set()

    def fail(self, method: str, fragment: str, times: int, status: int | None = 503) -> None:
        """Makes requests of a method with `fragment` in their path fail: with a status, or by a lost connection.

        Where the connection of an upload is lost, the first half of its bytes has come.
        """
        with self.lock:
            self._faults.append(_Fault(method, fragment, times, status))

    def slow_down(self, stalls: Sequence[float], seconds: float) -> None:
        """Makes the next requests wait for the seconds of `stalls`, one after the other, and all later ones alike."""
        with self.lock:
            self._delays, self._delay = list(stalls), seconds

    def delay(self) -> float:
        """Returns the seconds that a request is to wait."""
        with self.lock:
            return self._delays.pop(0) if self._delays else self._delay

    def heal(self) -> None:
        """Ends all failures and delays."""
        with self.lock:
            self._faults.clear()
            self._delays, self._delay = [], 0.0

    def put(self, bucket: str, name: str, content: bytes) -> None:
        """Writes an object."""
        with self.lock:
            self.buckets[bucket][name] = content
            self.generations[bucket, name] = self.generations.get((bucket, name), 0) + 1

    def content(self, bucket: str, name: str) -> bytes:
        """Returns an object's bytes, empty if it does not exist."""
        with self.lock:
            return self.buckets[bucket].get(name, b"")

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        """Lists a bucket's objects."""
        with self.lock:
            return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def requests(self) -> list[Request]:
        """Returns, and clears, the requests received so far."""
        with self.lock:
            seen, self.seen = self.seen, []
            return seen

    def fault(self, method: str, path: str) -> _Fault | None:
        """Returns how a request is to fail."""
        with self.lock:
            for fault in self._faults:
                if fault.times and fault.method == method and fault.fragment in path:
                    fault.times -= 1
                    return fault
        return None


class _Manager(BaseManager):
    """Runs the server in a process of its own: TensorFlow holds the interpreter's lock while it waits for responses."""


_Manager.register("BucketServer", BucketServer)


@contextlib.contextmanager
def serving(folder: pathlib.Path) -> Iterator[BucketServer]:
    """Runs a server; `folder` gets its certificate."""
    with _Manager(ctx=multiprocessing.get_context("spawn")) as manager:
        yield manager.BucketServer(str(folder))


class _Handler(BaseHTTPRequestHandler):
    server_of: BucketServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments) -> None:
        """Logs nothing."""

    def do_CONNECT(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.connection = self.server_of.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", 0)
        self.close_connection = False

    def do_GET(self) -> None:
        self._handle(self._read if self.headers["Host"].startswith("storage.") else self._get)

    def do_POST(self) -> None:
        self._handle(self._post)

    def do_PUT(self) -> None:
        self._handle(self._put)

    def do_DELETE(self) -> None:
        self._handle(self._delete)

    def _handle(self, answer: Callable[[], None]) -> None:
        server = self.server_of
        parts = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(parts.query))
        self.parts = [urllib.parse.unquote(part) for part in parts.path.strip("/").split("/")]
        self.readable = "/".join(self.parts) + "".join(f" {name}={value}" for name, value in self.query.items())
        self.body = self._read_body()
        time.sleep(server.delay())
        fault = server.fault(self.command, self.readable)
        if fault is not None and fault.status is None:
            if self.command == "PUT":
                kept = len(self.body) // 2 // _GRANULE * _GRANULE
                server.sessions[self.query["upload_id"]] += self.body[:kept]
            self.close_connection = True
            self.connection.close()
        elif fault is not None:
            self._refuse(fault.status, "We encountered an internal error. Please try again.")
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._refuse(401, "Anonymous caller does not have access.")
        else:
            with server.lock:
                answer()

    def _read_body(self) -> bytes:
        # TensorFlow sends both a length and chunks; the chunks take precedence.
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while length := int(self.rfile.readline(), 16):
            body += self.rfile.read(length)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None) -> None:
        with self.server_of.lock:
            self.server_of.seen.append(Request(self.command, self.readable, len(self.body), len(content)))
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, message: str) -> None:
        self._send(status, json.dumps({"error": {"code": status, "message": message}}, indent=2).encode())

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode())

    def _bucket(self, name: str, writes: bool = False) -> dict[str, bytes] | None:
        """Returns a bucket's objects; None, after an error response, if it does not exist or access is denied."""
        server = self.server_of
        if name in server.refused or (writes and name in server.read_only):
            action = "create" if writes else "list"
            self._refuse(403, f"a@b does not have storage.objects.{action} access to the bucket.")
        elif name not in server.buckets:
            self._refuse(404, "The specified bucket does not exist.")
        else:
            return server.buckets[name]
        return None

    def _get(self) -> None:
        match self.parts:
            case ["storage", "v1", "b", bucket]:
                self._refuse(403, f"a@b does not have storage.buckets.get access to {bucket}.")
            case ["storage", "v1", "b", bucket, "o"]:
                if (objects := self._bucket(bucket)) is not None:
                    self._list(objects)
            case ["storage", "v1", "b", bucket, "o", name]:
                if (objects := self._bucket(bucket)) is None:
                    return
                if name not in objects:
                    self._refuse(404, "No such object.")
                    return
                generation = str(self.server_of.generations[bucket, name])
                updated = "2020-01-01T00:00:00.000Z"
                self._send_json({"size": str(len(objects[name])), "generation": generation, "updated": updated})

    def _list(self, objects: dict[str, bytes]) -> None:
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        entries = set()
        for name in objects:
            if name.startswith(prefix):
                rest = name[len(prefix) :]
                first, cut, _ = rest.partition(delimiter) if delimiter else (rest, "", "")
                entries.add(prefix + first + cut)
        page = min(int(self.query.get("maxResults", _PAGE)), _PAGE)
        ordered = [entry for entry in sorted(entries) if entry > self.query.get("pageToken", "")]
        chosen = ordered[:page]
        answer: dict[str, object] = {
            "items": [{"name": entry} for entry in chosen if entry in objects],
            "prefixes": [entry for entry in chosen if entry not in objects],
            "nextPageToken": chosen[-1] if len(ordered) > page else "",
        }
        self._send_json({name: value for name, value in answer.items() if value})

    def _read(self) -> None:
        bucket, name = self.parts[0], "/".join(self.parts[1:])
        objects = self._bucket(bucket)
        if objects is None:
            return
        if name not in objects:
            self._refuse(404, "No such object.")
            return
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        content = objects[name][first : last + 1]
        self._send(206 if content else 416, content)

    def _post(self) -> None:
        server = self.server_of
        match self.parts:
            case ["upload", "storage", "v1", "b", bucket, "o"]:
                if (objects := self._bucket(bucket, writes=True)) is None:
                    return
                name = self.query["name"]
                if self.query["uploadType"] == "resumable":
                    session = f"session-{len(server.sessions)}"
                    server.sessions[session] = bytearray()
                    query = urllib.parse.urlencode({"name": name, "upload_id": session})
                    self._send(200, headers={"Location": f"https://{_HOSTS[0]}/upload/storage/v1/b/{bucket}/o?{query}"})
                elif self.query.get("ifGenerationMatch") == "0" and name in objects:
                    self._refuse(412, "It is there.")
                else:
                    server.put(bucket, name, self.body)
                    self._send_json({})
            case ["storage", "v1", "b", bucket, "o", name, "rewriteTo", "b", other, "o", target]:
                if self._bucket(other, writes=True) is None:
                    return
                if name not in server.buckets[bucket]:
                    self._refuse(404, "No such object.")
                    return
                server.put(other, target, server.buckets[bucket][name])
                self._send_json({"done": True})

    def _put(self) -> None:
        session = self.server_of.sessions[self.query["upload_id"]]
        span, _, total = self.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        if span == "*" and len(session) < int(total):
            self._send(308, headers={"Range": f"bytes=0-{len(session) - 1}"} if session else {})
            return
        if span and span != "*":
            first, last = map(int, span.split("-"))
            if first != len(session) or len(self.body) != last + 1 - first:
                self._refuse(400, "These are not the next bytes.")
                return
        session += self.body
        self.server_of.put(self.parts[4], self.query["name"], bytes(session))
        self._send_json({})

    def _delete(self) -> None:
        bucket, name = self.parts[3], self.parts[5]
        if (objects := self._bucket(bucket, writes=True)) is None:
            return
        if objects.pop(name, None) is None:
            self._refuse(404, "No such object.")
            return
        self._send(204)
