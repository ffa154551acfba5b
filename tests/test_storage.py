"""The driver's contract (storage/base.py), held against every driver, each before a real server."""

from __future__ import annotations

import hashlib
import http.server
import itertools
import json
import logging
import os
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import servers
import swiftclient
from servers import Store, TroubleProxy

from whisperbackup import storage
from whisperbackup.storage import windows
from whisperbackup.storage.base import (
    AccessDenied,
    CreatingDriver,
    Driver,
    Exists,
    NotFound,
    RangedDriver,
    StorageError,
    Unavailable,
    UsageError,
    get_range,
    modified,
)
from whisperbackup.storage.guarded import Guarded
from whisperbackup.storage.noop import Noop
from whisperbackup.storage.readonly import ReadOnly

APPLICATION = "swift-v3-application"
"""Keystone again with another way to get a token, which is all that is tried with it."""
CONFORMING = [name for name in servers.STORES if name != APPLICATION]
NETWORK = [name for name in CONFORMING if name not in servers.LOCAL]
AWKWARD = [
    "a b/2026-11-23T00:51:25+00:00.wsp.gz",
    "a+b/x",
    "a%20b/x",
    "a%2Fb%zz",
    "a&b=c/<x>'\"",
    "_tagged/4f2/x;dc=a;host=b/2026.sha1",
    "a#b/x",
    "a?b=c/x",
    "a\\b|c^d`e{f}~!$*()@,[]",
    "metrik/prüfung/é",
    "e\u0301 decomposed",
    "日本/語",
    "\uffee last of the BMP's printable ones",
    "😀 beyond the BMP",
    "/".join(["n" * 200, "é" * 100, "o" * 200, "日" * 60, "p" * 116]),  # 900 bytes
]
LONG = "é" * 438 + "/2026-11-23T00:51:25.gz"  # 900 bytes, most of them in one component

environment_lock = threading.Lock()


def open_store(
    store: Store, bucket: str, create: bool = False, arguments: list[str] | None = None, **environment: str | None
) -> Driver:
    """The store's driver as the command line would open it, with nothing but the store's own variables around."""
    ours = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": os.devnull, "NO_GCE_CHECK": "true"}
    ours |= {"AWS_SHARED_CREDENTIALS_FILE": os.devnull, **store.environment}
    for name, value in environment.items():
        ours.pop(name, None)
        if value is not None:
            ours[name] = value
    with environment_lock:
        before = dict(os.environ)
        for name in before:
            if name.startswith(("AWS_", "ST_", "OS_", "GOOGLE_", "STORAGE_")):
                del os.environ[name]
        os.environ.update(ours)
        try:
            words = store.arguments if arguments is None else arguments
            return storage.open_bucket(store.driver, bucket, words, create=create, noop=False)
        finally:
            os.environ.clear()
            os.environ.update(before)


@pytest.fixture(scope="module", params=CONFORMING)
def store(request: pytest.FixtureRequest) -> Store:
    return servers.store(request.param)


@pytest.fixture(scope="module", params=NETWORK)
def network_store(request: pytest.FixtureRequest) -> Store:
    return servers.store(request.param)


@pytest.fixture(scope="module")
def new_name(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Store], str]:
    """Names of buckets that nobody has used; for disk, of directories below one that is there."""
    above = tmp_path_factory.mktemp("buckets")

    def name(store: Store) -> str:
        bucket = f"conformance-{uuid.uuid4().hex}"
        return str(above / bucket) if store.driver in servers.LOCAL else bucket

    return name


@pytest.fixture
def bucket(store: Store, new_name: Callable[[Store], str]) -> str:
    return new_name(store)


@pytest.fixture
def driver(store: Store, bucket: str) -> Iterator[Driver]:
    driver = open_store(store, bucket, create=True)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def full(store: Store, new_name: Callable[[Store], str]) -> Iterator[tuple[Driver, dict[str, bytes]]]:
    """A bucket of awkward keys and more than a page of plain ones, more than two of short pages; tests only read it."""
    driver = open_store(store, new_name(store), create=True)
    contents = {key: f"content of {key}".encode() for key in AWKWARD}
    contents |= {f"servers.web{n}.cpu/x": b"%d" % n for n in range(min(2 * store.page, 1000) + 50)}
    put_all(driver, contents)
    yield driver, contents
    driver.close()


def put_all(driver: Driver, contents: dict[str, bytes]) -> None:
    with ThreadPoolExecutor(driver.threads) as pool:
        list(pool.map(driver.put, contents.keys(), contents.values()))


def keys(driver: Driver, prefix: str = "") -> list[str]:
    return [found.key for found in driver.list(prefix)]


# --- Listing ------------------------------------------------------------------------------------------------------


def test_a_listing_of_several_pages_has_every_key_once_in_byte_order(full: tuple[Driver, dict[str, bytes]]) -> None:
    driver, contents = full
    listed = keys(driver)
    assert listed == sorted(contents, key=str.encode)


def test_a_listing_states_sizes_and_the_md5_of_the_content_or_nothing(full: tuple[Driver, dict[str, bytes]]) -> None:
    driver, contents = full
    for found in driver.list(""):
        content = contents[found.key]
        assert found.size == len(content)
        assert found.md5 in (hashlib.md5(content).hexdigest(), None)


def test_every_network_store_states_md5s(network_store: Store, new_name: Callable[[Store], str]) -> None:
    driver = open_store(network_store, new_name(network_store), create=True)
    driver.put("a", b"abc")
    assert [found.md5 for found in driver.list("")] == ["900150983cd24fb0d6963f7d28e17f72"]


@pytest.mark.parametrize("prefix", ["servers.web1", "a", "a%", "a+", "a b/2", "日", "_tagged/4f2/x;dc", "no such"])
def test_a_prefix_is_a_string_and_no_folder(full: tuple[Driver, dict[str, bytes]], prefix: str) -> None:
    driver, contents = full
    expected = sorted((key for key in contents if key.startswith(prefix)), key=str.encode)
    assert keys(driver, prefix) == expected


def test_a_range_of_a_listing_is_that_part_of_it(full: tuple[Driver, dict[str, bytes]]) -> None:
    driver, contents = full
    assert isinstance(driver, RangedDriver)
    every = sorted(contents, key=str.encode)
    cuts = ["", *every[:: len(every) // 7], every[-1] + "x", ""]
    for after, until in itertools.pairwise(cuts):
        expected = [key for key in every if key > after and (not until or key <= until)]
        assert [found.key for found in driver.list_range("", after, until)] == expected
    assert [found.key for found in driver.list_range("", every[3], every[4])] == [every[4]]
    assert next(driver.list_range(every[5], every[2], every[-1])).key == every[5]


def test_a_listing_can_be_left_early(full: tuple[Driver, dict[str, bytes]]) -> None:
    driver, contents = full
    first = sorted(contents, key=str.encode)[:3]
    assert [found.key for found in itertools.islice(driver.list(""), 3)] == first


# --- Reading and writing ------------------------------------------------------------------------------------------


def test_what_was_put_is_got(full: tuple[Driver, dict[str, bytes]]) -> None:
    driver, contents = full
    assert {key: driver.get(key) for key in AWKWARD} == {key: contents[key] for key in AWKWARD}


@pytest.mark.parametrize("name", [name for name in CONFORMING if name != "s3-rclone"])  # a key is a path there
def test_a_component_of_a_key_may_be_longer_than_a_file_name(name: str, new_name: Callable[[Store], str]) -> None:
    driver = open_store(servers.store(name), new_name(servers.store(name)), create=True)
    put_all(driver, {LONG: b"1", LONG + "x": b"2", "a": b"3"})
    assert (driver.get(LONG), driver.get(LONG + "x")) == (b"1", b"2")
    assert keys(driver) == ["a", LONG, LONG + "x"]
    driver.delete([LONG, "a", "missing"])
    assert keys(driver) == [LONG + "x"]


@pytest.mark.parametrize("name", [name for name in NETWORK if name != "s3-rclone"])
def test_a_key_may_begin_with_a_slash(name: str, new_name: Callable[[Store], str]) -> None:
    driver = open_store(servers.store(name), new_name(servers.store(name)), create=True)
    put_all(driver, {"/a/x": b"1", "a/x": b"2"})
    assert (driver.get("/a/x"), driver.get("a/x")) == (b"1", b"2")
    assert keys(driver, "/") == ["/a/x"]
    driver.delete(["/a/x"])
    assert keys(driver) == ["a/x"]


def test_getting_a_missing_key_is_not_found_and_names_it(driver: Driver) -> None:
    driver.put("there", b"x")
    with pytest.raises(NotFound, match="not there"):
        driver.get("not there")


def test_a_put_replaces(driver: Driver) -> None:
    driver.put("a/b", b"first")
    driver.put("a/b", b"the second is longer")
    driver.put("a/b", b"third")
    assert driver.get("a/b") == b"third"
    assert [(found.key, found.size) for found in driver.list("")] == [("a/b", 5)]


@pytest.mark.servers
def test_what_is_created_replaces_nothing(store: Store, driver: Driver) -> None:
    if store.driver == "s3" and store.arguments == servers.store("s3-rclone").arguments:
        return  # it takes no notice of conditions, as test_create.py shows
    assert isinstance(driver, CreatingDriver)
    driver.create_all([("a/1", b"first"), ("a/2", b"second")])
    with pytest.raises(Exists) as caught:
        driver.create_all([("a/3", b"third"), ("a/2", b"another"), ("a/4", b"fourth")])
    assert caught.value.key == "a/2"
    assert {key: driver.get(key) for key in keys(driver)} == {"a/1": b"first", "a/2": b"second", "a/3": b"third"}
    driver.create_all([("a/1", b"first"), ("a/5", b"")])  # what is there already is as good as stored
    assert keys(driver) == ["a/1", "a/2", "a/3", "a/5"]


def test_a_create_whose_answer_was_lost_is_no_conflict(network_store: Store, new_name: Callable[[Store], str]) -> None:
    with TroubleProxy(network_store.port) as proxy:
        driver = open_store(network_store.through(proxy.port), new_name(network_store), create=True)
        assert isinstance(driver, CreatingDriver)
        driver.create_all([("first", b"x")])
        proxy.lose = 1
        driver.create_all([("a", b"1"), ("b", b"2")])
        assert proxy.lose == 0
        assert {key: driver.get(key) for key in keys(driver)} == {"a": b"1", "b": b"2", "first": b"x"}


def test_an_object_may_be_empty(driver: Driver) -> None:
    driver.put("a/empty", b"")
    assert driver.get("a/empty") == b""
    assert [(found.key, found.size) for found in driver.list("")] == [("a/empty", 0)]


def test_every_byte_survives_in_a_large_object(driver: Driver) -> None:
    content = bytes(range(256)) * 40_000 + b"\r\n\0"
    driver.put("large", content)
    assert driver.get("large") == content


PARTS = [(0, 1), (0, 10), (3, 4), (9, 1), (0, 11), (4, 100), (9, 2)]
BEHIND = [(10, 1), (11, 5), (10_000, 3)]


def test_a_part_of_an_object_is_read(driver: Driver) -> None:
    driver.put("a part", b"0123456789")
    driver.put("nothing", b"")
    for offset, length in PARTS + BEHIND:
        assert get_range(driver, "a part", offset, length) == b"0123456789"[offset : offset + length]
    assert get_range(driver, "nothing", 0, 5) == b""
    for key in ("not there", "a part/b"):
        with pytest.raises(NotFound, match=key):
            get_range(driver, key, 0, 5)


def test_every_byte_survives_in_the_parts_of_a_large_object(driver: Driver) -> None:
    content = os.urandom(3_000_000)
    driver.put("large", content)
    parts = [get_range(driver, "large", offset, 1 << 20) for offset in range(0, len(content), 1 << 20)]
    assert b"".join(parts) == content


def test_a_part_costs_one_request_and_no_more_bytes(network_store: Store, new_name: Callable[[Store], str]) -> None:
    heads: list[bytes] = []
    with TroubleProxy(network_store.port) as proxy:
        driver = open_store(network_store.through(proxy.port), new_name(network_store), create=True)
        driver.put("large", b"x" * 500_000)
        proxy.requests.clear()
        proxy.alter = lambda head, answer: heads.append(answer) or answer  # type: ignore[func-returns-value]
        assert get_range(driver, "large", 1000, 100) == b"x" * 100
        assert proxy.requests["GET"] == proxy.requests.total() == 1
    (head,) = heads
    assert re.search(rb"(?i)content-length: 100\r\n", head)


def test_a_driver_that_reads_no_parts_is_asked_for_the_whole() -> None:
    class Whole(Noop):
        def get(self, key: str) -> bytes:
            return b"0123456789"

    for driver in (Whole(), Guarded(Whole(), "whole", "bucket"), ReadOnly(Whole(), absent_is_empty=False)):
        for offset, length in PARTS + BEHIND:
            assert get_range(driver, "key", offset, length) == b"0123456789"[offset : offset + length]
    with pytest.raises(NotFound):
        get_range(Noop(), "key", 0, 1)


def test_a_store_tells_when_it_wrote_an_object(driver: Driver) -> None:
    before = time.time()
    driver.put("a", b"x")
    written = modified(driver, "a")
    assert written is not None
    assert before - 1 <= written <= time.time() + 1  # it may be rounded either way
    with pytest.raises(NotFound):
        modified(driver, "b")


def test_threads_share_a_driver(driver: Driver) -> None:
    def work(thread: int) -> list[bytes]:
        for n in range(25):
            driver.put(f"{thread}/{n}", b"%d %d" % (thread, n))
        return [driver.get(f"{thread}/{n}") for n in range(25)]

    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(work, range(2)))
    assert got == [[b"%d %d" % (thread, n) for n in range(25)] for thread in range(2)]
    assert len(keys(driver)) == 50


# --- Deleting -----------------------------------------------------------------------------------------------------


def test_deleting_passes_over_missing_keys(driver: Driver) -> None:
    put_all(driver, dict.fromkeys(["a", "b", "c", "d"], b"x"))
    driver.delete(["a", "missing", "c", "a/b/missing as well"])
    assert keys(driver) == ["b", "d"]


def test_deleting_a_missing_key_alone_is_no_error(driver: Driver) -> None:
    driver.delete(["missing"])
    driver.delete([])


def test_deleting_awkward_keys(driver: Driver) -> None:
    put_all(driver, dict.fromkeys([*AWKWARD, "stays"], b"x"))
    driver.delete(iter(AWKWARD))
    assert keys(driver) == ["stays"]


def test_a_key_that_xml_cannot_hold_stops_no_deletion(driver: Driver) -> None:
    there = ["a\ufffeb", "b\uffff", "c", "d"]
    put_all(driver, dict.fromkeys([*there, "stays"], b"x"))
    driver.delete([*there, "missing\ufffe"])
    assert keys(driver) == ["stays"]


@pytest.mark.soak
def test_deleting_more_than_a_thousand_keys_at_once(driver: Driver) -> None:
    there = [f"k{n:05}" for n in range(0, 1010, 10)]
    put_all(driver, dict.fromkeys([*there, "stays"], b"x"))
    driver.delete(f"k{n:05}" for n in range(1010))
    assert keys(driver) == ["stays"]


# --- Buckets and arguments ----------------------------------------------------------------------------------------


def test_an_absent_bucket_is_not_found(store: Store, bucket: str) -> None:
    with pytest.raises(NotFound, match=bucket):
        list(open_store(store, bucket).list(""))
    with pytest.raises(StorageError, match=bucket):
        open_store(store, bucket).put("key", b"x")
    with pytest.raises(NotFound):
        open_store(store, bucket).get("key")


def test_a_bucket_is_created_once_and_opened_ever_after(store: Store, bucket: str) -> None:
    open_store(store, bucket, create=True).put("key", b"x")
    assert open_store(store, bucket, create=True).get("key") == b"x"
    assert open_store(store, bucket).get("key") == b"x"


def test_a_bucket_that_was_made_since_we_looked_is_no_error(
    network_store: Store, new_name: Callable[[Store], str]
) -> None:
    bucket = new_name(network_store)
    open_store(network_store, bucket, create=True)
    absent = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    with TroubleProxy(network_store.port) as proxy:
        lies = iter([absent])
        proxy.lie = lambda head: None if b"/auth/" in head else next(lies, None)
        driver = open_store(network_store.through(proxy.port), bucket, create=True)
        assert keys(driver) == []


@pytest.mark.parametrize("word", ["colour=red", "region=a=b=c colour", "=", "endpoint2=http://x"])
def test_an_unknown_storage_argument_is_a_usage_error(store: Store, word: str) -> None:
    with pytest.raises(UsageError):
        open_store(store, "bucket", arguments=[*store.arguments, *word.split(), "colour=blue"])


@pytest.mark.parametrize("words", [["sse=rot13"], ["addressing=sideways"], ["endpoint=ftp://x"], ["region=a b"]])
@pytest.mark.servers
def test_a_storage_argument_of_s3_with_a_wrong_value_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(UsageError, match=words[0].split("=")[0]):
        open_store(servers.store("s3-rclone"), "bucket", arguments=words)


@pytest.mark.servers
@pytest.mark.parametrize("bucket", ["/backup/graphite", "a/b", "a b", "a\nb"])
@pytest.mark.servers
def test_a_path_as_bucket_is_one_line_with_a_remedy(bucket: str) -> None:
    with pytest.raises(UsageError, match="--storage-path") as caught:
        open_store(servers.store("s3-rclone"), bucket)
    assert "regex" not in str(caught.value)
    assert len(str(caught.value)) < 150


@pytest.mark.servers
def test_an_endpoint_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(UsageError, match="endpoint") as caught:
        open_store(servers.store("s3-rclone"), "bucket", arguments=["endpoint=http://user:hunter2@127.0.0.1:1"])
    assert "hunter2" not in str(caught.value)


# --- Requests -----------------------------------------------------------------------------------------------------


def test_no_call_makes_more_requests_than_it_needs(network_store: Store, new_name: Callable[[Store], str]) -> None:
    bucket = new_name(network_store)
    open_store(network_store, bucket, create=True).close()
    with TroubleProxy(network_store.port) as proxy:
        driver = open_store(network_store.through(proxy.port), bucket)
        assert not proxy.requests, "opening costs nothing"
        driver.put("a/1", b"x")
        proxy.requests.pop("AUTH", None)
        driver.put("a/2", b"x")
        driver.get("a/1")
        assert proxy.requests.total() == 3
        list(driver.list("a/"))
        assert proxy.requests["LIST"] <= 2
        proxy.requests.clear()
        driver.delete([f"a/{n}" for n in range(100)])
        assert proxy.requests["BULKDELETE"] == 1
        assert proxy.requests.total() <= 2, "Swift is asked once what it can do"


def test_refused_and_cut_requests_are_made_again(network_store: Store, new_name: Callable[[Store], str]) -> None:
    with TroubleProxy(network_store.port) as proxy:
        proxy.refuse, proxy.cut = 0.10, 0.04
        driver = open_store(network_store.through(proxy.port), new_name(network_store), create=True)
        contents = {f"k{n:03}": b"%d" % n for n in range(60)}
        put_all(driver, contents)
        with ThreadPoolExecutor(driver.threads) as pool:
            assert dict(zip(contents, pool.map(driver.get, contents), strict=True)) == contents
        assert keys(driver) == list(contents)
        driver.delete(contents)
        assert keys(driver) == []
        assert proxy.troubles > 5


@pytest.mark.parametrize("name", ["swift-v1", "swift-v3", APPLICATION])
def test_a_token_that_expires_is_renewed(name: str, new_name: Callable[[Store], str]) -> None:
    with servers.swift_proxy_alone(name) as store:
        renew_tokens(store, new_name(store))


def renew_tokens(store: Store, bucket: str) -> None:
    """Call after call, before each of which the proxy forgets every token."""
    driver = open_store(store, bucket, create=True)
    put_all(driver, {f"k{n}": b"x" for n in range(20)})
    servers.expire_tokens(store.port)
    put_all(driver, {f"k{n}": b"y" for n in range(20)})
    servers.expire_tokens(store.port)
    assert driver.get("k1") == b"y"
    servers.expire_tokens(store.port)
    assert len(keys(driver)) == 20
    servers.expire_tokens(store.port)
    driver.delete(f"k{n}" for n in range(20))
    assert keys(driver) == []


def test_a_listing_of_a_hundred_windows_takes_few_connections(
    network_store: Store, new_name: Callable[[Store], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "START_WIDTH", 1)
    monkeypatch.setattr(windows, "MAX_WIDTH", 1)
    driver = open_store(network_store, new_name(network_store), create=True)
    put_all(driver, {"k000": b"x", "k099": b"x"})
    before = len(os.listdir("/proc/self/fd"))
    listed = [found.key for found in windows.list_in_windows(driver, "", [f"k{n:03}" for n in range(100)])]
    assert listed == ["k000", "k099"]
    assert len(os.listdir("/proc/self/fd")) <= before + windows.AT_ONCE
    driver.close()


# --- Errors -------------------------------------------------------------------------------------------------------

WRONG = {
    "s3-rclone": ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"],
    "s3-swift": ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"],
    "swift-v1": ["ST_KEY", "ST_USER"],
    "swift-v3": ["OS_PASSWORD", "OS_USERNAME", "OS_PROJECT_NAME"],
    APPLICATION: ["OS_APPLICATION_CREDENTIAL_SECRET", "OS_APPLICATION_CREDENTIAL_ID"],
}


@pytest.mark.parametrize(("name", "variable"), [(name, variable) for name in WRONG for variable in WRONG[name]])
def test_wrong_credentials_are_denied_without_being_told(
    name: str, variable: str, new_name: Callable[[Store], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = servers.store(name)
    with pytest.raises(AccessDenied) as caught:
        list(open_store(store, new_name(store), **{variable: "hunter2"}).list(""))
    assert "hunter2" not in str(caught.value) + caplog.text


SECRETS = ("AWS_SECRET_ACCESS_KEY", "ST_KEY", "OS_PASSWORD", "OS_APPLICATION_CREDENTIAL_SECRET")


def test_no_log_at_any_level_has_a_credential(
    network_store: Store, new_name: Callable[[Store], str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    driver = open_store(network_store, new_name(network_store), create=True)
    driver.put("key", b"x")
    driver.get("key")
    driver.delete(["key", "another"])
    assert list(driver.list("")) == []
    for name in SECRETS:
        assert network_store.environment.get(name, "no secret") not in caplog.text
    for sign in ("AUTH_tk", "gAAAA", "Signature", "X-Auth-Token", "X-Subject-Token", "uthorization"):
        assert sign not in caplog.text


@pytest.mark.parametrize(
    ("name", "unset", "remedy"),
    [
        ("s3-rclone", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"], "AWS_ACCESS_KEY_ID"),
        ("s3-rclone", ["AWS_SECRET_ACCESS_KEY"], "AWS_SECRET_ACCESS_KEY"),
        ("swift-v1", ["ST_KEY"], "ST_KEY"),
        ("swift-v3", ["OS_AUTH_URL"], "OS_"),
        ("swift-v3", ["OS_PASSWORD"], "OS_PASSWORD"),
        ("swift-v3", ["OS_USERNAME"], "OS_USERNAME"),
        (APPLICATION, ["OS_APPLICATION_CREDENTIAL_SECRET"], "secret"),
        ("gcs", ["STORAGE_EMULATOR_HOST"], "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_credentials_that_are_not_there_are_asked_for(
    name: str, unset: list[str], remedy: str, new_name: Callable[[Store], str], tmp_path: Path
) -> None:
    store = servers.store(name)
    with pytest.raises(AccessDenied, match=remedy):
        list(open_store(store, new_name(store), **{**dict.fromkeys(unset), "HOME": str(tmp_path)}).list(""))


@pytest.mark.servers
@pytest.mark.soak  # like all that need Keystone
def test_a_region_without_an_object_store_is_named() -> None:
    with pytest.raises(StorageError, match="OS_REGION_NAME"):
        list(open_store(servers.store("swift-v3"), "bucket", OS_REGION_NAME="nowhere").list(""))


@pytest.mark.servers
def test_swift_refuses_what_the_user_may_not() -> None:
    store = servers.store("swift-v1")
    with pytest.raises(AccessDenied, match="role"):
        list(open_store(store, "bucket", ST_USER="test:reader", ST_KEY="reading").list(""))


@pytest.mark.servers
def test_swift_reports_the_keys_that_could_not_be_deleted(new_name: Callable[[Store], str]) -> None:
    store = servers.store("swift-v1")
    bucket = new_name(store)
    put_all(open_store(store, bucket, create=True), {"a b": b"x", "c": b"y"})
    owner = swiftclient.Connection(*(store.environment[name] for name in ("ST_AUTH", "ST_USER", "ST_KEY")))
    owner.post_container(bucket, {"X-Container-Read": "test:reader"})
    # Who may only read need not be allowed to make containers, and is told what stays.
    reader = open_store(store, bucket, create=True, ST_USER="test:reader", ST_KEY="reading")
    with pytest.raises(StorageError, match=r"3 objects.*'a b'.*403"):
        reader.delete(["a b", "missing", "c"])
    assert keys(reader) == ["a b", "c"]


@pytest.mark.servers
def test_an_acl_of_swift_that_allows_writing_allows_deleting(new_name: Callable[[Store], str]) -> None:
    store = servers.store("swift-v1")
    bucket = new_name(store)
    put_all(open_store(store, bucket, create=True), {"a": b"x"})
    owner = swiftclient.Connection(*(store.environment[name] for name in ("ST_AUTH", "ST_USER", "ST_KEY")))
    owner.post_container(bucket, {"X-Container-Read": "test:reader,.rlistings", "X-Container-Write": "test:reader"})
    node = open_store(store, bucket, ST_USER="test:reader", ST_KEY="reading")
    node.put("b", b"y")
    node.delete(["a", "b"])  # docs/security.md: so a proxy has to refuse it
    assert keys(node) == []


@pytest.mark.servers
def test_a_service_account_that_google_refuses_is_denied(tmp_path: Path, new_name: Callable[[Store], str]) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    how = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    pem = private.private_bytes(*how).decode()
    with answering(400, b'{"error": "invalid_grant", "error_description": "account not found"}') as port:
        account = {"type": "service_account", "client_email": "a@b.c", "private_key": pem, "private_key_id": "1"}
        account |= {"project_id": "p", "token_uri": f"http://127.0.0.1:{port}/token"}
        file = tmp_path / "key.json"
        file.write_text(json.dumps(account))
        variables = {"STORAGE_EMULATOR_HOST": None, "GOOGLE_APPLICATION_CREDENTIALS": str(file)}
        store = servers.store("gcs")
        with pytest.raises(AccessDenied, match="service account"):
            list(open_store(store, new_name(store), **variables).list(""))


class answering:
    """A server that gives one and the same answer to everything; the block gets its port."""

    def __init__(self, status: int, body: bytes) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = answer

            def log_message(self, *_: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> int:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return int(self._server.server_address[1])

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "family", "remedy"),
    [
        (403, "RequestTimeTooSkewed", AccessDenied, "clock"),
        (403, "ExpiredToken", AccessDenied, "token"),
        (403, "AccessDenied", AccessDenied, "policy"),
        (400, "AuthorizationHeaderMalformed", StorageError, "region="),
        (400, "IllegalLocationConstraintException", StorageError, "region="),
        (400, "XMinioStorageQuotaExceeded", StorageError, "quota"),
        (400, "InvalidStorageClass", StorageError, "storage_class="),
        (404, "NoSuchBucket", NotFound, "run backup once"),
    ],
)
@pytest.mark.servers
def test_what_s3_refuses_comes_with_a_remedy(status: int, code: str, family: type[StorageError], remedy: str) -> None:
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    with answering(status, body) as port:
        store = servers.store("s3-rclone").through(port)
        with pytest.raises(family, match=remedy) as caught:
            open_store(store, "bucket").put("key", b"x")
    assert type(caught.value) is family


@pytest.mark.servers
def test_s3_reports_the_keys_that_could_not_be_deleted() -> None:
    error = "<Error><Key>b%20c</Key><Code>AccessDenied</Code><Message>locked</Message></Error>".replace("%20", " ")
    with answering(200, f"<DeleteResult>{error}</DeleteResult>".encode()) as port:
        driver = open_store(servers.store("s3-rclone").through(port), "bucket")
        with pytest.raises(StorageError, match=r"1 object.*'b c'.*locked"):
            driver.delete(["a", "b c"])


# --- Stores that are gone -----------------------------------------------------------------------------------------

GONE = ("silent", "closed", "without TLS")


@pytest.fixture(scope="module")
def vain_calls(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Future[tuple[float, str]]]]:
    """Calls to stores that do not answer; each takes its time to give up, all together no more than one."""
    waiting = [item for item in request.session.items if "vain_calls" in getattr(item, "fixturenames", ())]
    cases = [(item.callspec.params["gone"], item.callspec.params["name"]) for item in waiting]
    with TroubleProxy(1) as silent, ThreadPoolExecutor(len(cases)) as pool:
        silent.silent = True
        closed = servers.free_port()
        drivers = {}
        for gone, name in cases:
            store = servers.store(name)
            match gone:
                case "silent":
                    store = store.through(silent.port)
                case "closed":
                    store = store.through(closed)
                case "without TLS":
                    store = over_tls(store)
            drivers[gone, name] = open_store(store, "bucket")  # all of them first: it changes the environment
        yield {case: pool.submit(complaint, driver) for case, driver in drivers.items()}


def over_tls(store: Store) -> Store:
    environment = {name: value.replace("http://", "https://") for name, value in store.environment.items()}
    return store._replace(
        arguments=[word.replace("http://", "https://") for word in store.arguments], environment=environment
    )


def complaint(driver: Driver) -> tuple[float, str]:
    """How long a call took to give up, in seconds, and what it said."""
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        driver.put("key", b"x")
    return time.monotonic() - began, str(caught.value)


@pytest.mark.parametrize("name", NETWORK)
@pytest.mark.parametrize("gone", GONE)
def test_a_call_to_a_store_that_is_gone_ends_in_about_a_minute(
    gone: str, name: str, vain_calls: dict[tuple[str, str], Future[tuple[float, str]]]
) -> None:
    seconds, text = vain_calls[gone, name].result()
    assert seconds < 90
    assert "key" in text
    assert ("TLS" if gone == "without TLS" else "check") in text


# --- Directories ---------------------------------------------------------------------------------------------------


def test_links_in_a_directory_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    driver = open_store(servers.store("disk"), str(tmp_path / "store"), create=True)
    driver.put("a/x", b"1")
    (tmp_path / "store/b").symlink_to("a")
    (tmp_path / "store/a/y").symlink_to("x")
    assert [keys(driver), keys(driver)] == [["a/x"], ["a/x"]]
    (warning,) = caplog.records
    assert re.search(r"store/\S+ is a symbolic link.*\(2 links in all\)", warning.getMessage())


# --- noop, and what --noop wraps around every driver --------------------------------------------------------------


def test_noop_accepts_everything_and_holds_nothing() -> None:
    driver = storage.open_bucket("noop", "anything", [], create=True, noop=False)
    driver.put("a/b", b"x")
    driver.delete(["a/b", "never there"])
    assert list(driver.list("")) == []
    with pytest.raises(NotFound, match="a/b"):
        driver.get("a/b")
    driver.close()
    with pytest.raises(UsageError):
        storage.open_bucket("noop", "anything", ["x=1"], create=True, noop=False)


def test_the_wrapper_of_noop_reads_and_never_writes(tmp_path: Path) -> None:
    real = storage.open_bucket("disk", str(tmp_path / "store"), [], create=True, noop=False)
    real.put("a/b", b"x")
    wrapped = storage.open_bucket("disk", str(tmp_path / "store"), [], create=True, noop=True)
    wrapped.put("a/c", b"y")
    wrapped.delete(["a/b"])
    assert get_range(wrapped, "a/b", 0, 5) == b"x"
    assert [found.key for found in wrapped.list("")] == ["a/b"]
    assert wrapped.get("a/b") == b"x"
    absent = storage.open_bucket("disk", str(tmp_path / "none"), [], create=True, noop=True)
    assert list(absent.list("")) == []
    assert not (tmp_path / "none").exists()
    with pytest.raises(NotFound):
        storage.open_bucket("disk", str(tmp_path / "none"), [], create=False, noop=True)
