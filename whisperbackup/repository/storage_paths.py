"""The storage paths that hold backups, found in a few looks however large the bucket is.

A look is the beginning of a listing, a page at most; the next one begins behind everything that the path just found
holds.  A path that lies in another one is not looked for.
"""

from __future__ import annotations

import collections
import itertools
from typing import NamedTuple

from whisperbackup.repository.catalog import storage_path_of
from whisperbackup.storage.base import Driver, StartAfterUnsupported, list_range

MAX_PATHS = 50
MAX_LOOKS = 100
KEYS = 1000  # that one look reads, as many as a page has
MANY = 5  # looks at strangers in one folder of the top, after which all of it is passed over


class StoragePaths(NamedTuple):
    """Storage paths, ascending, each empty or ending in a slash; and whether there are surely no others."""

    paths: tuple[str, ...]
    is_complete: bool

    def __str__(self) -> str:
        """As a command line names them."""
        named = ", ".join(path.removesuffix("/") or path for path in self.paths if path)
        unnamed = "those without --storage-path" if "" in self.paths else ""
        parts = [f"--storage-path {named}" if named else "", unnamed, "" if self.is_complete else "maybe others"]
        nodes = f"{len(self.paths)} node{'s' * (len(self.paths) != 1)}"
        return f"backups of {nodes}: " + ", and ".join(part for part in parts if part)


def find(driver: Driver, prefix: str, own: str | None = None) -> StoragePaths:
    """The storage paths of the keys that begin with `prefix`; looks no further once `own` is among them.

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
        if path is None:  # a page of other people's objects
            top, slash, _ = key.removeprefix(prefix).partition("/")
            strangers[top] += 1
            folder = prefix + top + slash if strangers[top] > MANY else key[: key.rfind("/") + 1]
            after = _behind(folder) if slash else key
            continue
        paths[path] = None
        if path == own or len(paths) == MAX_PATHS or not path.startswith(own or ""):
            break
        # What has no storage path is all over the bucket: passed over metric by metric.
        after = _behind(path or key[: key.index("/") + 1])
    return StoragePaths(tuple(paths), False)


def _look(driver: Driver, prefix: str, after: str) -> tuple[str, str | None]:
    """The first key greater than `after` that is ours, and its storage path; else the last key that was read."""
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
