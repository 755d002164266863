"""A wire that can be cut."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Wire:
    """Relays connections to a port, until they are cut; new ones may come after that.

    Attributes:
      port: to connect to.
      cuts: how often it has been cut.
    """

    def __init__(self, port: int):
        """Begins to relay to a port of this machine."""
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
        """Ends all connections there are."""
        self.cuts += 1
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def close(self) -> None:
        """Ends everything."""
        self.cut()
        self._server.close()


@contextlib.contextmanager
def wire_to(endpoint: str) -> Iterator[Wire]:
    """Lays a wire to "http://host:port"."""
    wire = Wire(int(endpoint.rpartition(":")[2]))
    try:
        yield wire
    finally:
        wire.close()
