"""Which folder is at the prefix, and where other file systems begin below it: what is in the place of an absent disk.

A folder is told by its inode and its birth, which are those of its file system's root where one is mounted: the same
after each boot, wherever it is mounted, and others than those of the folder below it or of another disk.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import NamedTuple

from whisperbackup.tree.birth import SECOND, Looker
from whisperbackup.tree.names import ForeignName, metric_path


class Place(NamedTuple):
    """A beginning of metrics' keys ("disk2."; "" for all below the prefix), and the folder that is there."""

    key: str
    folder: str


class Places:
    """The places that a walk comes through: the prefix, and folders on other devices than those around them."""

    def __init__(self) -> None:
        self.found: set[Place] = set()
        self.used: set[Place] = set()
        """Those with metrics: others (a snapshot, an empty disk) are none of ours."""
        self._around: list[tuple[Place, int]] = []  # that the folder is in, the innermost last; and their devices

    def enter(self, key: str, path: bytes) -> None:
        """Note a folder, before what is in it; their keys ascend."""
        around = self._around
        while around and not key.startswith(around[-1][0].key):
            around.pop()
        try:
            status = os.stat(path)
            if not around or around[-1][1] != status.st_dev:
                place = Place(key, _told(path, status))
                self.found.add(place)
                around.append((place, status.st_dev))
        except OSError:
            return  # the walk cannot read it either

    def use(self) -> None:
        """Note that there are metrics in the folder that was entered last."""
        for place, _ in reversed(self._around):
            if place in self.used:
                break
            self.used.add(place)


def there(prefix: bytes, places: Iterable[Place]) -> set[Place]:
    """Those of the `places`, and the prefix, that are as they were."""
    return {place for place in {at(prefix, ""), *places} if place is not None and at(prefix, place.key) == place}


def at(prefix: bytes, key: str) -> Place | None:
    """The place that begins with this folder now; None if there is none."""
    try:
        path = os.path.join(prefix, os.path.dirname(metric_path(f"{key}_")))
        return Place(key, _told(path, os.stat(path)))
    except (OSError, ForeignName, ValueError):
        return None


def _told(path: bytes, status: os.stat_result) -> str:
    born = Looker().look(os.path.join(path, b""))[-1] or 0
    told = f"{status.st_ino:x}-{born:x}"
    if born % SECOND == 0:  # none is known, or mkfs.ext4 made it and others in the same second: these have UUIDs
        told += f"-{os.statvfs(path).f_fsid:x}"
    return told
