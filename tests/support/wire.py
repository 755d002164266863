"""A TCP relay whose connections can be cut."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Wire:
    """Relays connections to a port until they are cut; accepts new ones after that.

    Attributes:
      port: to connect to.
      cuts: how often connections were cut.
    """

    def __init__(self, port: int):
        """Starts to relay to a local port."""
        self._target = port
        self._ends: list[socket.socket] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._ends += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, target), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def cut(self) -> None:
        """Closes all open connections."""
        self.cuts += 1
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def close(self) -> None:
        """Stops the relay."""
        self.cut()
        self._server.close()


@contextlib.contextmanager
def wire_to(endpoint: str) -> Iterator[Wire]:
    """Relays to "http://host:port"."""
    wire = Wire(int(endpoint.rpartition(":")[2]))
    try:
        yield wire
    finally:
        wire.close()
