"""Cloud Storage on loopback, over a local folder: what Google's client needs of its JSON API, and what TensorFlow does.

TensorFlow knows no emulator: it always goes to www.googleapis.com and storage.googleapis.com, by TLS. But it heeds
https_proxy and CURL_CA_BUNDLE, and so a proxy and a certificate bring it here.
"""

import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import json
import pathlib
import re
import shutil
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator

_HOSTS = ("www.googleapis.com", "storage.googleapis.com")
_SENTENCES = {404: "Not found.", 412: "At least one of the pre-conditions did not hold.", 416: "No such range."}


class _Handler(http.server.BaseHTTPRequestHandler):
    root: pathlib.Path
    uploads: dict[str, tuple[str, str]]
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _answer(self, code: int, content: bytes | dict | None = None, **headers: str) -> None:
        if content is None:
            content = {"error": {"code": code, "message": _SENTENCES[code]}} if code in _SENTENCES else b""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _resource(self, bucket: str, name: str) -> dict:
        path = self.root / bucket / name
        updated = datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        size = path.stat().st_size if path.is_file() else 0
        about = {"name": name, "bucket": bucket, "size": str(size), "updated": updated}
        return about | {"generation": self._generation(path)}

    @staticmethod
    def _generation(path: pathlib.Path) -> str:
        # Machines write into the folder as well, and times are too coarse.
        if path.is_dir():
            return "1"
        return str(int.from_bytes(hashlib.sha256(path.read_bytes()).digest()[:7])) if path.is_file() else "0"

    def _exists(self, bucket: str, name: str) -> bool:
        # A folder is an object whose name ends with a slash.
        path = self.root / bucket / name
        return path.is_dir() if name.endswith("/") else path.is_file()

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
        elif parts := self._parts(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)"):
            if not self._exists(*parts):
                self._answer(404)
            elif self._query.get("alt") == "media":
                self._read(*parts)
            else:
                self._answer(200, self._resource(*parts))
        else:
            self._read(*self._parts(r"/([^/]+)/(.+)"))

    def _list(self, bucket: str) -> None:
        folder, prefix, delimiter = self.root / bucket, self._query.get("prefix", ""), self._query.get("delimiter")
        if not folder.is_dir():
            self._answer(404)
            return
        paths = [(str(path.relative_to(folder)), path.is_dir()) for path in folder.rglob("*")]
        names = sorted(name + "/" * is_folder for name, is_folder in paths)
        items, folders = [], []
        for name in names:
            rest = name.removeprefix(prefix)
            if not name.startswith(prefix):
                continue
            if delimiter and delimiter in rest:
                below = prefix + rest.split(delimiter)[0] + delimiter
                if below not in folders:
                    folders.append(below)
            else:
                items.append(self._resource(bucket, name))
        self._answer(200, {"items": items[: int(self._query.get("maxResults", 1000))], "prefixes": folders})

    def _read(self, bucket: str, name: str) -> None:
        if not self._exists(bucket, name):
            self._answer(404)
            return
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
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        elif self._query.get("ifGenerationMatch", self._generation(path)) != self._generation(path):
            self._answer(412)
            return
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        self._answer(200, self._resource(bucket, name))

    def do_POST(self):
        body = self._body()
        if parts := self._parts(r"/storage/v1/b/([^/]+)/o/([^?]+)/rewriteTo/b/([^/]+)/o/([^?]+)"):
            source, target = self.root / parts[0] / parts[1], self.root / parts[2] / parts[3]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            self._answer(200, {"done": True})
            return
        (bucket,) = self._parts(r"/upload/storage/v1/b/([^/]+)/o")
        kind = self._query["uploadType"]
        if kind == "resumable":
            self.uploads[str(len(self.uploads))] = bucket, self._query["name"]
            self._answer(200, Location=f"https://{_HOSTS[0]}/session/{len(self.uploads) - 1}")
        elif kind == "media":
            self._write(bucket, self._query["name"], body)
        else:
            boundary = re.search(r'boundary="?([^";]+)"?', self.headers["Content-Type"])[1].encode()
            about, content = (
                part.removeprefix(b"\r\n").split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
                for part in body.split(b"--" + boundary)[1:3]
            )
            self._write(bucket, json.loads(about)["name"], content)

    def do_PUT(self):
        (session,) = self._parts(r"/session/(\d+)")
        self._write(*self.uploads[session], self._body())

    def do_DELETE(self):
        bucket, name = self._parts(r"/storage/v1/b/([^/]+)/o/(.+)")
        path = self.root / bucket / name
        if not self._exists(bucket, name):
            self._answer(404)
            return
        if not name.endswith("/"):
            path.unlink()
        elif not list(path.iterdir()):
            path.rmdir()
        self._answer(204)


@contextlib.contextmanager
def _server(root: pathlib.Path, tls: ssl.SSLContext | None = None) -> Iterator[int]:
    handler = type("Handler", (_Handler,), {"root": root, "uploads": {}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def serving(root: pathlib.Path) -> Iterator[str]:
    """Serves the folders in `root` as buckets; yields what STORAGE_EMULATOR_HOST is to be."""
    with _server(root) as port:
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def serving_tensorflow(root: pathlib.Path, folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Serves them to TensorFlow.

    Args:
      root: folders, which are buckets.
      folder: where the certificate goes.

    Yields:
      Environment variables for a process that TensorFlow runs in.
    """
    certificate, key = _certificate(folder)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with _server(root, tls) as port, socket.create_server(("127.0.0.1", 0)) as proxy:
        threading.Thread(target=_tunnels, args=(proxy, port), daemon=True).start()
        yield {
            "https_proxy": f"http://127.0.0.1:{proxy.getsockname()[1]}",
            "CURL_CA_BUNDLE": str(certificate),
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "NO_GCE_CHECK": "true",
        }


def _tunnels(proxy: socket.socket, port: int) -> None:
    """Whatever host is asked for: it is here."""

    def pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def tunnel(connection: socket.socket) -> None:
        asked = b""
        while not asked.endswith(b"\r\n\r\n"):
            asked += connection.recv(4096)
        server = socket.create_connection(("127.0.0.1", port))
        connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        threading.Thread(target=pump, args=(server, connection), daemon=True).start()
        pump(connection, server)

    with contextlib.suppress(OSError):
        while True:
            connection, _ = proxy.accept()
            threading.Thread(target=tunnel, args=(connection,), daemon=True).start()


def _certificate(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    # google-auth needs this package as well.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _HOSTS[0])])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    names: list[x509.GeneralName] = [x509.DNSName(host) for host in _HOSTS]
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths
