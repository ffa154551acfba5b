"""The file systems that are mounted below the prefix: a disk that is not there must not look like metrics that went."""

from __future__ import annotations

import os
import re

from whisperbackup.tree.names import encode

MOUNTS = "/proc/self/mountinfo"
_OCTAL = re.compile(rb"\\([0-7]{3})")  # space, tab, newline and backslash are written so


def mounts_below(prefix: bytes) -> set[str]:
    """The beginnings of their metrics' keys (`disk2.`); empty where the kernel does not tell.  (Source: proc(5).)"""
    root = os.path.realpath(prefix).rstrip(b"/") + b"/"
    try:
        with open(MOUNTS, "rb") as file:
            points = [line.split(b" ")[4] for line in file]
    except OSError:
        return set()
    paths = [_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), point) for point in points]
    return {
        "".join(f"{encode(name)}." for name in path.removeprefix(root).split(b"/"))
        for path in paths
        if path.startswith(root)
    }
