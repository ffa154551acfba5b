"""Two runs without a common lock never write one backup between them: what is stored is created, never replaced."""

from __future__ import annotations

import gzip
import os
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest
import servers
from conftest import Program, install_driver
from servers import Store, TroubleProxy
from test_hostile_store import sha1, whisper_file
from test_storage import open_store
from test_stores import connect

from whisperbackup.errors import UnsortedListing
from whisperbackup.repository import backups, compression
from whisperbackup.repository.catalog import Catalog
from whisperbackup.repository.compression import Expansion, compressor
from whisperbackup.storage import disk
from whisperbackup.storage.base import Driver, Exists
from whisperbackup.tree.selection import select

ATOMIC = ("disk", "gcs")
"""Where one of two puts at the very same time is refused.  Elsewhere one run's backup may win; it is whole even so."""
KINDS = ["disk", "s3-rclone", "s3-swift", "swift-v1", "gcs"]
STAMP = "2026-11-20T00:00:00+00:00"


def new_bucket(store: Store, tmp_path: Path) -> str:
    return str(tmp_path / "store") if store.driver in servers.LOCAL else f"create-{uuid.uuid4().hex}"


def whole_backups(driver: Driver, kind: str = "") -> dict[str, set[bytes]]:
    """The marks of each metric; every complete backup has a payload that matches."""
    found: dict[str, set[bytes]] = {}
    for left in reversed(range(10)):  # rclone lists a key twice for a moment where two have created it at once
        try:
            metrics = list(Catalog(driver, "", select(["*"])))
            break
        except UnsortedListing:
            if not left or kind != "s3-rclone":
                raise
            time.sleep(0.5)
    for metric in metrics:
        for complete in metric.backups:
            key = f"{metric.key}{complete.stamp}."
            mark = driver.get(key + "sha1")
            contents = [Expansion(p.codec, driver.get(f"{key}wsp.{p.codec}")).content(10**7) for p in complete.payloads]
            assert mark in [sha1(content) for content in contents], key
            found.setdefault(metric.name, set()).add(mark)
    return found


def assert_stored(kind: str, found: dict[str, set[bytes]], expected: dict[str, set[bytes]]) -> None:
    if kind in ATOMIC:
        assert found == expected
    else:
        assert found.keys() == expected.keys()
        assert all(marks <= expected[metric] for metric, marks in found.items())


@pytest.mark.parametrize("codecs", [("gz", "gz"), ("gz", "sz")])
@pytest.mark.parametrize("kind", KINDS)
def test_two_that_store_under_one_stamp_make_two_whole_backups(
    tmp_path: Path, kind: str, codecs: tuple[str, str]
) -> None:
    store = servers.store(kind)
    bucket = new_bucket(store, tmp_path)
    drivers = [open_store(store, bucket, create=True) for _ in codecs]
    metrics = [f"m{number}" for number in range(4)]
    contents = [{metric: whisper_file((metric, number), 20) for metric in metrics} for number in range(2)]
    barrier = threading.Barrier(2)
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for metric in metrics:
                content = contents[number][metric]
                payload = compressor(codecs[number])(content)
                barrier.wait(20)
                stored = backups.store_at(
                    drivers[number], metric + "/", STAMP, codecs[number], payload, sha1(content).decode()
                )
                assert stored >= STAMP
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    expected = {metric: {sha1(content[metric]) for content in contents} for metric in metrics}
    assert_stored(kind, whole_backups(drivers[0], kind), expected)


@pytest.mark.parametrize("kind", ["disk", "s3-rclone", "gcs"])
def test_two_runs_at_once_without_a_common_lock_both_store_all(tmp_path: Path, kind: str) -> None:
    store = servers.store(kind)
    bucket = new_bucket(store, tmp_path)
    expected: dict[str, set[bytes]] = {}
    runs = []
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        program = Program(tmp_path / str(number))
        program.bucket = bucket
        for metric in range(20):
            path = program.write(f"many.m{metric}", number)
            expected.setdefault(f"many.m{metric}", set()).add(sha1(path.read_bytes()))
        connect(program, store)
        runs.append(program.start("backup", store.driver, *store.arguments))
    for run in runs:
        said = "".join(run.communicate(timeout=100))
        assert run.returncode == 0, said
        assert "20 backed up" in said
    assert_stored(kind, whole_backups(open_store(store, bucket), kind), expected)


def test_a_payload_whose_mark_was_refused_is_taken_away(tmp_path: Path) -> None:
    driver = open_store(servers.store("disk"), str(tmp_path / "store"), create=True)
    content, other = whisper_file(1), whisper_file(2)
    backups.store(driver, "m/", STAMP, "sz", compressor("sz")(other), sha1(other).decode())
    with pytest.raises(Exists):
        backups.store(driver, "m/", STAMP, "gz", gzip.compress(content), sha1(content).decode())
    assert [found.key for found in driver.list("")] == [f"m/{STAMP}.sha1", f"m/{STAMP}.wsp.sz"]


def test_the_same_content_stored_twice_is_no_conflict(tmp_path: Path) -> None:
    driver = open_store(servers.store("disk"), str(tmp_path / "store"), create=True)
    content = whisper_file(1)
    for _ in range(2):
        backups.store(driver, "m/", STAMP, "sz", compressor("sz")(content), sha1(content).decode())
    assert len(list(driver.list(""))) == 2


def test_a_file_system_without_hard_links_still_creates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(disk.os, "link", no_links)  # type: ignore[attr-defined]
    driver = open_store(servers.store("disk"), str(tmp_path / "store"), create=True)
    content, other = whisper_file(1), whisper_file(2)
    backups.store(driver, "m/", STAMP, "gz", gzip.compress(content), sha1(content).decode())
    with pytest.raises(Exists):
        backups.store(driver, "m/", STAMP, "gz", gzip.compress(other), sha1(other).decode())
    assert whole_backups(driver) == {"m": {sha1(content)}}
    assert not list((tmp_path / "store").rglob(".whisper-backup-*"))


@pytest.mark.servers
@pytest.mark.parametrize("answer", [b"501 NotImplemented", b"400 Unsupported", b"403 AccessDenied"])
def test_a_service_that_refuses_conditions_is_written_to_without(tmp_path: Path, answer: bytes) -> None:
    """As some that speak S3 do, each with an error of its own for a header that it does not know."""
    store = servers.store("s3-rclone")
    error = b"<Error><Code>%b</Code><Message>A header you provided is not implemented</Message></Error>" % answer[4:]
    said = b"HTTP/1.1 %b\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b"
    with TroubleProxy(store.port) as proxy:
        proxy.lie = lambda head: said % (answer, len(error), error) if b"if-none-match" in head.lower() else None
        driver = open_store(store.through(proxy.port), new_bucket(store, tmp_path), create=True)
        content, other = whisper_file(1), whisper_file(2)
        for metric in ("m/", "n/"):
            backups.store(driver, metric, STAMP, "gz", gzip.compress(content), sha1(content).decode())
            with pytest.raises(Exists):
                backups.store(driver, metric, STAMP, "gz", gzip.compress(other), sha1(other).decode())
        assert proxy.troubles == 2, "it is asked once, by wire and by boto3"
        assert whole_backups(driver) == {"m": {sha1(content)}, "n": {sha1(content)}}


@pytest.mark.parametrize("kind", ["s3-rclone", "s3-swift", "swift-v1"])
def test_who_promises_one_writer_pays_no_listings(tmp_path: Path, kind: str) -> None:
    """Where a service has no conditional puts, or none that hold for two at the same time."""
    store = servers.store(kind)
    content = whisper_file(1)
    lists = {}
    for writers in ("many", "one"):
        with TroubleProxy(store.port) as proxy:
            words = [*store.through(proxy.port).arguments, f"writers={writers}"]
            driver = open_store(store.through(proxy.port), new_bucket(store, tmp_path), True, words)
            backups.store(driver, "first/", STAMP, "gz", gzip.compress(content), sha1(content).decode())
            proxy.requests.clear()
            for metric in ("m/", "n/", "o/"):
                backups.store(driver, metric, STAMP, "gz", gzip.compress(content), sha1(content).decode())
            assert proxy.requests["PUT"] == 6
            lists[writers] = proxy.requests["LIST"]
            assert whole_backups(driver).keys() == {"first", "m", "n", "o"}
    assert lists["many"] >= 3
    assert lists["one"] == 0


class Between(disk.Disk):
    """A store that can only replace, as a third party's; another run's objects come right after one of ours."""

    create_all = None
    others: dict[str, tuple[str, bytes]]

    def put(self, key: str, body: bytes) -> None:
        super().put(key, body)
        if key in self.others:
            super().put(*self.others.pop(key))


def test_a_mark_that_came_over_another_runs_payload_is_put_right(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    driver = Between(os.fsencode(tmp_path / "store"))
    content, other = whisper_file(1), whisper_file(2)
    payload, mark = f"m/{STAMP}.wsp.gz", f"m/{STAMP}.sha1"
    driver.others = {payload: (payload, gzip.compress(other))}  # between our payload and our mark
    with pytest.raises(Exists):
        backups.store(driver, "m/", STAMP, "gz", gzip.compress(content), sha1(content).decode())
    assert whole_backups(driver) == {"m": {sha1(other)}}
    driver.delete([payload, mark])
    driver.others = {mark: (mark, sha1(other))}  # the other's mark came last: it is the other that puts it right
    with pytest.raises(Exists):
        backups.store(driver, "m/", STAMP, "gz", gzip.compress(content), sha1(content).decode())
    driver.delete([payload, mark])
    driver.others = {mark: (f"m/{STAMP}.wsp.sz", compressor("sz")(other))}
    with pytest.raises(Exists):
        backups.store(driver, "m/", STAMP, "gz", gzip.compress(content), sha1(content).decode())
    assert whole_backups(driver) == {"m": {sha1(other)}}
    assert [found.key for found in driver.list("")] == [mark, f"m/{STAMP}.wsp.sz"]


MERGING = """
import os, unicodedata
from whisperbackup.storage import disk
class Merging(disk.Disk):
    def _path(self, key):
        return super()._path(unicodedata.normalize("NFC", key))
    def list(self, prefix):
        return super().list(unicodedata.normalize("NFC", prefix))
def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    return Merging(os.fsencode(bucket))
"""


def test_a_store_that_merges_unicode_forms_is_noticed(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(program, monkeypatch, MERGING)
    program.write("plain")
    for number, name in enumerate(["caf\u00e9", "cafe\u0301"]):
        program.write(name, number)
    program("backup", "shelf", "-f", "1")
    for path in program.store.rglob("20*"):
        path.rename(path.with_name("2020" + path.name[4:]))  # last night's
    said = program("backup", "shelf", "--nostate", status=3)
    assert "merges the Unicode forms" in said
    assert "1 failed" in said


def test_a_payload_whose_codec_this_machine_lacks_takes_no_backup_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its SHA-1 cannot be computed here, so the mark stays that of the payload that can be read."""
    (tmp_path / "store").mkdir()
    driver = Between(os.fsencode(tmp_path / "store"))
    content, other = whisper_file(1), whisper_file(2)
    mark = f"m/{STAMP}.sha1"
    driver.others = {mark: (f"m/{STAMP}.wsp.zst", compressor("zst")(other))}
    monkeypatch.setattr(compression, "installed", lambda: ("gz",))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    backups.store(driver, "m/", STAMP, "gz", gzip.compress(content), sha1(content).decode())
    monkeypatch.undo()
    assert whole_backups(driver) == {"m": {sha1(content)}}
