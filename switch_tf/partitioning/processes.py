"""Many processes, one on each host: who they are, how they agree, and what happens when one of them ends.

Devices talk to each other through TensorFlow. What is here is for the hosts: a star of sockets around the first
process, on which no more than a byte travels at each step, and whose end tells at once that a process has gone.
"""

import json
import os
import select
import socket
import struct
import sys
import threading
import time

from switch_tf.errors import SettingError

PROCESSES = "SWITCH_TF_PROCESSES"
PROCESS = "SWITCH_TF_PROCESS"
# How long the first process waits for the others, and they for it: machines of a pod do not start at once.
PATIENCE_SECONDS = 600
# For scripts: start again with the same command. (sysexits.h: EX_TEMPFAIL)
EXIT_LOST = 75

# What a process says of itself when it comes: what the connection is for, and its index.
_HELLO = struct.Struct(">cI")
_CONTROL, _WATCH = b"c", b"w"
_YES, _NO = b"1", b"0"


def _keep_alive(connection: socket.socket) -> None:
    """Makes a host that lost its power or its network count as gone within half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        # macOS has no TCP_KEEPIDLE.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Processes:
    """The processes of a run, as one of them sees them."""

    def __init__(self, addresses: tuple[str, ...] = (), index: int = 0):
        """Names the processes; `connect` finds them.

        Args:
          addresses: "host:port" of each process, at which TensorFlow listens; empty for one process alone.
          index: which of them this one is.

        Raises:
          SettingError: if there is no such process, or an address has no port.
        """
        for address in addresses:
            if not address.rpartition(":")[2].isdecimal():
                raise SettingError(f"{PROCESSES}: '{address}' is not of the form host:port.")
        if not 0 <= index < max(1, len(addresses)):
            raise SettingError(
                f"{PROCESS} = {index} and {PROCESSES} names {len(addresses)} processes: it must be from 0 to "
                f"{len(addresses) - 1}."
            )
        self.addresses = tuple(addresses)
        self.index = index
        self._control: list[socket.socket] = []
        self._watched: dict[socket.socket, int] = {}
        self._is_closing = False
        self._last_word = threading.Lock()

    @classmethod
    def from_environment(cls) -> "Processes":
        """Reads `SWITCH_TF_PROCESSES` ("host:port,host:port") and `SWITCH_TF_PROCESS` (0, 1, ...), or `TF_CONFIG`.

        Raises:
          SettingError: if they cannot be understood.
        """
        addresses = tuple(filter(None, os.environ.get(PROCESSES, "").split(",")))
        index = os.environ.get(PROCESS, "0")
        if not addresses and "TF_CONFIG" in os.environ:
            try:
                config = json.loads(os.environ["TF_CONFIG"])
                addresses, index = tuple(config["cluster"]["worker"]), str(config["task"]["index"])
            except (ValueError, KeyError, TypeError) as error:
                raise SettingError(
                    "TF_CONFIG is not of the form {'cluster': {'worker': ['host:port', ...]}, 'task': {'type': "
                    "'worker', 'index': 0}}."
                ) from error
        if not index.isdecimal():
            raise SettingError(f"{PROCESS} = '{index}' must be a number: 0 for the first of {PROCESSES}.")
        return cls(addresses, int(index))

    @property
    def count(self) -> int:
        """How many processes there are."""
        return max(1, len(self.addresses))

    def connect(self, patience: float = PATIENCE_SECONDS) -> None:
        """Finds the other processes, and ends this one when one of them ends.

        Args:
          patience: seconds to wait for them.

        Raises:
          SettingError: if one does not come.
        """
        if self.count == 1:
            return
        host, _, port = self.addresses[0].rpartition(":")
        # After TensorFlow's ports, also where all processes are on one machine and count on from the first one's.
        address = (host, int(port) + self.count)
        if self.index == 0:
            self._accept(address, patience)
        else:
            self._control = [self._open(address, _CONTROL, patience)]
            self._watched = {self._open(address, _WATCH, patience): 0}
        for connection in (*self._control, *self._watched):
            _keep_alive(connection)
        threading.Thread(target=self._watch, daemon=True, name="processes").start()

    def _accept(self, address: tuple[str, int], patience: float) -> None:
        there: dict[tuple[bytes, int], socket.socket] = {}
        wanted = [(kind, index) for kind in (_CONTROL, _WATCH) for index in range(1, self.count)]
        deadline = time.monotonic() + patience
        try:
            # On all interfaces: the name by which others know this host may not be one that it has.
            server = socket.create_server(("", address[1]), backlog=2 * self.count)
        except OSError as error:
            raise SettingError(
                f"{PROCESSES}: port {address[1]} (the first process's, plus their number) is taken: choose other ports."
            ) from error
        with server:
            while not there.keys() >= set(wanted):
                try:
                    server.settimeout(max(0.01, deadline - time.monotonic()))
                    connection, _ = server.accept()
                    connection.settimeout(10)
                    hello = connection.recv(_HELLO.size, socket.MSG_WAITALL)
                except OSError as error:
                    missing = sorted({index for _, index in wanted} - {index for _, index in there})
                    raise SettingError(
                        f"{PROCESSES}: process {', '.join(map(str, missing))} of {self.count} did not come within "
                        f"{patience:.0f} seconds: is it running, with its own {PROCESS}?"
                    ) from error
                # Whoever else knocks at the port is none of ours.
                if len(hello) == _HELLO.size and _HELLO.unpack(hello) in wanted:
                    there[_HELLO.unpack(hello)] = connection
        self._control = [there[_CONTROL, index] for index in range(1, self.count)]
        self._watched = {there[_WATCH, index]: index for index in range(1, self.count)}

    def _open(self, address: tuple[str, int], kind: bytes, patience: float) -> socket.socket:
        deadline = time.monotonic() + patience
        while True:
            try:
                connection = socket.create_connection(address, timeout=10)
                connection.sendall(_HELLO.pack(kind, self.index))
                return connection
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SettingError(
                        f"{PROCESSES}: the first process does not answer at {address[0]}:{address[1]} within "
                        f"{patience:.0f} seconds: is it running, with {PROCESS}=0?"
                    ) from error
                time.sleep(0.2)

    def _watch(self) -> None:
        """Waits until a connection ends, which is when its process does: nothing is ever sent on these."""
        ended, _, _ = select.select(list(self._watched), [], [])
        if not self._is_closing:
            self._lost(self._watched[ended[0]])

    def _lost(self, index: int) -> None:
        # The main thread may be deep in a computation that waits for the other process: there is no way back. Whichever
        # thread finds out first has the word.
        self._last_word.acquire()
        print(
            # The progress bar has begun this line.
            f"\nswitch-tf: error: process {index} of {self.count} ({self.addresses[index]}) has ended, so this one "
            "ends too; the newest checkpoint is safe. Start all processes again with the same command.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_LOST)

    def any(self, flag: bool) -> bool:
        """Returns whether any process says so. All of them must ask; it is a barrier too."""
        connection = None
        try:
            if self.index == 0:
                for connection in self._control:
                    flag |= self._receive(connection)
                for connection in self._control:
                    connection.sendall(_YES if flag else _NO)
            else:
                for connection in self._control:
                    connection.sendall(_YES if flag else _NO)
                    flag = self._receive(connection)
        except OSError:
            self._lost(self._control.index(connection) + 1 if self.index == 0 else 0)
        return flag

    @staticmethod
    def _receive(connection: socket.socket) -> bool:
        answer = connection.recv(1)
        if not answer:
            raise ConnectionError("the other side has closed")
        return answer == _YES

    def close(self) -> None:
        """Parts from the others, once all have come here."""
        self.any(False)
        self._is_closing = True
        self.any(False)
        for connection in (*self._control, *self._watched):
            connection.close()
        self._control, self._watched = [], {}
