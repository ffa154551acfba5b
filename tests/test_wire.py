"""The cheap way of puts and gets: it is used, signed as AWS signs, and what fails on it is asked for again."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import servers
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from conftest import Program
from servers import Store, TroubleProxy
from test_storage import AWKWARD, open_store
from test_stores import connect, plant

from whisperbackup.storage import gcs, s3, s3wire, wire
from whisperbackup.storage.base import Driver, Unavailable

PROCESSES = 2
pytestmark = pytest.mark.servers
CLIENTS = {"s3-rclone": b"boto", "swift-v1": b"python-swiftclient", "gcs": b"gcloud-python"}


@pytest.fixture(params=CLIENTS)
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[Store, TroubleProxy, bytes]]:
    store = servers.store(request.param)
    with TroubleProxy(store.port) as proxy:
        yield store.through(proxy.port), proxy, CLIENTS[request.param]


def heads(proxy: TroubleProxy, refused: bytes = b"") -> list[bytes]:
    """The heads of all requests to come; the cheap ones get the answer `refused`, if any."""
    seen: list[bytes] = []

    def lie(head: bytes) -> bytes | None:
        seen.append(head)
        return refused if refused and b"user-agent: whisper-backup" in head.lower() else None

    proxy.lie = lie
    return seen


def test_puts_and_gets_take_the_cheap_way(proxied: tuple[Store, TroubleProxy, bytes]) -> None:
    store, proxy, client = proxied
    driver = open_store(store, f"wire-{uuid.uuid4().hex}", create=True)
    seen = heads(proxy)
    for key in AWKWARD:
        driver.put(key, b"body")
        assert driver.get(key) == b"body"
    assert len(seen) == 2 * len(AWKWARD)
    assert not [head for head in seen if client in head.lower()]


def test_what_is_refused_on_the_cheap_way_is_done_by_the_client_and_soon_no_longer_tried(
    proxied: tuple[Store, TroubleProxy, bytes],
) -> None:
    store, proxy, _ = proxied
    driver = open_store(store, f"wire-{uuid.uuid4().hex}", create=True)
    seen = heads(proxy, b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    for number in range(6):
        driver.put(f"key {number}", b"body")
        assert driver.get(f"key {number}") == b"body"
    assert len(seen) == 12 + wire.REFUSALS


@pytest.mark.parametrize("token", [None, "a/session+token=="])
@pytest.mark.parametrize("key", AWKWARD)
def test_requests_are_signed_as_botocore_signs_them(key: str, token: str | None) -> None:
    asked: dict[str, Any] = {}
    connections = SimpleNamespace(
        host="host:1", ask=lambda method, target, headers, body: asked.update(headers, target=target)
    )
    credentials = Credentials("an access key", "a secret", token)
    s3wire.S3Wire(connections, "/bucket/", "eu-west-1", credentials).get(key)  # type: ignore[arg-type]
    kept = {name: asked[name] for name in ("host", "user-agent", "x-amz-content-sha256")}
    request = AWSRequest("GET", f"http://host:1{asked['target']}", headers=kept)
    request.context["timestamp"] = asked["x-amz-date"]
    auth = S3SigV4Auth(credentials, "s3", "eu-west-1")
    if token:
        request.headers["X-Amz-Security-Token"] = token
    request.headers["X-Amz-Date"] = asked["x-amz-date"]
    canonical = auth.canonical_request(request)
    signature = auth.signature(auth.string_to_sign(request, canonical), request)
    ours = asked["authorization"]
    # botocore does not sign User-Agent, which a proxy may change; so neither does this.
    assert ours.endswith(f"Signature={signature}")


@pytest.mark.slow
def test_a_restore_and_a_verify_take_a_request_a_metric(tmp_path: Path, program: Program) -> None:
    store = servers.store("s3-rclone")
    with TroubleProxy(store.port) as proxy:
        run = connect(program, store.through(proxy.port))
        plant(program, 40)
        run("backup")
        for words in (["verify"], ["restore", "-p", tmp_path / "restored"]):
            (tmp_path / "restored").mkdir(exist_ok=True)
            proxy.requests.clear()
            run(*words)
            assert proxy.requests["GET"] == 40


@pytest.mark.slow
@pytest.mark.alone
def test_a_slow_uplink_is_no_silent_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timeout limits the time without any progress, not the time in which a large object is sent."""
    monkeypatch.setattr(wire, "READ_SECONDS", 3)
    for name, seconds in (("CONNECT_SECONDS", 1), ("READ_SECONDS", 3), ("LAST_ATTEMPT_SECONDS", 1)):
        monkeypatch.setattr(s3, name, seconds)
    monkeypatch.setitem(gcs.RETRY_POLICY, "timeout", (1, 3))
    monkeypatch.setitem(gcs.RETRY_POLICY, "retry", gcs.RETRY_POLICY["retry"].with_timeout(1))
    body = random.Random(1).randbytes(32 << 20)  # 4 seconds, whereof what sockets buffer is one

    def send_slowly(driver: Driver, proxy: TroubleProxy) -> None:
        proxy.intake = 8 << 20
        began = time.monotonic()
        driver.put("key", body)
        assert time.monotonic() - began > 3
        proxy.intake = 0
        assert driver.get("key") == body
        proxy.intake = 1
        began = time.monotonic()
        with pytest.raises(Unavailable):
            driver.put("key", body)
        assert time.monotonic() - began < 20

    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:  # they wait, and do it together
        sending = []
        for kind, way in (("s3-rclone", "cheap"), ("s3-rclone", "client"), ("gcs", "client")):
            if way == "client":
                monkeypatch.setattr(wire, "open_wire", lambda *_: None)
            store = servers.store(kind)
            proxy = stack.enter_context(TroubleProxy(store.port))
            driver = open_store(store.through(proxy.port), f"slow-{uuid.uuid4().hex}", create=True)
            driver.put("first", b"")  # from now on it has its way
            sending.append(pool.submit(send_slowly, driver, proxy))
        for one in sending:
            one.result()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "verify", "restore", "prune"])
def test_a_long_listing_is_cut_where_the_state_file_knows(program: Program, command: str) -> None:
    store = servers.store("s3-rclone")
    plant(program, 500)
    time.sleep(2.1)  # files that were written to just now are not recorded
    heads: list[bytes] = []
    with TroubleProxy(store.port) as proxy:
        run = connect(program, store.through(proxy.port))
        assert "500 backed up" in run("backup")
        proxy.lie = heads.append  # type: ignore[assignment]  # it returns None: no lie
        run(command)
    assert [head for head in heads if b"start-after=many" in head]
