"""Memory does not follow the tree, also where the store lists nothing of it."""

from __future__ import annotations

import itertools
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_windows import Shelf

from whisperbackup.commands.pipeline import tree_and_store
from whisperbackup.options import parse
from whisperbackup.repository.catalog import Catalog
from whisperbackup.repository.join import join
from whisperbackup.repository.state import Record, State
from whisperbackup.storage.base import StartAfterUnsupported, StoredObject
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import LocalFile, Skipped

pytestmark = pytest.mark.slow


class Counting(Shelf):
    """A ranged store that counts what it is asked for."""

    asked = 0

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        self.asked += 1
        return super().list_range(prefix, after, until)


class Deaf(Counting):
    """A service that does not know where to begin."""

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        for number, found in enumerate(super().list_range(prefix, "", "")):
            if after and not number:
                raise StartAfterUnsupported("it is deaf")
            yield found


def names(count: int) -> Iterator[LocalFile | Skipped]:
    """A walk that holds nothing itself."""
    for number in range(count):
        yield LocalFile(f"servers.host{number:07}.cpu/", b"/somewhere")


def peak_of(count: int, driver: Shelf, state: State) -> int:
    """The most bytes that a pass over so many metrics and `driver` takes."""
    tracemalloc.start()
    pairs = join(names(count), Catalog(driver, "", select(["*"]), state.split_keys()))
    assert sum(1 for pair in pairs if isinstance(pair.local, LocalFile)) == count
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("has_state", [False, True])
@pytest.mark.parametrize("stored", [[], ["a/2026-11-01T00:00:00+00:00.sha1", "z/2026-11-01T00:00:00+00:00.sha1"]])
@pytest.mark.parametrize("kind", [Counting, Deaf])
def test_a_long_stretch_that_is_not_in_the_store_costs_no_memory(
    tmp_path: Path, kind: type[Counting], stored: list[str], has_state: bool
) -> None:
    known = State(str(tmp_path / "state"), (), select(["*"]))
    if has_state:
        for local in names(20_000):
            known.note(Record(local.key, "1 2 3 4", "0" * 40, "2026-11-01T00:00:00+00:00", ""))
        known.write()
    small, large = (
        peak_of(count, kind(stored), State(str(tmp_path / "state"), (), select(["*"]))) for count in (1_000, 20_000)
    )
    assert large < small + 300_000, (small, large)


def test_an_empty_store_is_listed_once(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for number in range(500):
        (tmp_path / f"tree/m{number}.wsp").touch()
    options = parse(["-p", str(tmp_path / "tree"), "-b", str(tmp_path / "store"), "backup", "disk"])
    store = Counting([])
    _, pairs = tree_and_store(options, store, State(None, (), options.selection))
    assert len(list(pairs)) == 500
    assert store.asked == 1


def test_split_keys_are_spread_over_what_the_state_file_knows(tmp_path: Path) -> None:
    path = str(tmp_path / "state")
    known = State(path, (), select(["*"]))
    keys = [local.key for local in names(5_000)]
    for key in keys:
        known.note(Record(key, "1 2 3 4", "0" * 40, "2026-11-01T00:00:00+00:00", ""))
    known.write()
    assert list(State(path, (), select(["*"])).split_keys()) == keys[50::50]
    assert list(State(path, ("another store",), select(["*"])).split_keys()) == []
    assert list(State(None, (), select(["*"])).split_keys()) == []
    os.truncate(path, os.path.getsize(path) * 2 // 3)
    cut = list(State(path, (), select(["*"])).split_keys())
    assert cut == keys[50::50][: len(cut)]
    shelf = Counting([f"{key}2026-11-01T00:00:00+00:00.{end}" for key in keys for end in ("sha1", "wsp.gz")])
    found = [metric.key for metric in Catalog(shelf, "", select(["*"]), keys[50::50])]
    assert found == keys
    assert shelf.asked > 5
    for heads in (["servers.host00001*"], ["servers.host00001*", "servers.host00004*"], [keys[7][:-1]]):
        wanted = select(heads)
        some = [metric.key for metric in Catalog(shelf, "", wanted, itertools.chain(keys[50::50], ["", "zz"]))]
        assert some == [key for key in keys if key[:-1] in wanted]
