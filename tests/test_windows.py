"""A listing in windows is the listing, whatever the split keys; and it is faster where a service is slow."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

import pytest
from conftest import wait_for
from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.storage import windows
from whisperbackup.storage.base import StartAfterUnsupported, StorageError, StoredObject
from whisperbackup.storage.noop import Noop
from whisperbackup.storage.windows import list_in_windows


class Shelf(Noop):
    """A ranged driver over keys in memory, in pages as slow as `seconds` says."""

    is_ranged = True

    def __init__(self, keys: list[str], seconds: float = 0.0, breaks_at: str = "") -> None:
        self.keys, self.seconds, self.breaks_at = keys, seconds, breaks_at
        self.sizes: list[int] = []
        self.served = self.at_once = self.most_at_once = 0
        self.threads: set[threading.Thread] = set()

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return self.list_range(prefix, "", "")

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        found = [key for key in self.keys if key.startswith(prefix) and key > after and (not until or key <= until)]
        self.sizes.append(len(found))
        for number, key in enumerate(found):
            self.threads.add(threading.current_thread())
            if number % 1000 == 0:  # a request
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                time.sleep(self.seconds)
                self.at_once -= 1
            if key == self.breaks_at:
                raise StorageError("it broke")
            self.served += 1
            yield StoredObject(key, 1, None)


keys = st.sets(st.text(st.sampled_from("ab/."), min_size=1, max_size=4), max_size=40).map(sorted)


unsorted = st.lists(st.text(st.sampled_from("ab/."), max_size=4), max_size=40)


@given(keys=keys, split_keys=unsorted, prefix=st.sampled_from(["", "a", "b/"]), batch=st.integers(1, 3))
def test_windows_hold_every_key_once_and_in_order(
    keys: list[str], split_keys: list[str], prefix: str, batch: int
) -> None:
    before, windows.BATCH, windows.START_WIDTH = (windows.BATCH, windows.START_WIDTH), batch, 1
    try:
        listed = [found.key for found in list_in_windows(Shelf(keys), prefix, split_keys)]
    finally:
        windows.BATCH, windows.START_WIDTH = before
    assert listed == [key for key in keys if key.startswith(prefix)]


MANY = [f"m{number:06}" for number in range(20_000)]


def test_windows_are_listed_at_the_same_time() -> None:
    shelf = Shelf(MANY, seconds=0.05)
    assert [found.key for found in list_in_windows(shelf, "", MANY[::100])] == MANY
    assert shelf.most_at_once > windows.AT_ONCE / 2


@pytest.mark.parametrize("stride", [3, 50, 300])
def test_windows_are_as_large_as_they_should_be(stride: int) -> None:
    """Many windows are on their way when the size of one is known, and it says nothing about others' widths."""
    count = 100_000 if stride == 300 else 40_000
    shelf = Shelf([f"m{number:06}" for number in range(count)], seconds=0.001)
    assert sum(1 for _ in list_in_windows(shelf, "", shelf.keys[::stride])) == count
    later = shelf.sizes[len(shelf.sizes) // 4 : -1]
    assert sum(size > windows.MANY for size in later) <= len(later) / 10  # one may begin before the sizes are known
    assert statistics.median(later) >= min(windows.MANY // 2, stride * windows.MAX_WIDTH)


def test_what_waits_for_its_turn_is_bounded() -> None:
    shelf = Shelf([f"m{number:06}" for number in range(200_000)])
    listing = list_in_windows(shelf, "", ["m100000"])  # two windows, far too large
    next(listing)
    time.sleep(0.5)
    assert shelf.served < 2 * (windows.BATCHES + 2) * windows.BATCH
    listing.close()  # type: ignore[attr-defined]


def test_an_error_comes_where_it_belongs_and_no_thread_is_left() -> None:
    before = threading.active_count()
    shelf = Shelf(MANY, breaks_at=MANY[12_345])
    listing = list_in_windows(shelf, "", MANY[::100])
    keys = []
    with pytest.raises(StorageError, match="it broke"):
        for found in listing:
            keys.append(found.key)  # noqa: PERF401  (what came before the error counts)
    assert keys == MANY[: len(keys)]
    assert 12_345 - windows.BATCH <= len(keys) <= 12_345
    wait_for(lambda: threading.active_count() <= before)


def test_a_service_that_takes_no_notice_of_a_start_is_listed_as_a_whole() -> None:
    class Deaf(Shelf):
        def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
            for found in super().list_range(prefix, "", until):
                if after and found.key <= after:
                    raise StartAfterUnsupported("it is deaf")
                yield found

    assert [found.key for found in list_in_windows(Deaf(MANY), "", MANY[::100])] == MANY


def test_a_listing_that_is_left_early_leaves_no_thread() -> None:
    before = threading.active_count()
    listing = list_in_windows(Shelf(MANY, seconds=0.01), "", MANY[::100])
    next(listing)
    listing.close()  # type: ignore[attr-defined]
    wait_for(lambda: threading.active_count() <= before)


def test_a_hundred_windows_are_listed_by_the_same_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windows, "START_WIDTH", 1)
    monkeypatch.setattr(windows, "MAX_WIDTH", 1)
    names = [f"k{number:03}" for number in range(100)]
    shelf = Shelf(names, 0.001)
    assert [found.key for found in list_in_windows(shelf, "", names)] == names
    assert len(shelf.threads) == windows.AT_ONCE
    wait_for(lambda: not any(thread.is_alive() for thread in shelf.threads))
