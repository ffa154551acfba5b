"""Find the storage paths that hold backups, with a few short listings however large the bucket is.

Each listing reads one page at most; the next one starts after all keys of the storage path just found.  A storage path
inside another one is not looked for.
"""

from __future__ import annotations

import collections
import itertools
from typing import NamedTuple

from whisperbackup.repository.catalog import storage_path_of
from whisperbackup.storage.base import Driver, StartAfterUnsupported, list_range

MAX_PATHS = 50
MAX_LOOKS = 100
KEYS = 1000  # read in one listing: a page
AFTER_STAMPS = ":"
MANY = 5  # pages of unrecognized keys in one top-level folder, after which the rest of it is skipped


class StoragePaths(NamedTuple):
    """Storage paths, ascending, each empty or ending in a slash; and whether there are surely no others."""

    paths: tuple[str, ...]
    is_complete: bool

    def __str__(self) -> str:
        """As options of a command line."""
        named = ", ".join(path.removesuffix("/") or path for path in self.paths if path)
        unnamed = "those without --storage-path" if "" in self.paths else ""
        parts = [f"--storage-path {named}" if named else "", unnamed, "" if self.is_complete else "maybe others"]
        nodes = f"{len(self.paths)} node{'s' * (len(self.paths) != 1)}"
        return f"backups of {nodes}: " + ", and ".join(part for part in parts if part)


def find(driver: Driver, prefix: str, own: str | None = None) -> StoragePaths:
    """The storage paths of the keys that begin with `prefix`; the search ends once `own` is found.

    Raises StorageError.
    """
    paths: dict[str, None] = {}
    strangers: collections.Counter[str] = collections.Counter()
    after = ""
    for _ in range(MAX_LOOKS):
        try:
            key, path = _look(driver, prefix, after)
        except StartAfterUnsupported:
            break
        if not key:
            return StoragePaths(tuple(paths), not strangers)
        if path is None:  # a page of unrecognized objects
            top, slash, _ = key.removeprefix(prefix).partition("/")
            strangers[top] += 1
            folder = prefix + top + slash if strangers[top] > MANY else key[: key.rfind("/") + 1]
            after = _behind(folder) if slash else key
            continue
        paths[path] = None
        if path == own or len(paths) == MAX_PATHS or not path.startswith(own or ""):
            break
        # Metrics without a storage path may be anywhere in the bucket: skip them one by one, but not a storage path of
        # the same name, whose metrics mostly sort after the digits of stamps.
        after = _behind(path) if path else key[: key.index("/") + 1] + AFTER_STAMPS
    return StoragePaths(tuple(paths), False)


def has_ours(driver: Driver, prefix: str) -> bool:
    """Whether there is a key of this tool in the first page of those that begin with `prefix`.  Raises StorageError."""
    return _look(driver, prefix, "")[1] is not None


def _look(driver: Driver, prefix: str, after: str) -> tuple[str, str | None]:
    """The first key after `after` that this tool wrote, and its storage path; else the last key that was read."""
    key = ""
    for found in itertools.islice(list_range(driver, prefix, after, ""), KEYS):
        key = found.key
        path = storage_path_of(key)
        if path is not None:
            return key, path
    return key, None


def _behind(folder: str) -> str:
    """Greater than every key that begins with `folder`, which ends in a slash, and less than most others."""
    return folder[:-1] + chr(ord("/") + 1)
