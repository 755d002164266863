"""A fake of Cloud Storage on localhost, over a local folder: the part of the JSON API that Google's client calls.

(tests/support/bucket_server.py is the fake for TensorFlow's client, which does not support emulators.)
"""

import contextlib
import datetime
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

MODEL_DIR = "gs://the-bucket/runs/mine"
_MESSAGES = {404: "Not found.", 412: "At least one of the pre-conditions did not hold.", 416: "No such range."}


class _Handler(http.server.BaseHTTPRequestHandler):
    root: pathlib.Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _answer(self, code: int, content: bytes | dict | None = None, **headers: str) -> None:
        if content is None:
            content = {"error": {"code": code, "message": _MESSAGES[code]}} if code in _MESSAGES else b""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _resource(self, bucket: str, name: str) -> dict:
        path = self.root / bucket / name
        updated = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        about = {"name": name, "bucket": bucket, "size": str(path.stat().st_size), "updated": updated}
        return about | {"generation": self._generation(path)}

    @staticmethod
    def _generation(path: pathlib.Path) -> str:
        # Hosts write into the folder directly, and file times are too coarse.
        return str(int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:7])) if path.is_file() else "0"

    def _parts(self, pattern: str) -> tuple[str, ...] | None:
        found = re.fullmatch(pattern, urllib.parse.urlsplit(self.path).path)
        return found and tuple(urllib.parse.unquote(part) for part in found.groups())

    @property
    def _query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query))

    def do_GET(self):
        if parts := self._parts(r"/storage/v1/b/([^/]+)"):
            self._answer(200 if (self.root / parts[0]).is_dir() else 404, {"name": parts[0], "location": "US"})
        elif parts := self._parts(r"/storage/v1/b/([^/]+)/o"):
            self._list(*parts)
        else:
            parts = self._parts(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
            if not self.root.joinpath(*parts).is_file():
                self._answer(404)
            elif self._query.get("alt") == "media":
                self._read(*parts)
            else:
                self._answer(200, self._resource(*parts))

    def _list(self, bucket: str) -> None:
        folder = self.root / bucket
        if not folder.is_dir():
            self._answer(404)
            return
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        prefix = self._query.get("prefix", "")
        self._answer(200, {"items": [self._resource(bucket, name) for name in names if name.startswith(prefix)]})

    def _read(self, bucket: str, name: str) -> None:
        data, wanted = (self.root / bucket / name).read_bytes(), self.headers.get("Range")
        if wanted is None:
            self._answer(200, data)
            return
        start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
        if int(start) >= len(data):
            self._answer(416)
        else:
            self._answer(206, data[int(start) : int(end) + 1 if end else None])

    def _write(self, bucket: str, name: str, data: bytes) -> None:
        path = self.root / bucket / name
        if self._query.get("ifGenerationMatch", self._generation(path)) != self._generation(path):
            self._answer(412)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._answer(200, self._resource(bucket, name))

    def do_POST(self):
        body = self._body()
        (bucket,) = self._parts(r"/upload/storage/v1/b/([^/]+)/o")
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1].encode()
        about, content = (
            part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            for part in body.split(b"--" + boundary)[1:3]
        )
        self._write(bucket, json.loads(about)["name"], content)

    def do_DELETE(self):
        path = self.root.joinpath(*self._parts(r"/storage/v1/b/([^/]+)/o/(.+)"))
        if path.is_file():
            path.unlink()
            self._answer(204)
        else:
            self._answer(404)


@contextlib.contextmanager
def serving(root: pathlib.Path) -> Iterator[str]:
    """Serves the folders in `root` as buckets; yields the value for STORAGE_EMULATOR_HOST."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
