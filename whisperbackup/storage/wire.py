"""One cheap attempt at one HTTP request, over connections that stay open.

The services' own clients spend two milliseconds of CPU time on a request, most of it in models and layers that a put
or a get does not need.  So drivers try this first, and believe only an answer that is good in every respect.  For
anything else they make the same call through the service's client, whose retries, deadlines and errors remain the
only ones.  Nothing here survives a fork, and nothing is opened before the first request.
"""

from __future__ import annotations

import contextlib
import logging
import re
import select
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

import certifi

from whisperbackup.storage import deadline
from whisperbackup.storage.response import Answer as Answer
from whisperbackup.storage.response import Responses

logger = logging.getLogger(__name__)

CONNECT_SECONDS, READ_SECONDS = 5, 25
REFUSED = {*range(300, 401), 402, 403, *range(405, 409), 410, 411, *range(413, 416), *range(417, 429)}
"""The statuses of requests that this way makes wrong; not of objects that are missing or exist, of a
token that has expired, nor of a busy store."""
REFUSALS = 3
"""After so many refusals in a row of what the service's client could do, this way is given up."""
NOT_IN_A_HEADER = re.compile("[^\x20-\x7e]")
AGENT = "whisper-backup"


class Failed(Exception):
    """The attempt failed, in any way."""


class _Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.responses = Responses(sock)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)

    def is_usable(self) -> bool:
        """Whether the server has neither closed it, nor sent what nobody asked for."""
        return not self._poll.poll(0)

    def close(self) -> None:
        self.responses.close()
        self.sock.close()


class Wire:
    """Connections to one server, for any number of threads."""

    def __init__(self, url: str, certificates: str | None = None) -> None:
        """Raises OSError if the file with certificates cannot be read."""
        where = urlsplit(url)
        self.host, self.path = where.netloc, where.path.rstrip("/")
        self._address = (where.hostname or "", where.port or (443 if where.scheme == "https" else 80))
        self._tls = ssl.create_default_context(cafile=certificates) if where.scheme == "https" else None
        self._idle: list[_Connection] = []
        self._refusals = 0
        self.is_open = True

    def ask(self, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> Answer:
        """Make a request other than HEAD.  `target` is quoted, `headers` lack only Content-Length.  Raises Failed."""
        lines = [f"{method} {target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if method != "GET":
            lines.append(f"content-length: {len(body)}")
        if NOT_IN_A_HEADER.search("".join(lines)):
            raise Failed("a header that HTTP cannot hold")
        head = "\r\n".join([*lines, "", ""]).encode("ascii")
        connection: _Connection | None = None
        try:
            connection = self._connection()
            for piece in deadline.in_pieces(head + body):
                connection.sock.sendall(piece)
            answer, stays = connection.responses.read()
        except (OSError, ValueError) as error:
            if connection:
                connection.close()
            raise Failed(f"{type(error).__name__}: {error}") from error
        if stays:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _connection(self) -> _Connection:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:  # another thread was faster
                break
            if connection.is_usable():
                return connection
            connection.close()
        sock = socket.create_connection(self._address, CONNECT_SECONDS)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls:
                sock = self._tls.wrap_socket(sock, server_hostname=self._address[0])
            sock.settimeout(READ_SECONDS)
        except BaseException:
            sock.close()
            raise
        return _Connection(sock)

    def refused(self) -> None:
        """Count a request that the server refused, and that the service's client then made without an error."""
        self._refusals += 1
        if self._refusals >= REFUSALS and self.is_open:
            self.is_open = False
            logger.info("%s takes requests only from its own client: this run is slower for that", self.host)
            self.close()

    def accepted(self) -> None:
        """End a row of refusals."""
        self._refusals = 0

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()


def open_wire(url: str, certificates: str | None) -> Wire | None:
    """A wire to the server of `url`; None where the service's client must find the way, or the fault."""
    try:
        return None if _goes_through_a_proxy(url) else Wire(url, certificates or certifi.where())
    except (OSError, ValueError):
        return None


def _goes_through_a_proxy(url: str) -> bool:
    where = urlsplit(url)
    proxies = urllib.request.getproxies()
    is_named = bool(proxies.get(where.scheme) or proxies.get("all"))
    return is_named and not urllib.request.proxy_bypass(where.hostname or "")


class _Call(threading.local):
    began: float | None = None


_call = _Call()


def began() -> float:
    """When this thread's call began, its cheap attempt included: the time for both ways is one."""
    return time.monotonic() if _call.began is None else _call.began


@contextlib.contextmanager
def attempt(way: Wire, ask: Callable[[], Answer]) -> Iterator[Answer | None]:
    """Yield the answer to one attempt, None if there is none; if it is no good, the block asks the service's client.

    If that client has no error where this way was refused, the refusal is counted.
    """
    answer: Answer | None = None
    _call.began = time.monotonic()
    try:
        if way.is_open:
            with contextlib.suppress(Failed):
                answer = ask()
        yield answer
    finally:
        _call.began = None
    if answer and answer.status in REFUSED:
        way.refused()
    elif answer and answer.status == 200:
        way.accepted()
