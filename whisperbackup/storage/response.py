"""Reads the responses of one HTTP connection, strictly: for `wire`, whatever is unusual is a failed attempt.

http.client parses headers with the email package, which takes more CPU time than the rest of a request.
"""

from __future__ import annotations

import io
import re
import socket
from typing import NamedTuple

from whisperbackup.storage import deadline

MAX_LINE = 65536
MAX_HEADERS = 100
STATUS = re.compile(rb"HTTP/1\.([01]) ([1-5]\d\d)(?: [^\r\n]*)?\r?\n")
HEADERS = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*\r?\n)*\r?\n")
SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
LENGTH = re.compile(r"\d{1,15}", re.ASCII)
WITHOUT_BODY = (204, 304)


class Answer(NamedTuple):
    """A response that arrived in full."""

    status: int
    headers: dict[str, str]  # their names in lower case
    body: bytes


class NotHTTP(ValueError):
    """A response that HTTP does not allow, or that ends early."""


class Responses:
    """The responses that arrive at one socket, read one after the other."""

    def __init__(self, sock: socket.socket) -> None:
        self._timed = deadline.Timed(sock.makefile("rb", buffering=0))
        self._file = io.BufferedReader(self._timed)
        self._used = 0  # bytes

    def read(self) -> tuple[Answer, bool]:
        """The response to a request other than HEAD, and whether the connection can be used for another one.

        Raises NotHTTP, OSError.
        """
        self._timed.restart()
        self._used = 0
        answer, stays = self._read()
        return answer, stays and self._used == self._timed.received  # more was sent than anybody asked for

    def _read(self) -> tuple[Answer, bool]:
        version, status, headers = self._head()
        while status < 200:  # 100: the server is ready for a body, which it has
            version, status, headers = self._head()
        stays = version == b"1" and "close" not in re.split(r"[ \t]*,[ \t]*", headers.get("connection", "").lower())
        if status in WITHOUT_BODY:
            return Answer(status, headers, b""), stays
        encoding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if encoding is not None:
            if encoding.lower() != "chunked":
                raise NotHTTP("an encoding that was not asked for")
            return Answer(status, headers, self._chunks()), stays
        if length is not None:
            if not LENGTH.fullmatch(length):
                raise NotHTTP("no length")
            return Answer(status, headers, self._exactly(int(length))), stays
        return Answer(status, headers, self._file.read()), False

    def _head(self) -> tuple[bytes, int, dict[str, str]]:
        match = STATUS.fullmatch(self._line())
        if not match:
            raise NotHTTP("no status line")
        return match[1], int(match[2]), self._headers()

    def _headers(self) -> dict[str, str]:
        lines = self._header_lines()
        if not HEADERS.fullmatch(lines):
            raise NotHTTP("a line that is no header")
        headers: dict[str, str] = {}
        for line in lines.decode("latin-1").split("\n")[:-2]:
            name, _, value = line.partition(":")
            name, value = name.lower(), value.strip(" \t\r")
            headers[name] = f"{headers[name]}, {value}" if name in headers else value  # of two lengths none is a number
        return headers

    def _header_lines(self) -> bytes:
        """What comes before the body, with the empty line; mostly it has all arrived."""
        there = self._file.peek()
        if there.startswith(b"\r\n"):
            return self._exactly(2)
        end = there.find(b"\r\n\r\n") + 4
        if end >= 4 and there.count(b"\n", 0, end) <= MAX_HEADERS:
            return self._exactly(end)
        lines: list[bytes] = []
        while len(lines) < MAX_HEADERS:
            lines.append(self._line())
            if lines[-1] in (b"\r\n", b"\n"):
                return b"".join(lines)
        raise NotHTTP("too many headers")

    def _chunks(self) -> bytes:
        chunks: list[bytes] = []
        while True:
            match = SIZE.fullmatch(self._line())
            if not match:
                raise NotHTTP("a chunk without a size")
            size = int(match[1], 16)
            if not size:
                self._headers()  # trailers
                return b"".join(chunks)
            chunks.append(self._exactly(size))
            if self._line() not in (b"\r\n", b"\n"):
                raise NotHTTP("a chunk longer than its size")

    def _line(self) -> bytes:
        line = self._file.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise NotHTTP("it ends early, or has too long a line")
        self._used += len(line)
        return line

    def _exactly(self, size: int) -> bytes:
        try:
            body = self._file.read(size)
        except MemoryError:
            raise NotHTTP("a length that no memory holds") from None
        if len(body) != size:
            raise NotHTTP("its body is cut off")
        self._used += size
        return body

    def close(self) -> None:
        """Close the file; the socket has to be closed, too."""
        self._file.close()
