"""backup --no-delete with credentials that may not delete, and prune with others, from another machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.parse
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import servers
from conftest import Program, add_point, install_driver
from servers import TroubleProxy, refuse_deletions
from test_purge import age
from test_stores import connect, stored

from whisperbackup.repository.stamps import stamp_of

PROCESSES = 2
NOW = datetime.now(UTC)
DENIED = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"
OLD = ("2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00", "2026-01-03T00:00:00+00:00")


def days_ago(days: float) -> str:
    return stamp_of(NOW - timedelta(days=days))


def put(program: Program, metric: str, *ends: str) -> None:
    """Objects of a metric in the directory store: `stamp` makes a backup, anything with a further dot itself."""
    folder = program.store / metric
    folder.mkdir(parents=True, exist_ok=True)
    for end in ends:
        if end.endswith("+00:00"):
            (folder / f"{end}.sha1").write_text(f"{hash(end) & (1 << 160) - 1:040x}")
            (folder / f"{end}.wsp.gz").write_bytes(b"x" * 9)
        else:
            (folder / end).touch()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3-rclone", pytest.param("s3-swift", marks=pytest.mark.soak), "swift-v1", "gcs"])
def test_a_node_that_may_not_delete_backs_up_and_prune_cleans_up(program: Program, kind: str) -> None:
    store = servers.store(kind)
    with TroubleProxy(store.port) as proxy:
        proxy.lie = refuse_deletions
        everywhere = connect(program, store)
        as_node = connect(program, store.through(proxy.port))
        files = {name: program.write(name) for name in ("goes", "stays", "returns")}
        for value in range(3):
            as_node("backup", "--no-delete", "-r", "1", "-x", "0")
            add_point(files["stays"], float(value))
        for name in ("goes", "returns"):
            files[name].rename(program.home / name)
        assert "2 marked missing" in as_node("backup", "--no-delete", "-r", "1", "-x", "0")
        (program.home / "returns").rename(files["returns"])
        said = as_node("backup", "--no-delete", "-r", "1", "-x", "0")
        assert "1 backed up" in said
        assert "1 came back" in said
        assert not proxy.troubles, "a request to delete was sent"
        before = stored(program, store)

        add_point(files["stays"], 9.0)
        said = as_node("backup", "-r", "1", "-x", "-1", status=3)
        assert "run backup with --no-delete" in said
        assert proxy.troubles
        assert before.keys() < stored(program, store).keys()

        as_node("prune", "-r", "1", "-x", "0", "--protected-ok", status=3)
        connect(program, store)
        assert "1 purged" in everywhere("prune", "-r", "1", "-x", "0")
        left = sorted(key.partition("/")[0] for key in stored(program, store))
        assert left == ["returns"] * 4 + ["stays"] * 2
        assert "2 good" in everywhere("verify")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["s3-rclone", pytest.param("s3-swift", marks=pytest.mark.soak), "swift-v1", "gcs"])
def test_every_store_lists_which_tombstones_remember(program: Program, kind: str) -> None:
    run = connect(program, servers.store(kind))
    for number in range(12):
        program.write(f"old.m{number}")
    run("backup", "--no-delete")
    (program.prefix / "old").rename(program.home / "old")
    for number in range(20):
        program.write(f"new.m{number}")
    for _ in range(2):
        assert "12 of which disappeared together" in run("backup", "--no-delete")
    time.sleep(1)  # a tombstone may be stamped a second after its metric's backup
    assert "12 metrics that are due for deletion disappeared together" in run("prune", "-x", "0", status=3)
    run("prune", "-x", "0", "--purge-anyway")


@pytest.mark.servers
@pytest.mark.slow
def test_a_node_reaches_nothing_outside_of_its_own_storage_path(program: Program) -> None:
    """With the policy of docs/security.md: one prefix a node, and no right to delete."""
    store = servers.store("s3-rclone")

    def confine(head: bytes) -> bytes | None:
        target = urllib.parse.urlsplit(head.split(b" ", 2)[1])
        key = target.path.partition(b"/")[2].partition(b"/")[2]
        if not key:
            key = dict(urllib.parse.parse_qsl(target.query)).get(b"prefix", b"")
        return refuse_deletions(head) if key.startswith(b"node1/") else DENIED

    program.write("servers.web1.cpu")
    owner = connect(program, store)
    owner("backup", "--storage-path", "node2")
    with TroubleProxy(store.port) as proxy:
        proxy.lie = confine
        as_node = connect(program, store.through(proxy.port))
        path = ("--storage-path", "node1")
        assert "1 backed up" in as_node("backup", "--no-delete", *path)
        add_point(program.prefix / "servers/web1/cpu.wsp", 1.0)
        assert "1 recorded" in as_node("increment", "--no-delete", *path)
        assert "2 good" in as_node("verify", *path)
        assert "node1/" in as_node("list", "--summary", *path)
        assert "1 already whole" in as_node("restore", *path)
        assert "fail" not in as_node("doctor", "--no-delete", *path)
        for command in ("list", "restore", "verify", "increment"):
            assert "403 Forbidden" in as_node(command, "--storage-path", "node2", status=1)


@pytest.mark.servers
@pytest.mark.slow
def test_a_store_that_replaces_nothing_without_the_right_to_delete(program: Program) -> None:
    """So Google Cloud Storage does, and every store under a retention policy."""
    store = servers.store("s3-rclone")
    stored_keys: set[bytes] = set()

    def replace_nothing(head: bytes) -> bytes | None:
        method, key = head.split(b" ", 2)[:2]
        if method != b"PUT" or key.count(b"/") < 2:
            return refuse_deletions(head)
        if key not in stored_keys:
            stored_keys.add(key)
            return None
        status = b"412 Precondition Failed" if b"if-none-match" in head.lower() else b"403 Forbidden"
        return b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n"

    path = program.write("a.b")
    with TroubleProxy(store.port) as proxy:
        proxy.lie = replace_nothing
        as_node = connect(program, store.through(proxy.port))
        as_node("backup", "--no-delete")
        add_point(path, 1.0)
        assert "1 recorded" in as_node("increment", "--no-delete")
        add_point(path, 2.0)
        as_node("backup", "--no-delete")
        lines = [json.loads(line) for line in as_node("list", "--runs", "--json").splitlines() if line[:1] == "{"]
        assert [(line["command"], line["status"]) for line in lines] == [("backup", 0), ("increment", 0), ("backup", 0)]
        assert as_node("list", "--runs").count("no end") == 0
        assert "the last successful backup" in as_node("doctor", "--no-delete")
        connect(program, store)("prune", "-r", "1")
        assert "2 good" in as_node("verify")  # the increment as well


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_on_a_directory_another_user_may_own_what_was_stored(program: Program, machine: Path) -> None:
    path = program.write("a.b")
    program.store.mkdir(mode=0o777)
    other = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups",
             "--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]  # fmt: skip

    def as_node(*words: str, status: int = 0) -> str:
        what = ["--nolog", "--nolock", "--nostamp", "--nostate", "-r", "1", "-p", program.prefix, "-b", program.store]
        ran = subprocess.run(
            [*other, sys.executable, "-B", "-m", "whisperbackup", *what, "backup", "disk", *words],
            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )  # fmt: skip
        assert ran.returncode == status, ran.stderr
        for folder in (program.store, *program.store.rglob("*")):  # what the keeper's job does after each night
            os.chown(folder, 0, 0)
            folder.chmod(0o1777 if folder.is_dir() else 0o644)
        return ran.stderr

    program.store.chmod(0o1777)
    for folder in (program.home, *program.home.parents):
        if folder.stat().st_uid == 0 and not folder.stat().st_mode & 1:
            folder.chmod(folder.stat().st_mode | 0o011)
    as_node("--no-delete")
    add_point(path, 2.0)
    assert "2 objects not deleted" in as_node("--no-delete")
    add_point(path, 3.0)
    assert "run backup with --no-delete" in as_node(status=3)
    assert len(program.stamps("a.b")) == 3
    assert "2 removed" in program("prune", "disk", "-r", "1")
    assert len(program.stamps("a.b")) == 1


def test_prune_deletes_what_is_due_and_nothing_else(program: Program) -> None:
    put(program, "surplus", *OLD)
    put(program, "due", OLD[0], f"{days_ago(46)}.missing")
    put(program, "missing", OLD[0], f"{days_ago(44)}.missing")
    put(program, "back", f"{OLD[0]}.missing", OLD[1])
    put(program, "half", OLD[0], f"{OLD[1]}.wsp.gz", f"{days_ago(0.5)}.sha1")
    put(program, "foreign", "notes.txt")
    before = program.objects()
    said = program("prune", "disk", "-r", "2", "-n")
    assert "due: would be deleted" in said
    assert program.objects() == before
    said = program("prune", "disk", "-r", "2")
    assert "5 examined, 1 removed, 2 missing, 1 purged, 1 came back, 1 debris removed, 0 failed" in said
    gone = {f"surplus/{OLD[0]}.{end}" for end in ("sha1", "wsp.gz")}
    gone |= {key for key in before if key.startswith("due/")} | {f"back/{OLD[0]}.missing", f"half/{OLD[1]}.wsp.gz"}
    assert program.objects() == {key: body for key, body in before.items() if key not in gone}
    assert "0 removed, 1 missing, 0 purged, 0 failed" in program("prune", "disk", "-r", "2")


def test_prune_refuses_what_looks_like_a_mistake(program: Program) -> None:
    for number in range(20):
        put(program, f"m{number}", *OLD, *([f"{days_ago(46)}.missing"] if number < 10 else []))
    before = program.objects()
    assert "10 of 20 metrics in the store are due" in program("prune", "disk", "-r", "1", status=3)
    assert program.objects() == before
    assert "10 purged" in program("prune", "disk", "--purge-anyway")


def test_prune_warns_of_half_before_they_are_due(program: Program) -> None:
    for number in range(21):
        put(program, f"m{number}", OLD[0], *([f"{days_ago(44)}.missing"] if number < 11 else []))
    put(program, "due", OLD[0], f"{days_ago(46)}.missing")
    said = program("prune", "disk")
    assert "WARNING: 11 of 22 metrics in the store were missing from their tree; if that is a mistake" in said
    assert "1 purged" in said
    (program.store / f"m0/{days_ago(44)}.missing").unlink()
    assert "WARNING" not in program("prune", "disk", "-x", "-1")


def test_prune_heeds_tombstones_that_remember_what_disappeared_together(program: Program) -> None:
    """A wrong tree's own metrics are in the store as well."""
    remark = b"missing together with 12 of 12 metrics\n"

    def mark(stamp: str, before: str = "") -> None:
        for number in range(12):
            (program.store / f"old{number}/{before}.missing").unlink(missing_ok=True)
            (program.store / f"old{number}/{stamp}.missing").write_bytes(remark)

    for number in range(40):
        put(program, f"new{number}", *OLD)
    for number in range(12):
        put(program, f"old{number}", *OLD)
    put(program, "due", OLD[0], f"{days_ago(46)}.missing")
    mark(days_ago(44))
    for options in (["-n"], []):
        said = program("prune", "disk", "-r", "2", *options)
        assert "12 of 53 metrics in the store were missing from their tree, 12 of which disapp" in said
        assert "; if it is not, --purge-anyway deletes them then" in said
        assert "1 purged" in said
    mark(days_ago(46), days_ago(44))
    put(program, "other", OLD[0], f"{days_ago(46)}.missing")
    before = program.objects()
    for options in (["-n"], []):
        said = program("prune", "disk", "-r", "1", *options, status=3)
        assert "12 metrics that are due for deletion disappeared together" in said
        assert "40 removed" in said, "retention goes on"
        assert "1 purged" in said
    assert {key for key in before if key.startswith("old")} <= program.objects().keys()
    assert "3 purged" in program("prune", "disk", "-r", "1", "-m", "old1?", "-m", "old1", "-m", "new*")
    said = program("prune", "disk", "-r", "1")
    assert "9 purged" in said
    assert "WARNING" not in said


def test_prune_deletes_anyway_what_disappeared_together(program: Program) -> None:
    put(program, "stays", OLD[0])
    for number in range(10):
        put(program, f"old{number}", OLD[0])
        put(program, f"new{number}", OLD[0])
        (program.store / f"old{number}/{days_ago(46)}.missing").write_bytes(b"missing together\n")
    assert "10 metrics that are due for deletion disappeared together" in program("prune", "disk", status=3)
    said = program("prune", "disk", "--purge-anyway")
    assert "10 purged" in said
    assert "WARNING" not in said


def test_a_node_that_may_not_delete_remembers_for_prune_what_disappeared_together(program: Program) -> None:
    for number in range(12):
        program.write(f"old.m{number}")
    program("backup", "disk", "--no-delete")
    age(program, 100)
    (program.prefix / "old").rename(program.home / "old")
    for number in range(20):
        program.write(f"new.m{number}")
    for _ in range(2):
        assert "12 of which disappeared together" in program("backup", "disk", "--no-delete")
        assert "12 of which disappeared together" in program("prune", "disk")
    age(program, 46, "*.missing")
    before = program.objects()
    assert "12 metrics that are due for deletion disappeared together" in program("prune", "disk", status=3)
    assert program.objects() == before


def test_prune_names_the_storage_paths_where_nothing_matches(program: Program) -> None:
    put(program, "node1/a", *OLD)
    assert "--storage-path node1" in program("prune", "disk", "--storage-path", "node2", status=1)
    assert not program.stamp.exists()


UNSORTED = """
import os
from whisperbackup.storage import disk

class Driver(disk.Disk):
    def list(self, prefix):
        found = list(super().list(prefix))
        return iter(found[1:] + found[:1])

def open(bucket, create, arguments):
    return Driver(os.fsencode(bucket))
"""


def test_prune_and_list_believe_no_listing_out_of_order(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    install_driver(program, monkeypatch, UNSORTED)
    put(program, "a", *OLD)
    put(program, "b", *OLD, f"{days_ago(46)}.missing")
    before = program.objects()
    for command in (["prune", "-r", "1"], ["list"], ["list", "--summary"]):
        assert "does not sort its keys" in program(command[0], "shelf", *command[1:], status=1)
    assert program.objects() == before


REPEATING = """
import os
from whisperbackup.storage import disk

class Driver(disk.Disk):
    def list(self, prefix):
        for found in super().list(prefix):
            yield found
            yield found

def open(bucket, create, arguments):
    return Driver(os.fsencode(bucket))
"""


def test_a_store_that_lists_keys_twice_while_they_are_written_ends_no_run(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """rclone's S3, where two runs meet."""
    install_driver(program, monkeypatch, REPEATING)
    program.write("a")
    program("backup", "disk")
    program("increment", "disk")
    listed = {words: program(*words.split(), "disk") for words in ("list", "list --runs", "list --summary")}
    assert {words: program(*words.split(), "shelf") for words in listed} == listed
    assert ", 0 failed" in program("verify", "shelf")
    assert "1 unchanged" in program("backup", "shelf")


PROTECTING = """
import os
from whisperbackup.storage import disk
from whisperbackup.storage.base import NotDeleted

class Driver(disk.Disk):
    def delete(self, keys):
        keys = list(keys)
        stay = {key: os.environ["REASON"] for key in keys if key.startswith("locked/")}
        super().delete([key for key in keys if key not in stay])
        if stay:
            raise NotDeleted(f"{len(stay)} objects were not deleted", stay, {})

def open(bucket, create, arguments):
    return Driver(os.fsencode(bucket))
"""


@pytest.fixture
def protecting(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A store that refuses to delete two backups, and a tombstone's metric with them."""
    install_driver(program, monkeypatch, PROTECTING)
    program.environment["REASON"] = "Forbidden"
    put(program, "locked", *OLD[:2], f"{days_ago(46)}.missing")
    return program


def test_what_the_store_protects_is_named_or_with_an_option_only_counted(protecting: Program) -> None:
    put(protecting, "free", *OLD[:2])
    before = set(protecting.objects())
    said = protecting("prune", "shelf", "-r", "1", status=3)
    assert "1 removed, 1 missing, 0 purged, 4 protected, 1 failed" in said
    assert said.count("is protected: Forbidden") == 4
    assert before - set(protecting.objects()) == {f"free/{OLD[0]}.{end}" for end in ("sha1", "wsp.gz")}
    put(protecting, "free", OLD[0])
    assert "4 protected, 0 failed" in protecting("prune", "shelf", "-r", "1", "--protected-ok")


def test_a_store_that_refuses_everything_without_a_reason_is_a_failure(protecting: Program) -> None:
    assert "are these credentials allowed to delete?" in protecting("prune", "shelf", "--protected-ok", status=3)
    protecting.environment["REASON"] = "the object is under a retention policy"
    assert "0 failed" in protecting("prune", "shelf", "--protected-ok")
