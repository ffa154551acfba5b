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
