"""The local tree: what a whisper file's metric is called in the store, and a walk in the store's order.

A metric's name is its path below the prefix without `.wsp`, `/` becoming `.`.  So that every path
round-trips, a byte of a path component that is `.`, `%`, a control character or not UTF-8 is written %XX.  So are
the bytes of U+FFFE and U+FFFF, which XML cannot hold: S3 refuses a deletion that names them.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from whisperbackup.selection import Selection

SUFFIX = b".wsp"
NOT_ENTERED = b"lost+found"
STRIDE = 50
_ESCAPED = re.compile("[\x00-\x1f\x7f.%\udc80-\udcff\ufffe\uffff]")
_ORDINARY = re.compile(r"[\w-]+(?:\.[\w-]+)*", re.ASCII)
_ESCAPE = re.compile(b"%([0-9A-F]{2})")


class ForeignName(ValueError):
    """A name in the store that stands for no path below a prefix."""


class NoTree(Exception):
    """There is no tree to walk; the text says why."""


class Found(NamedTuple):
    """A whisper file: its metric's `name`, and its absolute `path`."""

    key: str  # what the store's keys of this metric begin with: name + "/"
    path: bytes

    @property
    def name(self) -> str:
        """The metric's name in the store."""
        return self.key[:-1]


class Unseen(NamedTuple):
    """Metrics that the walk could not see: those whose `name/` begins with `key`.

    `is_error` tells a folder that could not be read from what is left alone on purpose.
    """

    key: str
    path: bytes
    reason: str
    is_error: bool


def encode(component: bytes) -> str:
    """A path component as it stands in a metric's name."""
    return _ESCAPED.sub(_escape, component.decode("utf-8", "surrogateescape"))


def _escape(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode("utf-8", "surrogateescape"))


def _decode(component: str) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match.group(1), 16)]), component.encode())


def metric_name(path: bytes) -> str:
    """The name of the metric at `path`, relative to the prefix and ending in `.wsp`."""
    return ".".join(encode(component) for component in path.removesuffix(SUFFIX).split(b"/"))


def is_canonical(name: str) -> bool:
    """Whether encoding the decoded path gives `name` again."""
    if "%" not in name:
        return not _ESCAPED.search(name.replace(".", ""))
    try:
        return all(encode(_decode(component)) == component for component in name.split("."))
    except UnicodeEncodeError:
        return False


def metric_path(name: str) -> bytes:
    """The path of the metric `name`, relative to the prefix.

    A name that is not canonical is read literally.  Raises ForeignName where the path would be unsafe:
    a component that is empty, `.` or `..`, or one with `/` or NUL in it.
    """
    if _ORDINARY.fullmatch(name):
        return name.replace(".", "/").encode() + SUFFIX
    try:
        components = [part.encode() for part in name.split(".")]
    except UnicodeEncodeError:
        raise ForeignName(f"'{name!a}' is not UTF-8") from None
    if "%" in name and is_canonical(name):
        components = [_decode(part) for part in name.split(".")]
    *folders, stem = components
    if (
        not (folders or stem)
        or any(folder in (b"", b".", b"..") for folder in folders)
        or any(byte in component for component in components for byte in (b"/", b"\0"))
    ):
        raise ForeignName(f"'{name}' is not the name of a metric")
    return b"/".join(components) + SUFFIX


def check_prefix(prefix: bytes) -> None:
    """Raises NoTree unless `prefix` is a folder (or a link to one) that can be read."""
    shown = os.fsdecode(prefix)
    try:
        if not stat.S_ISDIR(os.stat(prefix).st_mode):
            raise NoTree(f"prefix '{shown}' is not a directory; name the folder that holds the whisper files with -p")
        with os.scandir(prefix):
            pass
    except FileNotFoundError:
        raise NoTree(f"prefix '{shown}' does not exist; name the folder that holds the whisper files with -p") from None
    except OSError as error:
        raise NoTree(f"prefix '{shown}' cannot be read: {error.strerror}; run as a user who may") from error


def walk(prefix: bytes, selection: Selection) -> Iterator[Found | Unseen]:
    """The whisper files below `prefix` that are in `selection`, ascending by key, as the store lists them.

    Links are not followed (`prefix` itself may be one).  What is left out for another reason than the
    selection comes as Unseen, in its place in the order.  Holds one folder a level in memory.
    """
    # Sorting a folder's entries by encoded name + "." (folders) or "/" (files) gives the order of the keys:
    # no encoded name holds "." or "/", so none of these sort keys begins another.
    stack = [iter(_entries(prefix, "", selection))]
    while stack:
        for entry in stack[-1]:
            if isinstance(entry, _Folder):
                stack.append(iter(_entries(entry.path, entry.key, selection)))
                break
            yield entry
        else:
            stack.pop()


def with_milestones(walk: Iterator[Found | Unseen]) -> tuple[Iterator[Found | Unseen], Iterator[str]]:
    """The same walk, and the key of every 50th metric of it; reading these first goes ahead of the walk, in memory."""
    walk, ahead = itertools.tee(walk)
    return walk, (found.key for found in itertools.islice(ahead, STRIDE, None, STRIDE))


class _Folder(NamedTuple):
    key: str
    path: bytes


def _entries(path: bytes, prefix: str, selection: Selection) -> list[Found | Unseen | _Folder]:
    try:
        with os.scandir(path) as scan:
            entries = [item for entry in scan for item in _classify(entry, prefix) if _is_wanted(item, selection)]
    except FileNotFoundError:
        return [Unseen(prefix, path, "it vanished", False)]
    except OSError as error:
        return [Unseen(prefix, path, error.strerror or str(error), True)]
    entries.sort(key=lambda item: item.key)
    return entries


def _is_wanted(item: Found | Unseen | _Folder, selection: Selection) -> bool:
    if item.key.endswith("/"):
        return item.key[:-1] in selection
    return selection.may_hold(item.key)


def _classify(entry: os.DirEntry[bytes], prefix: str) -> Iterator[Found | Unseen | _Folder]:
    """What one entry of the folder `prefix` is; a link may hide a metric, metrics below it, or both."""
    is_whisper = entry.name.endswith(SUFFIX)
    as_file = f"{prefix}{encode(entry.name.removesuffix(SUFFIX))}/"
    as_folder = f"{prefix}{encode(entry.name)}."
    if as_file == "/":
        is_whisper = False  # `.wsp` at the very top would be the metric without a name
    if entry.is_symlink():
        if is_whisper:
            yield Unseen(as_file, entry.path, "it is a symbolic link", False)
        if not _leads_to_a_file(entry):  # a dangling link may be a disk that is not mounted
            yield Unseen(as_folder, entry.path, "" if is_whisper else "it is a symbolic link", False)
    elif entry.is_dir(follow_symlinks=False):
        if entry.name == NOT_ENTERED:
            yield Unseen(as_folder, entry.path, "", False)
        else:
            yield _Folder(as_folder, entry.path)
            if is_whisper:
                yield Unseen(as_file, entry.path, "it is not a regular file", False)
    elif is_whisper:
        if entry.is_file(follow_symlinks=False):
            yield Found(as_file, entry.path)
        else:
            yield Unseen(as_file, entry.path, "it is not a regular file", False)


def _leads_to_a_file(link: os.DirEntry[bytes]) -> bool:
    try:
        return link.is_file()
    except OSError:  # it leads in a circle, or where we may not look
        return False
