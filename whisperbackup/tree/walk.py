"""Walk the local tree in the order in which the store lists its keys.

A metric's name is its path below the prefix without `.wsp`, with `.` for `/`.  So that every path
round-trips, a byte of a path component that is `.`, `%`, a control character or not UTF-8 is written %XX.  So are
the bytes of U+FFFE and U+FFFF, which XML cannot hold: S3 refuses a deletion that names them.
"""

from __future__ import annotations

import logging
import operator
import os
import re
import stat
from collections.abc import Iterator
from typing import NamedTuple

from whisperbackup.errors import NoTree
from whisperbackup.tree.names import SUFFIX, encode
from whisperbackup.tree.places import Places
from whisperbackup.tree.selection import Selection, select

logger = logging.getLogger(__name__)
SIDECAR = b".ooo"
HIDDEN_SIDECAR = re.compile(rb"\.[0-9a-f]{64}\.ooo")
NOT_ENTERED = b"lost+found"
VANISHED = "it vanished"


class LocalFile(NamedTuple):
    """A whisper file: its metric's `name`, and its absolute `path`."""

    key: str  # the prefix of its keys in the store: name + "/"
    path: bytes

    @property
    def name(self) -> str:
        """The metric's name in the store."""
        return self.key[:-1]


class Skipped(NamedTuple):
    """Metrics that the walk did not see: those whose `name/` begins with `key`.

    `is_error`: a folder could not be read; otherwise they are skipped on purpose.
    """

    key: str
    path: bytes
    reason: str
    is_error: bool

    @property
    def is_unseen(self) -> bool:
        """Whether there may be files that this walk should have seen."""
        return self.is_error or self.reason == VANISHED


class Sidecars:
    """How many of go-carbon's files of late points a walk found, and the path of the first."""

    count = 0
    example = b""

    def add(self, path: bytes) -> None:
        """Count the one at `path`."""
        self.count += 1
        self.example = self.example or path

    def report(self) -> None:
        """Name them in one warning, if there are any."""
        if self.count:
            logger.warning(
                "%d %s of late points of go-carbon beside compressed metrics %s not backed up, for example '%s'",
                self.count,
                "file" if self.count == 1 else "files",
                "is" if self.count == 1 else "are",
                os.fsdecode(self.example),
            )


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
        raise NoTree(f"prefix '{shown}' cannot be read: {error.strerror}; run as a user allowed to read it") from error


def check_tree(prefix: bytes) -> None:
    """Raises NoTree for a prefix that is missing, unreadable, or holds no whisper file, like an unmounted disk."""
    check_prefix(prefix)
    if not any(isinstance(item, LocalFile) for item in walk(prefix, select(["*"]))):
        raise NoTree(f"there is no whisper file below {os.fsdecode(prefix)}; check -p, and that its disk is mounted")


def walk(
    prefix: bytes, selection: Selection, sidecars: Sidecars | None = None, places: Places | None = None
) -> Iterator[LocalFile | Skipped]:
    """The whisper files below `prefix` that are in `selection`, ascending by key, as the store lists them.

    Links are not followed (`prefix` itself may be one).  What is left out for a reason other than the selection is
    yielded as Skipped, in its place in the order.  Memory holds one folder per level.  With `sidecars`, files of late
    points of selected metrics are counted there, and reported at the end; `places` notes where disks begin.
    """
    # Sorting a folder's entries by encoded name + "." (folders) or "/" (files) gives the order of the keys:
    # no encoded name holds "." or "/", so none of these sort keys begins another.
    stack = [iter(_entries(prefix, "", selection, sidecars, places))]
    while stack:
        for entry in stack[-1]:
            if isinstance(entry, _Folder):
                stack.append(iter(_entries(entry.path, entry.key, selection, sidecars, places)))
                break
            yield entry
        else:
            stack.pop()
    if sidecars is not None:
        sidecars.report()


class _Folder(NamedTuple):
    key: str
    path: bytes


_KEY = operator.itemgetter(0)  # of all three


def _entries(
    path: bytes, prefix: str, selection: Selection, sidecars: Sidecars | None, places: Places | None
) -> list[LocalFile | Skipped | _Folder]:
    entries: list[LocalFile | Skipped | _Folder] = []
    has_all = selection.has_all
    if places is not None:
        places.enter(prefix, path)
    try:
        with os.scandir(path) as scan:
            for entry in scan:
                name = entry.name
                if prefix and name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False):  # as nearly all are
                    key = f"{prefix}{encode(name[: -len(SUFFIX)])}/"
                    if has_all or key[:-1] in selection:
                        entries.append(LocalFile(key, entry.path))
                    continue
                if sidecars is not None and _is_sidecar(entry, prefix, selection):
                    sidecars.add(entry.path)
                entries.extend(item for item in _classify(entry, prefix) if _is_wanted(item, selection))
    except FileNotFoundError:
        return [Skipped(prefix, path, VANISHED, False)]
    except OSError as error:
        return [Skipped(prefix, path, error.strerror or str(error), True)]
    entries.sort(key=_KEY)
    if places is not None and any(type(entry) is LocalFile for entry in entries):
        places.use()
    return entries


def _is_sidecar(entry: os.DirEntry[bytes], prefix: str, selection: Selection) -> bool:
    """Whether go-carbon keeps late points in this file, for a metric in `selection` or one that its name does not show.

    Its name is the compressed file's with `.ooo`; where that would be too long, it is hidden: a hash with `.ooo`.
    """
    if not entry.name.endswith(SIDECAR):
        return False
    if entry.name.endswith(SUFFIX + SIDECAR):
        is_selected = prefix + encode(entry.name.removesuffix(SUFFIX + SIDECAR)) in selection
    else:
        is_selected = HIDDEN_SIDECAR.fullmatch(entry.name) is not None
    return is_selected and entry.is_file(follow_symlinks=False)


def _is_wanted(item: LocalFile | Skipped | _Folder, selection: Selection) -> bool:
    if item.key.endswith("/"):
        return item.key[:-1] in selection
    return selection.may_hold(item.key)


def _classify(entry: os.DirEntry[bytes], prefix: str) -> Iterator[LocalFile | Skipped | _Folder]:
    """Classify one entry of the folder `prefix`; a link may hide a metric, metrics below it, or both."""
    is_whisper = entry.name.endswith(SUFFIX)
    as_file = f"{prefix}{encode(entry.name.removesuffix(SUFFIX))}/"
    as_folder = f"{prefix}{encode(entry.name)}."
    if as_file == "/":
        is_whisper = False  # `.wsp` at the very top would be the metric without a name
    if entry.is_symlink():
        if is_whisper:
            yield Skipped(as_file, entry.path, "it is a symbolic link", False)
        if not _leads_to_a_file(entry):  # a dangling link may be a disk that is not mounted
            yield Skipped(as_folder, entry.path, "" if is_whisper else "it is a symbolic link", False)
    elif entry.is_dir(follow_symlinks=False):
        if entry.name == NOT_ENTERED:
            yield Skipped(as_folder, entry.path, "", False)
        else:
            yield _Folder(as_folder, entry.path)
            if is_whisper:
                yield Skipped(as_file, entry.path, "it is not a regular file", False)
    elif is_whisper:
        if entry.is_file(follow_symlinks=False):
            yield LocalFile(as_file, entry.path)
        else:
            yield Skipped(as_file, entry.path, "it is not a regular file", False)


def _leads_to_a_file(link: os.DirEntry[bytes]) -> bool:
    try:
        return link.is_file()
    except OSError:  # a circle, or a target that this user cannot access
        return False
