"""Keys that are to go: gathered where they are found, deleted many at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whisperbackup.storage.base import Driver

KEYS_AT_ONCE = 1000  # what one request can name where the service is at its best


class Doomed(NamedTuple):
    """A key to delete, and the figure that is counted once it is gone (empty: none)."""

    key: str
    figure: str = ""


class Deletion(NamedTuple):
    """A job: keys that go together; `name` stands for them in an error."""

    name: str
    doomed: list[Doomed]


def doom(keys: Iterable[str], figure: str) -> list[Doomed]:
    """`keys` in their order, as one thing that is counted when the last of them is gone."""
    listed = list(keys)
    return [Doomed(key, figure if number == len(listed) else "") for number, key in enumerate(listed, 1)]


def portions(surplus: list[Doomed], at_least: int = 1) -> Iterator[Deletion]:
    """Empties `surplus`, a request's worth at a time, for as long as it holds `at_least` that many keys."""
    while len(surplus) >= at_least:
        portion, surplus[:KEYS_AT_ONCE] = surplus[:KEYS_AT_ONCE], []
        yield Deletion(f"deleting {len(portion)} objects", portion)


def carry_out(deletion: Deletion, driver: Driver) -> dict[str, int]:
    """Delete, and the figures to count for it.  Raises StorageError."""
    driver.delete([doomed.key for doomed in deletion.doomed])
    return dict(Counter(doomed.figure for doomed in deletion.doomed if doomed.figure))
