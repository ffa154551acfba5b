"""The reader of HTTP responses behind the cheap way: what it accepts is what was sent, and all of it."""

from __future__ import annotations

import http.client
import io
import socket
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperbackup.storage.response import Answer, NotHTTP, Responses


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Responses]]:
    """The server's end of a connection, and what reads at the other one."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    with ours, theirs:
        yield theirs, Responses(ours)


def read(sent: bytes) -> tuple[Answer, bool]:
    """What is read of a server that sends this and closes the connection."""
    ours, theirs = socket.socketpair()
    ours.settimeout(5)
    with ours, theirs:
        theirs.sendall(sent)
        theirs.shutdown(socket.SHUT_WR)
        return Responses(ours).read()


def test_responses_on_one_connection_follow_each_other(ends: tuple[socket.socket, Responses]) -> None:
    server, responses = ends
    for sent, answer, stays in (
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc", Answer(200, {"content-length": "3"}, b"abc"), True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204\r\nA:b\r\n\r\n", Answer(204, {"a": "b"}, b""), True),
        (b"HTTP/1.1 102 P\r\n\r\n" * 2 + b"HTTP/1.1 204\r\nA:b\r\n\r\n", Answer(204, {"a": "b"}, b""), True),
        (
            b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: Chunked\r\n\r\n"
            b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\nT: r\r\n\r\n",
            Answer(404, {"transfer-encoding": "Chunked"}, b"abc0123456789"),
            True,
        ),
        (
            b"HTTP/1.1 200 OK\nx-goog-hash: a=b\nX-Goog-Hash:  c=\xe9 \nContent-Length: 0\nConnection: Close\n\n",
            Answer(200, {"x-goog-hash": "a=b, c=é", "content-length": "0", "connection": "Close"}, b""),
            False,
        ),
    ):
        server.sendall(sent)
        assert responses.read() == (answer, stays)


def test_a_connection_with_more_than_the_response_is_not_used_again() -> None:
    for more in (b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"):
        answer, stays = read(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc" + more)
        assert (answer.body, stays) == (b"abc", False)


@pytest.mark.parametrize(
    ("sent", "body"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end"),
        (b"HTTP/1.1 200 OK\r\n\r\n", b""),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
        (b"HTTP/1.1 200 OK\r\nConnection: TE, Close\r\nContent-Length: 3\r\n\r\nabc", b"abc"),
    ],
)
def test_a_connection_that_the_server_closes_is_not_used_again(sent: bytes, body: bytes) -> None:
    answer, stays = read(sent)
    assert (answer.body, stays) == (body, False)


GOOD = b"HTTP/1.1 200 OK\r\nETag: x\r\nContent-Length: 5\r\n\r\n12345"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n"


@pytest.mark.parametrize("whole", [GOOD, CHUNKED])
def test_no_response_that_is_cut_off_is_believed(whole: bytes) -> None:
    for length in range(len(whole)):
        with pytest.raises(NotHTTP):
            read(whole[:length])
    assert read(whole)[0].body == b"12345"


@pytest.mark.parametrize(
    "sent",
    [
        b"<html>",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 2000 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n",
        GOOD.replace(b"ETag: x", b"Content-Length: 4"),
        GOOD.replace(b"ETag: x", b"Content-Length: 5"),
        CHUNKED.replace(b": chunked", b": chunked\r\nTransfer-Encoding: chunked"),
        GOOD.replace(b": 5", b": -5"),
        GOOD.replace(b": 5", b": 5, 5"),
        GOOD.replace(b"ETag: x", b"Transfer-Encoding: gzip"),
        GOOD.replace(b": 5", b": 999999999999999"),
        CHUNKED.replace(b"\r\n5\r\n", b"\r\nfffffffffffffff\r\n"),
        CHUNKED.replace(b"\r\n5\r\n", b"\r\n0x5\r\n"),
        CHUNKED.replace(b"\r\n5\r\n", b"\r\n4\r\n"),
        CHUNKED.replace(b"\r\n5\r\n", b"\r\n\r\n"),
    ],
)
def test_what_http_does_not_allow_is_refused(sent: bytes) -> None:
    with pytest.raises(NotHTTP):
        read(sent)


class _Sent(io.BytesIO):
    def makefile(self, _: str) -> io.BytesIO:
        return self


LINES = [b"HTTP/1.1 200 OK", b"Content-Length: 3", b"Transfer-Encoding: chunked", b"Connection: close", b"A: b"]
LINES += [b"3", b"0", b"abc", b"", b" c", b"200"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_what_it_reads_is_what_pythons_own_client_reads(lines: list[bytes]) -> None:
    """Where it accepts a response at all."""
    sent = b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(lines)
    try:
        answer, _ = read(sent)
    except NotHTTP:
        return
    theirs = http.client.HTTPResponse(_Sent(sent))  # type: ignore[arg-type]
    theirs.begin()
    assert (answer.status, answer.body) == (theirs.status, theirs.read())
    assert answer.headers == {name.lower(): theirs.getheader(name) for name in theirs.headers}
