"""The connections of the cheap way, to a server that closes them, refuses, or sends what nobody asked for."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import wait_for

from whisperbackup.storage import wire
from whisperbackup.storage.response import Answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LATE = b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"


class Server:
    """Sends `answers` one after another, each to one request, and `closes` the connection behind it or not."""

    def __init__(self, *answers: bytes, closes: bool = False) -> None:
        self._answers, self._closes = list(answers), closes
        self.requests: list[bytes] = []
        self.accepted: list[socket.socket] = []
        self.ended = 0  # connections that the client closed
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"

    def __enter__(self) -> Server:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for each in (self._listening, *self.accepted):
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.accepted.append(self._listening.accept()[0])
                threading.Thread(target=self._serve, args=[self.accepted[-1]], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := connection.recv(1 << 16):
                self.requests.append(request)
                connection.sendall(self._answers.pop(0))
                if self._closes:
                    connection.shutdown(socket.SHUT_WR)
            self.ended += 1


@pytest.fixture
def way() -> Iterator[wire.Wire]:
    """A wire to nowhere."""
    yield wire.Wire("http://127.0.0.1:9")


def test_a_connection_serves_one_request_after_another() -> None:
    with Server(OK, OK, OK) as server:
        way = wire.Wire(server.url)
        assert [way.ask("GET", "/key", {}).body for _ in range(3)] == [b"ok"] * 3
        assert len(server.accepted) == 1
        way.close()
        wait_for(lambda: server.ended == 1)


def test_a_connection_that_was_closed_while_it_was_idle_costs_no_attempt() -> None:
    with Server(OK, OK, closes=True) as server:
        way = wire.Wire(server.url)
        for _ in range(2):
            assert way.ask("GET", "/key", {}).body == b"ok"
            time.sleep(0.05)  # until the end of the connection has arrived
        assert len(server.accepted) == 2


def test_what_nobody_asked_for_is_no_answer_to_the_next_request() -> None:
    with Server(OK, OK) as server:
        way = wire.Wire(server.url)
        assert way.ask("GET", "/key", {}).body == b"ok"
        server.accepted[0].sendall(LATE)
        time.sleep(0.05)
        assert way.ask("GET", "/key", {}) == Answer(200, {"content-length": "2"}, b"ok")


def test_a_failed_attempt_leaves_no_connection() -> None:
    with Server(b"<html>\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok", closes=True) as server:
        way = wire.Wire(server.url)
        for number in (1, 2):
            with pytest.raises(wire.Failed) as error:
                way.ask("GET", "/key", {})
            wait_for(lambda number=number: server.ended == number)
            assert error.value.__cause__  # which held the connection until now


@pytest.mark.parametrize("value", ["a\r\nx-amz-acl: public-read", "a\nb", "\0", "é", "\x7f"])
def test_nothing_is_sent_with_a_header_that_http_cannot_hold(value: str) -> None:
    with Server(OK) as server:
        way = wire.Wire(server.url)
        for target, headers in (("/key", {"x-amz-meta-a": value}), (f"/{value}", {}), ("/key", {value: "a"})):
            with pytest.raises(wire.Failed):
                way.ask("PUT", target, headers)
        assert not server.accepted


def test_only_refusals_in_a_row_end_the_cheap_way(way: wire.Wire) -> None:
    def ask(status: int) -> None:
        with wire.attempt(way, lambda: Answer(status, {}, b"")) as answer:
            assert (answer is not None) == way.is_open

    for status in [403, 403, 200, 403, 403, 404, 503]:
        ask(status)
    assert way.is_open
    ask(400)
    assert not way.is_open
    ask(200)


def test_a_refusal_that_the_client_meets_too_is_not_counted(way: wire.Wire) -> None:
    for _ in range(5):
        with pytest.raises(PermissionError), wire.attempt(way, lambda: Answer(403, {}, b"")):
            raise PermissionError
    assert way.is_open


def test_the_time_of_a_call_includes_its_cheap_attempt(way: wire.Wire) -> None:
    def fail() -> Answer:
        time.sleep(0.2)
        raise wire.Failed

    for _ in range(2):
        before = time.monotonic()
        with wire.attempt(way, fail) as answer:
            assert answer is None
            assert before <= wire.began() < before + 0.2
        assert wire.began() >= before + 0.2


def test_where_a_proxy_is_named_the_client_finds_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert wire.open_wire("http://store.example:80", None)
    for name in ("http_proxy", "all_proxy"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "http://proxy.example:3128")
            assert wire.open_wire("http://store.example", None) is None
            patch.setenv("no_proxy", "store.example")
            assert wire.open_wire("http://store.example", None)
