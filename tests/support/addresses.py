"""Addresses for processes that a test starts on this machine."""

import contextlib
import socket


def free_addresses(count: int) -> str:
    """Addresses on this machine whose ports, and the one after them, were free a moment ago."""
    while True:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(socket.create_server(("", 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + count + 1):
                    stack.enter_context(socket.create_server(("", port)))
            except (OSError, OverflowError):
                continue
            return ",".join(f"localhost:{first + index}" for index in range(count))
