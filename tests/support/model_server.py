"""A model server in a process of its own, and what tests send to it."""

import contextlib
import http.client
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


class ModelServer:
    """`python -m MODULE ARGUMENTS`, which serves on a port that it prints."""

    def __init__(self, *module_and_arguments: str, name: str = "model"):
        command = [sys.executable, "-m", *module_and_arguments]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.name = name
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", line)
        assert found, line + self.process.stderr.read()
        self.port = int(found[1])

    def request(self, method: str, path: str, body: object = None) -> tuple[int, str]:
        """Returns the status and the text of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        data = body if body is None or isinstance(body, bytes | str) else json.dumps(body)
        connection.request(method, path, data)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response.status, text

    def predict(self, body: object) -> tuple[int, dict]:
        """Returns the status and the JSON of a prediction."""
        status, text = self.request("POST", f"/v1/models/{self.name}:predict", body)
        return status, json.loads(text)

    def metrics(self) -> dict[str, float]:
        """Returns the values of /metrics by their names with labels."""
        status, text = self.request("GET", "/metrics")
        assert status == 200
        pairs = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def raw(self, data: bytes) -> None:
        """Sends bytes that may be no request, and hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection, contextlib.suppress(OSError):
            connection.sendall(data)

    def stop(self) -> str:
        """Ends the process by SIGTERM, with status 0; returns what it wrote to standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, errors = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, errors
        return errors
