"""What is mounted at the prefix, above or below it: a disk that is not there must not look like metrics that went."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable

from whisperbackup.tree.names import encode

MOUNTS = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")  # space, tab, newline and backslash are written so


def mounts_below(prefix: bytes) -> set[str]:
    """The beginnings of their metrics' keys: `disk2.`, and the empty one if the prefix is not on the root file system.

    Empty where the kernel does not tell.  (Source: proc(5).)
    """
    root = os.path.realpath(prefix).rstrip(b"/") + b"/"
    try:
        with open(MOUNTS, "rb") as file:
            points = [line.split(b" ")[4] for line in file]
    except OSError:
        return set()
    paths = [_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), point) for point in points]
    folders = [path.rstrip(b"/") + b"/" for path in paths]
    below = {
        "".join(f"{encode(name)}." for name in folder.removeprefix(root).split(b"/") if name)
        for folder in folders
        if folder.startswith(root)
    }
    return below | {"" for folder in folders if folder != b"/" and root.startswith(folder)}


class Used:
    """Which of the mounted file systems have metrics: others (a snapshot, an empty disk) are none of ours."""

    def __init__(self, mounted: Iterable[str]) -> None:
        self._left = sorted(mounted, reverse=True)
        self.found: set[str] = set()

    def see(self, key: str) -> None:
        """Note a metric; their keys ascend."""
        while self._left and key >= self._left[-1]:
            mount = self._left.pop()
            if key.startswith(mount):
                self.found.add(mount)
