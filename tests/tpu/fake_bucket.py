"""As much of Cloud Storage's JSON API as the client needs, on loopback, over a local folder."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator


class _Handler(http.server.BaseHTTPRequestHandler):
    root: pathlib.Path
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _answer(self, code: int, content: bytes | dict) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        self.send_header(
            "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _error(self, code: int, message: str) -> None:
        self._answer(code, {"error": {"code": code, "message": message}})

    def _resource(self, bucket: str, name: str) -> dict:
        path = self.root / bucket / name
        return {"name": name, "bucket": bucket, "size": str(path.stat().st_size), "generation": self._generation(path)}

    @staticmethod
    def _generation(path: pathlib.Path) -> str:
        # Machines write into the folder as well, and times are too coarse.
        return str(int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:7])) if path.is_file() else "0"

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        bucket, objects, name = re.fullmatch(r"/(?:download/)?storage/v1/b/([^/]+)(/o)?(?:/(.*))?", url.path).groups()
        name = urllib.parse.unquote(name or "")
        folder = self.root / bucket
        if not folder.is_dir():
            self._error(404, "The specified bucket does not exist.")
        elif not objects:
            self._answer(200, {"name": bucket})
        elif not name:
            names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
            names = [found for found in names if found.startswith(query.get("prefix", ""))]
            self._answer(200, {"items": [self._resource(bucket, found) for found in names]})
        elif not (folder / name).is_file():
            self._error(404, f"No such object: {bucket}/{name}")
        elif query.get("alt") == "media":
            data, wanted = (folder / name).read_bytes(), self.headers.get("Range")
            if wanted is None:
                self._answer(200, data)
                return
            start, end = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted).groups()
            if int(start) >= len(data):
                self._error(416, "The requested range cannot be satisfied.")
            else:
                self._answer(206, data[int(start) : int(end) + 1 if end else None])
        else:
            self._answer(200, self._resource(bucket, name))

    def do_POST(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        bucket = re.fullmatch(r"/upload/storage/v1/b/([^/]+)/o", url.path)[1]
        body = self.rfile.read(int(self.headers["Content-Length"]))
        boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1].encode()
        about, content = (
            part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
            for part in body.split(b"--" + boundary)[1:3]
        )
        name = json.loads(about)["name"]
        path = self.root / bucket / name
        if query.get("ifGenerationMatch", self._generation(path)) != self._generation(path):
            self._error(412, "At least one of the pre-conditions you specified did not hold.")
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self._answer(200, self._resource(bucket, name))


@contextlib.contextmanager
def serving(root: pathlib.Path) -> Iterator[str]:
    """Serves the folders in `root` as buckets; yields what STORAGE_EMULATOR_HOST is to be."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"root": root}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
