"""A bucket of several nodes, asked about the wrong one: the storage paths are named, in a few requests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import servers
from conftest import Program, install_driver
from hypothesis import given
from hypothesis import strategies as st
from servers import TroubleProxy
from test_storage import open_store, put_all
from test_stores import connect

from whisperbackup.repository import storage_paths
from whisperbackup.repository.storage_paths import StoragePaths, find
from whisperbackup.storage.base import StoredObject
from whisperbackup.storage.noop import Noop

pytestmark = pytest.mark.slow

STAMP = "2026-11-24T02:12:00+00:00"
COMMANDS = [("list",), ("list", "--json"), ("list", "--debris"), ("restore",), ("verify",), ("verify", "--all")]


def objects(path: str, metric: str) -> dict[str, bytes]:
    return {f"{path}{metric}/{STAMP}.{end}": b"" for end in ("sha1", "wsp.gz")}


@pytest.fixture
def two_nodes(program: Program) -> Program:
    for number in range(4):
        program.write(f"servers.web{number}.cpu")
    for node in ("node1", "node2"):
        program("backup", "disk", "--storage-path", node)
    return program


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_storage_paths_that_hold_backups_are_named(two_nodes: Program, command: tuple[str, ...]) -> None:
    name, *options = command
    for words in ([], ["--storage-path", "node3"], ["--storage-path", "node"], ["-m", "no*"]):
        said = two_nodes(name, "disk", *options, *words, status=1)
        assert "it holds backups of 2 nodes: --storage-path node1, node2" in said, words
        assert "unrecognized objects" not in said


@pytest.mark.parametrize("command", [("purge",), ("purge", "-x", "0"), ("verify", "--tree")], ids=" ".join)
def test_a_tree_is_not_held_against_another_nodes_storage_path(two_nodes: Program, command: tuple[str, ...]) -> None:
    """Nothing examined, nothing failed: that was a success, and touched the stamp of the nightly backup."""
    name, *options = command
    two_nodes.stamp.unlink()
    before = two_nodes.objects()
    said = two_nodes(name, "disk", *options, "--storage-path", "node3", status=1)
    assert "it holds backups of 2 nodes: --storage-path node1, node2" in said
    assert not two_nodes.stamp.exists()
    assert two_nodes.objects() == before
    two_nodes(name, "disk", *options, "--storage-path", "node1")


def test_purging_what_is_not_in_the_store_any_more_is_no_failure(two_nodes: Program) -> None:
    two_nodes("purge", "disk", "--storage-path", "node1", "-m", "gone.*")
    two_nodes("purge", "disk", "-b", f"{two_nodes.prefix}-empty", status=1)
    (two_nodes.home / "empty").mkdir()
    two_nodes("purge", "disk", "-b", two_nodes.home / "empty")


def test_a_storage_path_that_holds_backups_is_not_blamed(two_nodes: Program) -> None:
    said = two_nodes("list", "disk", "--storage-path", "node1", "-m", "nothing", status=1)
    assert "backups of" not in said
    assert "below the storage path 'node1/' matches" in said
    assert "4 metrics" in two_nodes("list", "disk", "--storage-path", "node1")


def test_metrics_without_a_storage_path_beside_nodes_are_listed(two_nodes: Program) -> None:
    two_nodes("backup", "disk", "-m", "servers.web1.*")
    assert "1 metrics, 1 backups" in two_nodes("list", "disk")
    assert "1 good" in two_nodes("verify", "disk")
    said = two_nodes("list", "disk", "--storage-path", "node3", status=1)
    assert "backups of 3 nodes: --storage-path node1, node2, and those without --storage-path" in said


@pytest.mark.parametrize("kind", ["s3-rclone", "swift-v1", "gcs"])
def test_a_few_requests_find_the_nodes_in_a_bucket(program: Program, kind: str) -> None:
    store = servers.store(kind)
    connect(program, store)
    driver = open_store(store, program.bucket, create=True)
    for node in ("a/b/node1/", "a/b/node2/", "c/"):
        put_all(driver, {key: body for number in range(20) for key, body in objects(node, f"m{number}").items()})
    driver.close()
    for command, *options in (COMMANDS[0], COMMANDS[3], COMMANDS[4]):
        with TroubleProxy(store.port) as proxy:
            run = connect(program, store.through(proxy.port))
            said = run(command, *options, status=1)
        assert "it holds backups of 3 nodes: --storage-path a/b/node1, a/b/node2, c" in said
        assert proxy.requests["LIST"] <= 16, proxy.requests


ENDLESS = """
import os
from whisperbackup.storage.base import StoredObject
from whisperbackup.storage.noop import Noop

class Shelf(Noop):
    is_ranged = True
    def list(self, prefix):
        return self.list_range(prefix, "", "")
    def list_range(self, prefix, after, until):
        os.write(self.log, b"look\\n")
        for node in ("node1/", "node2/", "node3/"):
            if node > after and node.startswith(prefix):
                for number in range(10 ** 9):
                    yield StoredObject(f"{node}m{number:09}/2026-11-24T02:12:00+00:00.sha1", 40, None)

def open(bucket, create, arguments):
    shelf = Shelf()
    shelf.log = os.open(bucket, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    return shelf
"""


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_bucket_of_any_size_is_not_listed_to_find_its_nodes(
    program: Program, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """A ranged driver with three billion objects."""
    install_driver(program, monkeypatch, ENDLESS)
    name, *options = command
    said = program(name, "shelf", *options, status=1)
    assert "it holds backups of 3 nodes: --storage-path node1, node2, node3" in said
    assert len(program.store.read_text().splitlines()) < 12


def test_a_directory_is_not_entered_where_it_holds_nothing_new(two_nodes: Program) -> None:
    """Folders of the first node that cannot be read hinder nobody who is told of the second."""
    driver = open_store(servers.store("disk"), str(two_nodes.store))
    assert find(driver, "") == StoragePaths(("node1/", "node2/"), True)
    listed = [found.key for found in driver.list_range("", "node10", "")]  # type: ignore[attr-defined]
    assert listed == [found.key for found in driver.list("node2/")]


class Shelf(Noop):
    """Keys in memory; counts what is read."""

    is_ranged = True

    def __init__(self, keys: list[str]) -> None:
        self.keys, self.looks, self.served = sorted(keys), 0, 0

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        self.looks += 1
        for key in self.keys:
            if key.startswith(prefix) and key > after:
                self.served += 1
                yield StoredObject(key, 1, None)


def test_nodes_are_found_behind_and_between_other_peoples_objects() -> None:
    keys = [key for path in ("a/b/", "n/", "z/") for number in range(5000) for key in objects(path, f"m{number}")]
    keys += [f"logs/{day}/{number}" for day in range(300) for number in range(100)]
    keys += [f"file{number}" for number in range(3000)] + ["n/README", "x"]
    shelf = Shelf(keys)
    found = find(shelf, "")
    assert found.paths == ("a/b/", "n/", "z/")
    assert shelf.looks < 20
    assert shelf.served < 15_000


def test_a_storage_path_beside_a_metric_of_its_name_is_found() -> None:
    shelf = Shelf([*objects("", "a"), *objects("a/", "m"), *objects("a/", "n"), *objects("", "b")])
    assert str(find(shelf, "")) == "backups of 2 nodes: --storage-path a, and those without --storage-path"
    assert find(shelf, "a/", "a/") == StoragePaths(("",), False)  # no reason to call it absent


def test_looks_are_bounded_and_paths_that_are_not_named_admitted() -> None:
    shelf = Shelf([key for number in range(500) for key in objects(f"n{number:03}/", "m")])
    found = find(shelf, "")
    assert len(found.paths) == storage_paths.MAX_PATHS
    assert str(found).endswith("n049, and maybe others")
    shelf = Shelf([key for number in range(500) for key in objects("", f"m{number:03}")])
    assert str(find(shelf, "")) == "backups of 1 node: those without --storage-path, and maybe others"
    assert shelf.looks == storage_paths.MAX_LOOKS


def test_a_storage_path_is_shown_as_it_is_given() -> None:
    assert str(StoragePaths(("/", "a b/", "n/x/"), True)) == "backups of 3 nodes: --storage-path /, a b, n/x"


names = st.sampled_from(["a", "b.c", "node1", "x"])
paths = st.sampled_from(["", "n/", "n/o/", "node1/", "z/"])


@given(st.lists(st.tuples(paths, names), max_size=12), paths)
def test_a_storage_path_that_has_metrics_is_never_called_absent(held: list[tuple[str, str]], own: str) -> None:
    """Names that are both a metric's and a storage path's are the exception: nobody can tell them apart in time."""
    ambiguous = any(path.startswith(f"{other}{name}/") for path, _ in held for other, name in held)
    if ambiguous:
        return
    shelf = Shelf([key for path, name in held for key in objects(path, name)])
    found = find(shelf, own, own)
    if any(path == own for path, _ in held):
        assert own in found.paths or not found.is_complete
    elif found.is_complete:
        assert own not in found.paths


def test_a_metric_of_the_right_path_among_others_is_found(tmp_path: Path) -> None:
    shelf = Shelf([*objects("node1/", "a"), *objects("node2/", "a"), *objects("", "servers.x")])
    assert find(shelf, "", "").paths == ("node1/", "node2/", "")
