"""Many processes, one on each host: who they are, how they agree, and what happens when one of them ends.

Devices talk to each other through TensorFlow. What is here is for the hosts: a star of sockets around the first
process, on which no more than a byte travels at each step, and whose end tells at once that a process has gone.
"""

import contextlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Sequence

from switch_tf.errors import SettingError

PROCESSES = "SWITCH_TF_PROCESSES"
PROCESS = "SWITCH_TF_PROCESS"
# How long the first process waits for the others, and they for it: machines of a pod do not start at once.
CONNECT_TIMEOUT_SECONDS = 600
# For scripts: start again with the same command. (sysexits.h: EX_TEMPFAIL)
EXIT_LOST = 75

# What a process says of itself when it comes: what the connection is for, and its index.
_HELLO = struct.Struct(">cI")
_CONTROL, _WATCH = b"c", b"w"
_YES, _NO = b"1", b"0"
_NUMBER = struct.Struct(">q")
_GRACE_SECONDS = 3.0


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
        if len(addresses) > 1 and self._meeting_point(addresses) in map(self._split, addresses):
            raise SettingError(
                f"{PROCESSES}: the first process also listens at its port plus {len(addresses)}, which is another's: "
                "choose other ports."
            )
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
        self._watcher: threading.Thread | None = None

    @classmethod
    def from_environment(cls) -> "Processes":
        """Reads `SWITCH_TF_PROCESSES` ("host:port,host:port") and `SWITCH_TF_PROCESS` (0, 1, ...), or `TF_CONFIG`.

        Raises:
          SettingError: if they cannot be understood.
        """
        addresses = tuple(filter(None, os.environ.get(PROCESSES, "").split(",")))
        if not addresses:
            return cls._from_tf_config(os.environ.get("TF_CONFIG", "{}"))
        index = os.environ.get(PROCESS, "0" if len(addresses) == 1 else "")
        if not index.isdecimal():
            raise SettingError(f"{PROCESS} = '{index}' must be a number: 0 for the first of {PROCESSES}.")
        return cls(addresses, int(index))

    @classmethod
    def _from_tf_config(cls, text: str) -> "Processes":
        """Reads what cluster managers set; a chief is the first process."""
        try:
            config = json.loads(text)
            cluster, task = config.get("cluster", {}), config.get("task", {})
            chiefs = tuple(cluster.get("chief", ()))
            addresses = (*chiefs, *cluster.get("worker", ()))
            if not addresses:
                return cls()
            before = {"chief": 0, "worker": len(chiefs)}[task["type"]]
            return cls(addresses, before + int(task["index"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, SettingError):
                raise
            raise SettingError(
                "TF_CONFIG is not of the form {'cluster': {'chief': ['host:port'], 'worker': ['host:port', ...]}, "
                "'task': {'type': 'worker', 'index': 0}}."
            ) from error

    @staticmethod
    def _split(address: str) -> tuple[str, int]:
        host, _, port = address.rpartition(":")
        return host, int(port)

    @classmethod
    def _meeting_point(cls, addresses: Sequence[str]) -> tuple[str, int]:
        """After TensorFlow's ports, also where all processes are on one machine and count on from the first one's."""
        host, port = cls._split(addresses[0])
        return host, port + len(addresses)

    @property
    def count(self) -> int:
        """How many processes there are."""
        return max(1, len(self.addresses))

    def connect(self, timeout: float = CONNECT_TIMEOUT_SECONDS) -> None:
        """Finds the other processes, and ends this one when one of them ends.

        Args:
          timeout: seconds to wait for them.

        Raises:
          SettingError: if one does not come.
        """
        if self.count == 1:
            return
        address = self._meeting_point(self.addresses)
        if self.index == 0:
            self._accept(address, timeout)
        else:
            self._control = [self._open(address, _CONTROL, timeout)]
            self._watched = {self._open(address, _WATCH, timeout): 0}
        for connection in (*self._control, *self._watched):
            _keep_alive(connection)
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="processes")
        self._watcher.start()

    def _accept(self, address: tuple[str, int], timeout: float) -> None:
        there: dict[tuple[bytes, int], socket.socket] = {}
        wanted = [(kind, index) for kind in (_CONTROL, _WATCH) for index in range(1, self.count)]
        deadline = time.monotonic() + timeout
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
                except OSError as error:
                    missing = sorted({index for _, index in wanted} - {index for _, index in there})
                    raise SettingError(
                        f"{PROCESSES}: process {', '.join(map(str, missing))} of {self.count} did not come within "
                        f"{timeout:.0f} seconds: is it running, with its own {PROCESS}?"
                    ) from error
                hello = self._greeting(connection)
                if hello not in wanted:  # Whoever else knocks at the port is none of ours.
                    connection.close()
                    continue
                if hello in there:
                    raise SettingError(f"{PROCESSES}: two processes have {PROCESS}={hello[1]}: give each its own.")
                there[hello] = connection
        self._control = [there[_CONTROL, index] for index in range(1, self.count)]
        self._watched = {there[_WATCH, index]: index for index in range(1, self.count)}

    @staticmethod
    def _greeting(connection: socket.socket) -> tuple[bytes, int] | None:
        try:
            connection.settimeout(2)
            hello = connection.recv(_HELLO.size, socket.MSG_WAITALL)
        except OSError:
            return None
        return _HELLO.unpack(hello) if len(hello) == _HELLO.size else None

    def _open(self, address: tuple[str, int], kind: bytes, timeout: float) -> socket.socket:
        deadline = time.monotonic() + timeout
        while True:
            try:
                connection = socket.create_connection(address, timeout=10)
                connection.sendall(_HELLO.pack(kind, self.index))
                return connection
            except OSError as error:
                if time.monotonic() > deadline:
                    raise SettingError(
                        f"{PROCESSES}: the first process does not answer at {address[0]}:{address[1]} within "
                        f"{timeout:.0f} seconds: is it running, with {PROCESS}=0?"
                    ) from error
                time.sleep(0.2)

    def _watch(self) -> None:
        """Waits until a connection ends, which is when its process does: nothing is ever sent on these."""
        ended, _, _ = select.select(list(self._watched), [], [])
        # What has ended the other one may be about to end this one, with a sentence of its own.
        time.sleep(_GRACE_SECONDS)
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

    def any_process(self, flag: bool) -> bool:
        """Returns whether any process says so. All of them must ask; it is a barrier too."""
        if self.index == 0:
            for connection in self._control:
                flag |= self._receive(connection, 1) == _YES
            for connection in self._control:
                self._send(connection, _YES if flag else _NO)
        else:
            for connection in self._control:
                self._send(connection, _YES if flag else _NO)
                flag = self._receive(connection, 1) == _YES
        return flag

    def broadcast_from_first(self, numbers: Sequence[int]) -> list[int]:
        """Returns what the first process gives: of what is on a disk, say, that not all see in the same moment."""
        for connection in self._control:
            if self.index == 0:
                for number in (len(numbers), *numbers):
                    self._send(connection, _NUMBER.pack(number))
            else:
                (count,) = _NUMBER.unpack(self._receive(connection, _NUMBER.size))
                numbers = [_NUMBER.unpack(self._receive(connection, _NUMBER.size))[0] for _ in range(count)]
        return list(numbers)

    def _send(self, connection: socket.socket, message: bytes) -> None:
        try:
            connection.sendall(message)
        except OSError:
            self._lost(self._control.index(connection) + 1 if self.index == 0 else 0)

    def _receive(self, connection: socket.socket, size: int) -> bytes:
        message = b""
        with contextlib.suppress(OSError):
            message = connection.recv(size, socket.MSG_WAITALL)
        if len(message) < size:
            self._lost(self._control.index(connection) + 1 if self.index == 0 else 0)
        return message

    def exit_if_process_lost(self, timeout: float = 15.0) -> None:
        """Ends this process with a sentence if another one has ended; for when a computation has failed.

        Args:
          timeout: seconds in which the end of a process comes to be known.
        """
        if self._watcher is not None:
            self._watcher.join(timeout)

    def close(self) -> None:
        """Parts from the others, once all have come here."""
        self.any_process(False)
        self._is_closing = True
        self.any_process(False)
        for connection in (*self._control, *self._watched):
            connection.close()
        self._control, self._watched = [], {}
