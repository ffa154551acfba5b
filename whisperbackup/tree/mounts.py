"""What is mounted at the prefix, above or below it: a disk that is not there must not look like metrics that went."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

from whisperbackup.tree.names import encode

MOUNTS = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")  # space, tab, newline and backslash are written so


class _Mount(NamedTuple):
    parent: bytes
    device: bytes
    folder: bytes  # ends in a slash


def mounted(prefix: bytes) -> set[str]:
    """Where other file systems are: beginnings of metrics' keys (`disk2.`; "" if the prefix is not on that of `/`).

    A folder that is mounted anew from its own file system, as systemd does for a service, is none.  Empty where the
    kernel does not tell.  (Source: proc(5).)
    """
    try:
        with open(MOUNTS, "rb") as file:
            lines = [line.split(b" ", 5) for line in file]
    except OSError:
        return set()
    mounts = {
        number: _Mount(parent, device, _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), point).rstrip(b"/") + b"/")
        for number, parent, device, _, point, _ in lines
    }
    root = os.path.realpath(prefix).rstrip(b"/") + b"/"
    found = set()
    for mount in mounts.values():
        above = mounts.get(mount.parent)
        is_other = above is None or above.device != mount.device
        if is_other and mount.folder.startswith(root) and mount.folder != root:
            found.add("".join(f"{encode(name)}." for name in mount.folder.removeprefix(root)[:-1].split(b"/")))
    around = {mount.folder: mount.device for mount in mounts.values() if root.startswith(mount.folder)}
    if around and around[max(around, key=len)] != around.get(b"/"):
        found.add("")
    return found


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
