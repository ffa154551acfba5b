"""A deadline for each answer of a service: a server that drips a byte a second would hold a run for ever.

The client libraries' read timeouts start anew with every byte.  All of them read through http.client, whose answers
are given a reader here that counts from the first byte to the last.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from typing import Any

import urllib3.connection

SECONDS = 60.0
"""For an answer, and more by its size:"""
BYTES_PER_SECOND = 4096


class _Timed(io.RawIOBase):
    """What a socket sends.  Raises TimeoutError, as the socket does, when it is too slow to come to an end."""

    def __init__(self, sent: io.RawIOBase) -> None:
        self._sent = sent
        self._began = time.monotonic()
        self._received = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() - self._began > SECONDS + self._received / BYTES_PER_SECOND:
            raise TimeoutError(f"no more than {self._received} bytes came in {SECONDS:.0f} seconds")
        count = self._sent.readinto(buffer)
        self._received += count or 0
        return count

    def close(self) -> None:
        self._sent.close()
        super().close()


class TimedResponse(http.client.HTTPResponse):
    """An answer with a deadline."""

    def __init__(self, sock: socket.socket, *arguments: Any, **more: Any) -> None:
        super().__init__(sock, *arguments, **more)
        self.fp = io.BufferedReader(_Timed(self.fp.detach()))


def install() -> None:
    """Give all answers in this process their deadline."""
    urllib3.connection.HTTPConnection.response_class = TimedResponse
