"""The processes of a run, one on each host: their addresses, agreement between them, and detection of lost ones.

Devices communicate through TensorFlow. This module is for the hosts: every process has sockets to the first one, which
carry at most a byte per step, and whose closing shows at once that a process has ended.
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
# How long the processes wait for each other: the machines of a pod do not start at the same time.
CONNECT_TIMEOUT_SECONDS = 600
# Tells scripts to restart with the same command (EX_TEMPFAIL of sysexits.h).
EXIT_LOST = 75

# The first message on a connection: its purpose, and the index of the process.
_HELLO = struct.Struct(">cI")
_CONTROL, _WATCH = b"c", b"w"
_YES, _NO = b"1", b"0"
_NUMBER = struct.Struct(">q")
_GRACE_SECONDS = 3.0


def _keep_alive(connection: socket.socket) -> None:
    """Makes a connection to a host that lost its power or network fail within half a minute."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
        # macOS has no TCP_KEEPIDLE.
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Processes:
    """The processes of a run, seen from one of them."""

    def __init__(self, addresses: tuple[str, ...] = (), index: int = 0):
        """Sets the addresses; `connect` opens the connections.

        Args:
          addresses: "host:port" of each process, on which TensorFlow listens; empty for a single process.
          index: the index of this process.

        Raises:
          SettingError: if the index is out of range, or an address has no port.
        """
        for address in addresses:
            if not address.rpartition(":")[2].isdecimal():
                raise SettingError(f"{PROCESSES}: '{address}' is not of the form host:port.")
        if len(addresses) > 1 and self._meeting_point(addresses) in map(self._split, addresses):
            raise SettingError(
                f"{PROCESSES}: the first process also listens on its port plus {len(addresses)}, which another process "
                "uses: choose other ports."
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
        self._exit_lock = threading.Lock()
        self._watcher: threading.Thread | None = None

    @classmethod
    def from_environment(cls) -> "Processes":
        """Reads `SWITCH_TF_PROCESSES` ("host:port,host:port") and `SWITCH_TF_PROCESS` (0, 1, ...), or `TF_CONFIG`.

        Raises:
          SettingError: if they cannot be parsed.
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
        """Reads the variable that cluster managers set; a chief is the first process."""
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
        """The address of this module's sockets: free even if all processes run on one host with consecutive ports."""
        host, port = cls._split(addresses[0])
        return host, port + len(addresses)

    @property
    def count(self) -> int:
        """The number of processes."""
        return max(1, len(self.addresses))

    def connect(self, timeout: float = CONNECT_TIMEOUT_SECONDS) -> None:
        """Connects to the other processes; from then on, this process ends if one of them ends.

        Args:
          timeout: seconds to wait for all of them.

        Raises:
          SettingError: if one does not connect in time.
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
        connected: dict[tuple[bytes, int], socket.socket] = {}
        wanted = [(kind, index) for kind in (_CONTROL, _WATCH) for index in range(1, self.count)]
        deadline = time.monotonic() + timeout
        try:
            # On all interfaces: the name that others use for this host may not resolve to a local address.
            server = socket.create_server(("", address[1]), backlog=2 * self.count)
        except OSError as error:
            raise SettingError(
                f"{PROCESSES}: port {address[1]} (the first process's plus the number of processes) is in use: choose "
                "other ports."
            ) from error
        with server:
            while not connected.keys() >= set(wanted):
                try:
                    server.settimeout(max(0.01, deadline - time.monotonic()))
                    connection, _ = server.accept()
                except OSError as error:
                    missing = sorted({index for _, index in wanted} - {index for _, index in connected})
                    raise SettingError(
                        f"{PROCESSES}: process {', '.join(map(str, missing))} of {self.count} did not connect within "
                        f"{timeout:.0f} seconds: is it running, with its own {PROCESS}?"
                    ) from error
                hello = self._greeting(connection)
                if hello not in wanted:  # Not one of the run's processes.
                    connection.close()
                    continue
                if hello in connected:
                    raise SettingError(f"{PROCESSES}: two processes have {PROCESS}={hello[1]}: give each its own.")
                connected[hello] = connection
        self._control = [connected[_CONTROL, index] for index in range(1, self.count)]
        self._watched = {connected[_WATCH, index]: index for index in range(1, self.count)}

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
                        f"{PROCESSES}: the first process did not answer at {address[0]}:{address[1]} within "
                        f"{timeout:.0f} seconds: is it running, with {PROCESS}=0?"
                    ) from error
                time.sleep(0.2)

    def _watch(self) -> None:
        """Waits until a connection closes, which means that its process has ended: nothing is sent on these."""
        ended, _, _ = select.select(list(self._watched), [], [])
        # Whatever ended the other process may be about to end this one with a more specific message.
        time.sleep(_GRACE_SECONDS)
        if not self._is_closing:
            self._lost(self._watched[ended[0]])

    def _lost(self, index: int) -> None:
        # The main thread may be blocked in a computation that waits for the other process, and cannot be interrupted.
        # Only the thread that notices first prints.
        self._exit_lock.acquire()
        print(
            # Starts with a newline, as a progress bar may be on the current line.
            f"\nswitch-tf: error: process {index} of {self.count} ({self.addresses[index]}) has ended, so this one "
            "ends too; the newest checkpoint is safe. Restart all processes with the same command.",
            file=sys.stderr,
            flush=True,
        )
        os._exit(EXIT_LOST)

    def any_process(self, flag: bool) -> bool:
        """Returns whether the flag is set in any process. All processes must call this; it is also a barrier."""
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
        """Returns the numbers of the first process, as processes may see different states of a file system."""
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
        """Ends this process with a message if another one has ended; to be called after a computation has failed.

        Args:
          timeout: seconds to wait for the loss of a process to be noticed.
        """
        if self._watcher is not None:
            self._watcher.join(timeout)

    def close(self) -> None:
        """Closes the connections, once all processes have called this."""
        self.any_process(False)
        self._is_closing = True
        self.any_process(False)
        for connection in (*self._control, *self._watched):
            connection.close()
        self._control, self._watched = [], {}
