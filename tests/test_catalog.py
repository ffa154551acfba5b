"""The store's listing read as metrics, from a generator that lists what a store would."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.repository.catalog import Catalog, Metric, Orphan, UnsortedListing, newest_at
from whisperbackup.repository.join import Pair, join
from whisperbackup.repository.stamps import next_stamp
from whisperbackup.storage.base import StoredObject
from whisperbackup.storage.noop import Noop
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import LocalFile, Skipped

A, B, C = (f"2026-11-2{day}T00:00:00+00:00" for day in (1, 2, 3))


class Listing(Noop):
    """A store of these keys, which remembers what it was asked for."""

    def __init__(self, keys: list[str]) -> None:
        self.keys = keys
        self.asked: list[str] = []

    def list(self, prefix: str) -> Iterator[StoredObject]:
        self.asked.append(prefix)
        return (StoredObject(key, 7, None) for key in self.keys if key.startswith(prefix))


def read(keys: list[str], path: str = "", globs: str = "*") -> tuple[list[Metric], Catalog]:
    catalog = Catalog(Listing(keys), path, select([globs]))
    return list(catalog), catalog


def test_backups_debris_tombstones_and_foreign_keys_are_told_apart() -> None:
    metrics, catalog = read(
        [
            "README",
            *(f"a.b/{end}" for end in (f"{A}.sha1", f"{A}.wsp.gz", f"{B}.wsp.gz", f"{C}.missing", f"{C}.sha1")),
            *("a.b/notes", "a.b/x/y"),
            *(f"c/{A}.{end}" for end in ("sha1", "wsp.sz", "wsp.zst")),
            *(f"d/{end}" for end in (f"{A}.recreated", f"{A}.sha1", f"{A}.wsp.gz")),
            *(f"d/{end}" for end in (f"{B}.recreated", f"{C}.recreated", f"{C}.wsp.gz")),
        ]
    )
    assert [metric.name for metric in metrics] == ["a.b", "c", "d"]
    first, second, third = metrics
    assert [backup.stamp for backup in first.backups] == [A]
    assert [(orphan.stamp, orphan.suffixes) for orphan in first.orphans] == [(B, (f"{B}.wsp.gz",)), (C, (f"{C}.sha1",))]
    assert first.tombstones == (C,)
    assert first.last_stamp == C
    assert [payload.codec for payload in second.backups[0].payloads] == ["sz", "zst"]
    assert [backup.is_recreated for metric in metrics for backup in metric.backups] == [False, False, True]
    assert third.backups[0].suffixes() == [f"{A}.sha1", f"{A}.wsp.gz", f"{A}.recreated"]
    halves = [(B, (f"{B}.recreated",)), (C, (f"{C}.recreated", f"{C}.wsp.gz"))]
    assert [(orphan.stamp, orphan.suffixes) for orphan in third.orphans] == halves
    assert catalog.foreign == 3


@pytest.mark.parametrize(
    ("sizes", "newest", "is_one_of_many"),
    [((7, 0), A, False), ((0, 7), A, True), ((7, 7), A, True), ((0, 0), A, False), ((0, 7), "2026-11-24", False)],
)
def test_the_newest_tombstone_says_whether_many_disappeared_together(
    sizes: tuple[int, int], newest: str, is_one_of_many: bool
) -> None:
    backup = newest + A[len(newest) :]
    objects = [StoredObject(f"a/{backup}.{end}", 7, None) for end in ("sha1", "wsp.gz")]
    objects += [StoredObject(f"a/{stamp}.missing", size, None) for stamp, size in zip((B, C), sizes, strict=True)]
    listing = Listing([])
    listing.list = lambda prefix: iter(sorted(objects))  # type: ignore[method-assign]
    (metric,) = Catalog(listing, "", select(["*"]))
    assert metric.tombstones == (B, C)
    assert metric.left_with_many == is_one_of_many


def test_a_metric_of_which_only_a_temporary_file_is_left_is_no_more_than_that() -> None:
    temporary = f".whisper-backup-{A}-0123abcdef"
    (metric,), catalog = read([f"a/{temporary}"])
    assert metric == Metric("a", (), (), (Orphan(A, (temporary,), 7),), "")
    assert catalog.foreign == 0


def test_foreign_keys_below_one_name_are_not_gathered() -> None:
    import tracemalloc

    listing = Listing([])
    listing.list = lambda prefix: (StoredObject(f"logs/{n:07}", 7, None) for n in range(100_000))  # type: ignore[method-assign]
    catalog = Catalog(listing, "", select(["*"]))
    tracemalloc.start()
    assert list(catalog) == []
    assert tracemalloc.get_traced_memory()[1] < 500_000
    tracemalloc.stop()
    assert catalog.foreign == 100_000


def test_keys_with_a_leading_slash_are_counted_and_reached_by_the_storage_path() -> None:
    keys = [f"/a.b/{A}.sha1", f"/a.b/{A}.wsp.gz"]
    metrics, catalog = read(keys)
    assert (metrics, catalog.foreign, catalog.rooted) == ([], 2, 2)
    assert [metric.name for metric in read(keys, "/")[0]] == ["a.b"]


def test_unsafe_names_are_foreign() -> None:
    metrics, catalog = read([f"a.%2E%2E.b/{A}.sha1", f"a..b/{A}.sha1"])
    assert (metrics, catalog.foreign) == ([], 2)


def test_only_the_literal_prefixes_are_listed() -> None:
    listing = Listing([f"p/a.b/{A}.sha1", f"p/a.bc/{A}.sha1", f"p/z/{A}.sha1"])
    metrics = list(Catalog(listing, "p/", select(["a.b", "z*"])))
    assert [metric.name for metric in metrics] == ["a.b", "z"]
    assert listing.asked == ["p/a.b/", "p/z"]


@pytest.mark.parametrize("keys", [["b/x", "a/x"], ["a/x", "a/x"]])
def test_a_listing_out_of_order_ends_the_run(keys: list[str]) -> None:
    with pytest.raises(UnsortedListing, match="does not sort"):
        read(keys)


def test_newest_at_a_date() -> None:
    (metric,), _ = read([f"a/{stamp}.{end}" for stamp in (A, B, C) for end in ("sha1", "wsp.gz")])
    assert [backup.stamp for backup in newest_at(metric, None)] == [C, B, A]
    assert [backup.stamp for backup in newest_at(metric, B)] == [B, A]
    assert newest_at(metric, "2026-11-20T00:00:00+00:00") == []


def test_a_stamp_is_always_later_than_the_last() -> None:
    now = datetime(2026, 11, 22, tzinfo=UTC)
    assert next_stamp(now, "") == B
    assert next_stamp(now, A) == B
    assert next_stamp(now, B) == "2026-11-22T00:00:01+00:00"
    assert next_stamp(now, C) == "2026-11-23T00:00:01+00:00"
    with pytest.raises(ValueError, match="9999"):
        next_stamp(now, "9999-12-31T23:59:59+00:00")


names = st.sets(st.text(st.sampled_from("ab.-%"), min_size=1, max_size=4), max_size=8)


@given(names, names, st.sets(st.sampled_from(["a.", "b.", "a.b.", "a/", "ab/"]), max_size=3))
def test_join_pairs_every_metric_once_and_knows_what_is_unseen(
    here: set[str], there: set[str], covers: set[str]
) -> None:
    here = {name for name in here if not any((name + "/").startswith(cover) for cover in covers)}
    covers = {c for c in covers if not any(c != o and c.startswith(o) for o in covers)}
    walk: list[LocalFile | Skipped] = [LocalFile(name + "/", b"") for name in here]
    walk += [Skipped(cover, b"", "", False) for cover in covers]
    walk.sort(key=lambda item: item.key)
    catalog = [Metric(name, (), (), (), "") for name in sorted(there, key=lambda name: name + "/")]
    pairs = list(join(walk, catalog))
    assert [pair.metric for pair in pairs if pair.metric] == catalog
    assert [pair.local for pair in pairs if isinstance(pair.local, LocalFile)] == [
        i for i in walk if isinstance(i, LocalFile)
    ]
    for local, metric in pairs:
        if metric is not None:
            covered = [cover for cover in covers if metric.key.startswith(cover)]
            if covered:
                assert isinstance(local, Skipped)
            elif metric.name in here:
                assert local == LocalFile(metric.key, b"")
            else:
                assert local is None
    assert Pair(None, None) not in pairs
