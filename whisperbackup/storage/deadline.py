"""A deadline for each response: a server that sends one byte a second would otherwise block a run for ever.

The client libraries' read timeouts restart with every byte.  All of these libraries read through http.client, so
this module gives its responses a reader that measures the time since the response began.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Iterator
from typing import Any

import urllib3.connection

SECONDS = 60.0
"""The time allowed for each response."""
BYTES_PER_SECOND = 4096
"""A long response is allowed one more second for this many bytes."""
PIECE = 32 * 1024
"""Bytes of a request that are sent with one timeout."""


class Timed(io.RawIOBase):
    """The bytes that a socket receives.  Raises TimeoutError, like the socket itself, once the deadline has passed."""

    def __init__(self, sent: io.RawIOBase) -> None:
        self._sent = sent
        self.restart()

    def restart(self) -> None:
        """Begin with another response."""
        self._began = time.monotonic()
        self.received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() - self._began > SECONDS + self.received / BYTES_PER_SECOND:
            raise TimeoutError(f"only {self.received} bytes arrived in {SECONDS:.0f} seconds")
        count = self._sent.readinto(buffer)
        self.received += count or 0
        return count

    def close(self) -> None:
        self._sent.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """A response with a deadline."""

    def __init__(self, sock: socket.socket, *arguments: Any, **more: Any) -> None:
        super().__init__(sock, *arguments, **more)
        self.fp = io.BufferedReader(Timed(self.fp.detach()))


def in_pieces(data: bytes) -> Iterator[bytes | memoryview]:
    """`data` as it should be sent: a socket's timeout is that of one call to `sendall`, however much it sends."""
    if len(data) <= PIECE:
        yield data
        return
    view = memoryview(data)
    for begin in range(0, len(view), PIECE):
        yield view[begin : begin + PIECE]


def _send(connection: http.client.HTTPConnection, data: Any) -> None:
    for piece in in_pieces(data) if isinstance(data, bytes) else (data,):
        http.client.HTTPConnection.send(connection, piece)


def install() -> None:
    """Set the deadline for all responses in this process, and give slow uplinks the time that they need."""
    urllib3.connection.HTTPConnection.response_class = TimedResponse
    urllib3.connection.HTTPConnection.send = _send  # type: ignore[assignment, method-assign]
