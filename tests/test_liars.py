"""A server that answers 200 to everything is never a good backup, nor a good listing."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import servers
from conftest import Program
from servers import Store, TroubleProxy
from test_storage import open_store, put_all
from test_stores import connect, plant

from whisperbackup.storage import base, deadline, gcs, s3, s3pages, swift
from whisperbackup.storage.base import (
    Driver,
    NotDeleted,
    StartAfterUnsupported,
    StorageError,
    Unavailable,
    UnsortedListing,
    get_range,
    list_range,
)

KINDS = ["s3-rclone", "swift-v1", "gcs"]
BODIES = {
    "nothing": b"",
    "page": b'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><body>Back at nine.</body></html>',
    "json": b"{}",
    "xml": b'<?xml version="1.0"?><ListAllMyBucketsResult><Owner/><Buckets/></ListAllMyBucketsResult>',
}
CALLS: dict[str, Callable[[Driver], object]] = {
    "list": lambda driver: list(driver.list("")),
    "get": lambda driver: driver.get("the key"),
    "get a part": lambda driver: get_range(driver, "the key", 5, 5),
    "put": lambda driver: driver.put("the key", b"body"),
    "put nothing": lambda driver: driver.put("the key", b""),
    "delete one": lambda driver: driver.delete(["the key"]),
    "delete many": lambda driver: driver.delete(["the key", "b", "c"]),
}


def answer(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3pages, "PAUSE", 0)
    monkeypatch.setattr(swift, "PAUSE", 0)


@pytest.fixture(params=KINDS)
def proxied(request: pytest.FixtureRequest) -> Iterator[tuple[Store, TroubleProxy]]:
    """A store, behind a proxy that does not lie yet; who asks for a token gets one all the same."""
    store = servers.store(request.param)
    with TroubleProxy(store.port) as proxy:
        yield store.through(proxy.port), proxy


def lie(body: bytes, to: bytes = b".") -> Callable[[bytes], bytes | None]:
    """Answer 200 and `body` to requests whose head matches `to`."""
    return lambda head: answer(body) if b"/auth/" not in head and re.search(to, head.split(b"\r\n")[0]) else None


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("call", [*CALLS, "create"])
@pytest.mark.parametrize("body", BODIES)
def test_no_call_believes_a_server_that_says_200_to_everything(
    proxied: tuple[Store, TroubleProxy], body: str, call: str
) -> None:
    store, proxy = proxied
    proxy.lie = lie(BODIES[body])
    with pytest.raises(Unavailable, match=r"200 with something that is not (S3|Swift|Google).*maintenance page"):
        if call == "create":
            open_store(store, "bucket", create=True)
        CALLS[call](open_store(store, "bucket"))


@pytest.mark.usefixtures("impatient")
def test_no_put_believes_the_checksum_of_another_body(proxied: tuple[Store, TroubleProxy]) -> None:
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    other = hashlib.md5(b"other").hexdigest().encode()
    told = b'{"kind": "storage#object", "name": "key", "size": "4", "md5Hash": "AAAA"}'
    proxy.lie = lambda head: answer(told).replace(b"\r\n\r\n", b'\r\nETag: "%b"\r\n\r\n' % other)
    with pytest.raises(Unavailable, match=r"cannot write 'key'"):
        driver.put("key", b"body")


@pytest.mark.servers
@pytest.mark.parametrize("etag", [b"0x8DC3A1F2", b"6D3C1EF0A3C6B5D9A1B2C3D4E5F60718", b"upper", b"weak"])
def test_a_store_whose_etags_are_no_md5_is_believed_for_what_it_gives_back(program: Program, etag: bytes) -> None:
    """Of other services, or where all is encrypted and no header says so: its ETag proves nothing, the object does."""
    store = servers.store("s3-rclone")

    def alter(head: bytes, answer: bytes) -> bytes:
        if not head.startswith(b"PUT"):
            return answer
        if etag == b"upper":
            return re.sub(rb'(?i)(etag: )"?(\w+)"?', lambda found: found[1] + found[2].upper(), answer)
        return re.sub(rb'(?i)(etag: )("?\w+"?)', rb"\1W/\2" if etag == b"weak" else b'\\1"%b"' % etag, answer)

    with TroubleProxy(store.port) as proxy:
        proxy.alter = alter
        connect(program, store.through(proxy.port))
        program.bucket = f"liars-{uuid.uuid4().hex}"
        program.write("a")
        words = [store.driver, *store.through(proxy.port).arguments]
        assert "1 backed up" in program("backup", *words)
        assert "1 good" in program("verify", *words)
        driver = open_store(store.through(proxy.port), program.bucket)
        proxy.lie = lambda head: answer(b"").replace(b"\r\n\r\n", b'\r\nETag: "%b"\r\n\r\n' % etag)
        with pytest.raises(Unavailable, match=r"cannot (write|read) 'key'"):
            driver.put("key", b"body")


def test_an_answer_that_is_a_lie_once_is_asked_for_again(proxied: tuple[Store, TroubleProxy]) -> None:
    store, proxy = proxied
    if store.driver == "gcs":
        return  # its client has no place for that: such a call fails
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    for call in (lambda: driver.put("key", b"x"), lambda: driver.get("key"), lambda: list(driver.list(""))):
        lies = iter([answer(BODIES["page"])])
        proxy.lie = lambda head, lies=lies: next(lies, None)  # type: ignore[misc]
        call()  # type: ignore[no-untyped-call]
    assert proxy.troubles == 3


def test_a_body_shorter_than_it_was_said_to_be_is_no_object(
    proxied: tuple[Store, TroubleProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gcs.RETRY_POLICY, "retry", gcs.RETRY_POLICY["retry"].with_timeout(1))
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    driver.put("key", b"x" * 100)
    head = b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\nETag: "%b"\r\nx-goog-hash: md5=AAAA\r\nConnection: close\r\n\r\n'
    proxy.lie = lambda _: head % (b"0" * 32) + b"x" * 50
    with pytest.raises(Unavailable, match="key"):
        driver.get("key")


CONTENT = bytes(range(200))
ANSWER = b'ETag: "%b"\r\nx-goog-hash: md5=AAAA\r\nConnection: close\r\n' % (b"0" * 32)


def part(told: bytes, body: bytes, status: bytes = b"206 Partial Content") -> bytes:
    told = b"Content-Range: bytes %b\r\n" % told if told else b""
    return b"HTTP/1.1 %b\r\n%b%bContent-Length: %d\r\n\r\n%b" % (status, ANSWER, told, len(body), body)


WRONG_PARTS = {
    "the beginning": part(b"0-49/200", CONTENT[:50]),
    "beside it": part(b"60-109/200", CONTENT[60:110]),
    "less": part(b"50-79/200", CONTENT[50:80]),
    "more": part(b"50-199/200", CONTENT[50:]),
    "less than it says": part(b"50-99/200", CONTENT[50:80]),
    "without its place": part(b"", CONTENT[50:100]),
    "rubbish": part(b"a-b/c", CONTENT[50:100]),
    "a part that is called the whole": part(b"0-49/200", CONTENT[:50], b"200 OK"),
}


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("wrong", WRONG_PARTS)
def test_no_part_of_an_object_is_believed_to_be_another(proxied: tuple[Store, TroubleProxy], wrong: str) -> None:
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    driver.put("key", CONTENT)
    proxy.lie = lambda head: WRONG_PARTS[wrong] if b"\nrange:" in head.lower() else None
    try:
        got = get_range(driver, "key", 50, 50)
    except Unavailable as error:
        assert re.search("'key'.*(another part of it|not answer)", str(error))
    else:
        assert got == CONTENT[50:100]  # it asked for the whole instead
        assert (store.driver, wrong) == ("gcs", "a part that is called the whole")


@pytest.mark.usefixtures("impatient")
def test_a_part_of_an_object_is_not_believed_to_be_the_whole(proxied: tuple[Store, TroubleProxy]) -> None:
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    driver.put("key", CONTENT)
    proxy.lie = lambda head: part(b"0-99/200", CONTENT[:100]) if head.startswith(b"GET") else None
    with pytest.raises(Unavailable, match=r"'key'.*(not answer|a part of it instead of the whole)"):
        driver.get("key")
    lies = iter([part(b"0-99/200", CONTENT[:100])])
    proxy.lie = lambda head: next(lies, None) if head.startswith(b"GET") else None
    assert driver.get("key") == CONTENT


@pytest.mark.parametrize("refused", [False, True])
def test_a_store_that_ignores_ranges_gives_the_right_part_all_the_same(
    proxied: tuple[Store, TroubleProxy], refused: bool
) -> None:
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    driver.put("key", CONTENT)
    proxy.lie = lambda head: (
        None if b"\nrange:" not in head.lower() else
        part(b"", b"no", b"416 Range Not Satisfiable") if refused else part(b"", CONTENT, b"200 OK")
    )  # fmt: skip
    for offset, length in ((0, 10), (50, 50), (190, 100), (200, 10), (0, 200)):
        assert get_range(driver, "key", offset, length) == CONTENT[offset : offset + length]


def run_all(tmp_path: Path, store: Store, bucket: str, tree: Program, commands: list[str]) -> dict[str, str]:
    """What each command says of the store, all run at once; none is a success, and none touches its stamp."""
    runs = {}
    for command in commands:
        (tmp_path / command).mkdir()
        program = Program(tmp_path / command)
        program.bucket, program.prefix = bucket, tree.prefix
        connect(program, store)
        runs[command] = (program, program.start(command, store.driver, *store.arguments))
    said = {}
    for command, (program, run) in runs.items():
        said[command] = "".join(run.communicate(timeout=120))
        assert run.returncode == 1, said[command]
        assert not program.stamp.exists()
        assert "Traceback" not in said[command]
    return said


def test_no_command_believes_a_server_that_says_200_to_everything(
    tmp_path: Path, program: Program, proxied: tuple[Store, TroubleProxy]
) -> None:
    store, proxy = proxied
    plant(program, 20)
    proxy.lie = lie(BODIES["page"])
    said = run_all(tmp_path, store, "bucket", program, ["backup", "restore", "verify", "purge"])
    for text in said.values():
        assert "200 with something that is not" in text


def test_a_backup_whose_puts_are_answered_with_a_page_ends_early(
    program: Program, proxied: tuple[Store, TroubleProxy]
) -> None:
    store, proxy = proxied
    plant(program, 200)
    proxy.lie = lie(BODIES["page"], rb"^(PUT \S+/many\.|POST \S*/upload/)")
    said = connect(program, store)("backup", status=1)
    assert "the store failed 20 times in a row" in said
    assert "200 with something that is not" in said
    assert not program.stamp.exists()


def test_a_deletion_that_is_answered_with_a_page_is_no_deletion(
    program: Program, proxied: tuple[Store, TroubleProxy]
) -> None:
    store, proxy = proxied
    run = connect(program, store)
    plant(program, 5)
    run("backup")
    (program.prefix / "many/m1.wsp").unlink()
    proxy.lie = lie(BODIES["page"], rb"^(DELETE|POST)")
    said = run("purge", "-x", "0", status=3)
    assert "1 purged" not in said
    assert "200 with something that is not" in said


LATER_PAGES = rb"[?&](continuation-token|marker)="


@pytest.mark.parametrize("proxied", ["s3-swift", "swift-v1"], indirect=True)  # fake-gcs-server makes no second page
def test_one_bad_page_of_a_listing_ends_restore_and_verify_with_1(
    tmp_path: Path, program: Program, proxied: tuple[Store, TroubleProxy]
) -> None:
    store, proxy = proxied
    program.bucket = f"liars-{uuid.uuid4().hex}"
    content = program.write("many.m").read_bytes()
    objects = {}
    for number in range(store.page // 2 + 20):
        key = f"many.m{number:04}/2026-11-20T00:00:00+00:00."
        objects |= {key + "wsp.gz": gzip.compress(content), key + "sha1": hashlib.sha1(content).hexdigest().encode()}
    put_all(open_store(store, program.bucket, create=True), objects)
    proxy.lie = lie(BODIES["xml"], LATER_PAGES)
    said = run_all(tmp_path, store, program.bucket, program, ["verify", "restore"])
    for text in said.values():
        assert "cannot list" in text
        assert "200 with something that is not" in text


@pytest.mark.parametrize("call", ["list", "get"])
def test_an_answer_that_drips_has_a_deadline(
    proxied: tuple[Store, TroubleProxy], call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((s3, "LAST_ATTEMPT_SECONDS"), (swift, "LAST_ATTEMPT_SECONDS"), (deadline, "SECONDS")):
        monkeypatch.setattr(module, name, 0.5)
    monkeypatch.setitem(gcs.RETRY_POLICY, "retry", gcs.RETRY_POLICY["retry"].with_timeout(0.5))
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    driver.put("the key", b"x" * 5000)
    proxy.drip = 0.05
    began = time.monotonic()
    with pytest.raises(Unavailable):
        CALLS[call](driver)
    assert time.monotonic() - began < 15


@pytest.mark.parametrize(
    "headers",
    [
        b'ETag: "00000000000000000000000000000000"\r\nx-amz-server-side-encryption: aws:kms',
        b'ETag: "00000000000000000000000000000000"\r\nx-amz-server-side-encryption: aws:kms:dsse',
        b'ETag: "00000000000000000000000000000000-2"',
    ],
)
@pytest.mark.servers
def test_an_etag_that_is_no_md5_by_right_is_believed(headers: bytes) -> None:
    store = servers.store("s3-rclone")
    with TroubleProxy(store.port) as proxy:
        proxy.lie = lambda _: answer(b"").replace(b"\r\n\r\n", b"\r\n" + headers + b"\r\n\r\n")
        open_store(store.through(proxy.port), "bucket").put("key", b"body")


FORMS: dict[str, Callable[[str, str], object]] = {
    "as it was sent": lambda bucket, key: [quote(f"/{bucket}/{key}"), "403 Forbidden"],
    "without quotes": lambda bucket, key: [f"/{bucket}/{key}", "403 Forbidden"],
    "as Ceph does": lambda bucket, key: [f"{bucket}/{key}", "403 Forbidden"],
    "without the container": lambda bucket, key: [quote(key), "403 Forbidden"],
    "quoted twice": lambda bucket, key: [quote(quote(f"/{bucket}/{key}")), "403 Forbidden"],
    "of another account": lambda bucket, key: [f"/v1/AUTH_x/{bucket}/{key}", "403 Forbidden"],
    "as an object": lambda bucket, key: {"Name": f"/{bucket}/{key}", "Status": "403 Forbidden"},
    "as rubbish": lambda bucket, key: [],
}


@pytest.mark.servers
@pytest.mark.parametrize("form", FORMS)
def test_a_key_that_a_bulk_delete_reports_in_any_form_is_not_deleted(form: str) -> None:
    """Only the keys that it names are deleted again, one by one, or all of them if it names one that nobody knows."""
    store = servers.store("swift-v1")
    bucket, keys = f"liars-{uuid.uuid4().hex}", ["a b/1", "a%20b/1", "c/é", "d/1", "e/1"]
    with TroubleProxy(store.port) as proxy:
        driver = open_store(store.through(proxy.port), bucket, create=True)
        put_all(driver, dict.fromkeys(keys, b"x"))
        errors = [FORMS[form](bucket, key) for key in ("a%20b/1", "c/é")]
        told = {"Number Deleted": 3, "Number Not Found": 0, "Response Status": "400 Bad Request", "Errors": errors}
        body = answer(json.dumps(told).encode())
        proxy.lie = lambda head: body if b"?bulk-delete" in head.split(b"\r\n")[0] else None
        driver.delete(keys)
        left = {found.key for found in driver.list("")}
        assert not left & {"a%20b/1", "c/é"}
        assert (left == set()) == (form in list(FORMS)[-3:])
        proxy.lie = lambda head: body if b"?bulk-delete" in head.split(b"\r\n")[0] else servers.refuse_deletions(head)
        with pytest.raises(NotDeleted) as stayed:
            driver.delete(keys)
        assert {"a%20b/1", "c/é"} <= stayed.value.refused.keys()


def again(store: Store, names: list[str]) -> Callable[[bytes], bytes | None]:
    """Answer each request for a page with these objects, and with the beginning of another page."""
    number = itertools.count()

    def page(head: bytes) -> bytes | None:
        line = head.split(b"\r\n")[0]
        if store.driver == "swift" and b"format=json" in line:
            rows = [{"name": name, "bytes": 1, "hash": "0" * 32} for name in names]
            return answer(json.dumps(rows).encode()).replace(b"\r\n\r\n", b"\r\nX-Container-Object-Count: 9\r\n\r\n", 1)
        if store.driver == "s3" and b"list-type=2" in line:
            rows = [f"<Contents><Key>{name}</Key><Size>1</Size></Contents>" for name in names]
            more = f"<IsTruncated>true</IsTruncated><NextContinuationToken>{next(number)}</NextContinuationToken>"
            return answer(f"<ListBucketResult>{more}{''.join(rows)}</ListBucketResult>".encode())
        if store.driver == "gcs" and re.match(rb"GET \S*/o\?", line):
            items = [{"name": name, "size": "1"} for name in names]
            told = {"kind": "storage#objects", "nextPageToken": str(next(number)), "items": items}
            return answer(json.dumps(told).encode()).replace(b"text/html", b"application/json")
        return None

    return page


@pytest.mark.servers
def test_a_listing_that_repeats_a_page_for_ever_ends(proxied: tuple[Store, TroubleProxy]) -> None:
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    proxy.lie = again(store, ["a", "b", "c"])
    with pytest.raises(
        UnsortedListing, match=rf"the {store.driver} store 'liars-\w+' lists 'a' after 'c': .*check the"
    ):
        for _ in itertools.islice(driver.list(""), 10_000):
            pass
    with pytest.raises(StartAfterUnsupported):
        for _ in itertools.islice(list_range(driver, "", "b", ""), 10_000):
            pass
    assert [found.key for found in list_range(driver, "", "", "b")] == ["a", "b"]
    proxy.lie = again(store, ["a"])
    with pytest.raises(UnsortedListing):
        for _ in itertools.islice(driver.list(""), 10_000):
            pass
    proxy.lie = again(store, ["a", "b", "b", "c"])
    assert [found.key for found in itertools.islice(driver.list(""), 3)] == ["a", "b", "c"]


@pytest.mark.servers
@pytest.mark.parametrize("command", [["list", "--debris"], ["list", "--runs"], ["doctor"], ["increment"]], ids=" ".join)
def test_no_command_reads_a_page_for_ever(program: Program, command: list[str]) -> None:
    store = servers.store("swift-v1")
    with TroubleProxy(store.port) as proxy:
        run = connect(program, store.through(proxy.port))
        program.write("a")
        run("backup")
        proxy.lie = again(store, [".runs/2026-11-20T00:00:00+00:00.json", "a/2026-11-20T00:00:00+00:00.sha1"])
        said = run(*command, status=3 if command == ["doctor"] else 1)
        assert "it does not sort its keys, or repeats a page" in said


@pytest.mark.servers
@pytest.mark.parametrize("proxied", ["s3-rclone", "gcs"], indirect=True)  # on Swift an empty page is the last
def test_a_listing_of_empty_pages_without_end_ends(
    proxied: tuple[Store, TroubleProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, proxy = proxied
    driver = open_store(store, f"liars-{uuid.uuid4().hex}", create=True)
    monkeypatch.setattr(base, "EMPTY_PAGES", 20)
    proxy.lie = again(store, [])
    with pytest.raises(StorageError, match="empty pages without end"):
        next(driver.list(""), None)
    assert proxy.troubles == 21
