"""Sets of metrics as runs name them: keys ("servers.web1.cpu/"), and beginnings of keys for folders ("servers.web1.").

The empty beginning is everything.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator


def ancestors(key: str) -> Iterator[str]:
    """The folders that a key, or a folder, lies below: the widest first, itself not included."""
    if not key:
        return
    yield ""
    dot = key.find(".")
    while 0 <= dot < len(key) - 1:
        yield key[: dot + 1]
        dot = key.find(".", dot + 1)


def is_folder(entry: str) -> bool:
    """Whether it stands for all keys that begin with it."""
    return not entry.endswith("/")


class Names:
    """A set of metrics that was named so; quick for thousands of entries."""

    def __init__(self, entries: Iterable[str]) -> None:
        self.entries = frozenset(entries)
        self._sorted = sorted(self.entries)

    def cover(self, key: str) -> bool:
        """Whether `key` is in the set; of a folder, whether all of it is."""
        return key in self.entries or any(folder in self.entries for folder in ancestors(key))

    def touch(self, key: str) -> bool:
        """Whether `key` is in the set; of a folder, whether any of it is."""
        if self.cover(key):
            return True
        place = bisect.bisect_left(self._sorted, key)
        return is_folder(key) and place < len(self._sorted) and self._sorted[place].startswith(key)

    def __and__(self, other: Names) -> Names:
        """What is in both."""
        return Names(
            [entry for entry in self.entries if other.cover(entry)]
            + [entry for entry in other.entries if self.cover(entry)]
        )


class Folding:
    """Names keys that come in ascending order, by their folder where nothing else is in it.

    A pod that is gone has a hundred metrics, and a node hundreds of such pods.  Holds `limit` keys in memory.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._names: list[str] = []
        self._present = ""  # the last key that is not named
        self._folder = ""
        self._held: list[str] = []  # keys in that folder, where so far there is nothing else
        self._is_full = False

    def add(self, key: str) -> None:
        """Name `key`."""
        if self._folder and key.startswith(self._folder):
            if len(self._held) <= self._limit:
                self._held.append(key)
            return
        self._close()
        self._folder = _widest(key, self._present)
        self._held = [key]

    def leave(self, key: str) -> None:
        """Let nothing that is named hold `key`."""
        if self._folder and key.startswith(self._folder):
            self._is_full |= len(self._held) > self._limit
            for held in self._held:
                self._name(_widest(held, key))
            self._folder = ""
        else:
            self._close()
        self._present = key

    def names(self) -> list[str] | None:
        """All names; None if there are more than the limit."""
        self._close()
        return None if self._is_full else self._names

    def _close(self) -> None:
        if self._folder:
            self._name(self._folder)
        self._folder = ""

    def _name(self, name: str) -> None:
        if not self._names or self._names[-1] != name:
            self._is_full |= len(self._names) >= self._limit
            if not self._is_full:
                self._names.append(name)


def _widest(key: str, other: str) -> str:
    """The widest folder of `key` that does not hold `other`, not the whole tree; `key` itself if there is none."""
    return next((folder for folder in ancestors(key) if folder and not other.startswith(folder)), key)
