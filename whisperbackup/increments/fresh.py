"""What is new in one live whisper file: its header, slot 0's stamps, and the slots of a window, read and no more.

For an archive of which the window has less than a lap:

    header  slot 0 | stamp of slot 0 ... fresh slots ... | stamp of slot 0 ... fresh slots ... |
    archive 0      ^                                     ^ archive 1

This runs once for every file of a node, so it makes no call and no object that it could do without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Callable, Sequence
from fcntl import flock
from mmap import PAGESIZE as PAGE
from os import preadv
from typing import NamedTuple, NoReturn

from whisperbackup.increments.plan import Plan, plan_of
from whisperbackup.increments.record import END_OF_TIME
from whisperbackup.whisper.cwhisper import MAGIC, is_compressed
from whisperbackup.whisper.format import (
    ARCHIVE_INFO,
    METADATA,
    POINT_SIZE,
    CorruptFile,
    ShortFile,
    header_size,
)
from whisperbackup.whisper.reader import READINGS, TICK, acquire

STAMP = 4  # bytes
SECOND = 1_000_000_000  # nanoseconds
BEGINNING = METADATA.size + 3 * ARCHIVE_INFO.size + STAMP  # the header of three archives, slot 0's stamp behind it
NOWAIT = getattr(os, "RWF_NOWAIT", 0)
LOCK_SHARED = fcntl.LOCK_SH | fcntl.LOCK_NB
UNLOCK = fcntl.LOCK_UN
WARMINGS = 3

Into = Callable[[int, memoryview, int, list[int]], None]
"""Fill a buffer from a file's bytes at an offset; the list takes offsets of pages that the page cache lacked.

Raises ShortFile where the file ends before.
"""


class Compressed(Exception):
    """A file in go-carbon's compressed format: it has no slots."""


class Raw(NamedTuple):
    """What was read of one file, as it is stored: slot 0's stamps, and the slots of all stretches as `plan` says.

    `has_base`: a record may have to tell one of these stamps.  `version`, `moment` and `written` are what a record has
    of the file's times and of its reading's, and its mtime, in seconds.  `is_torn`: the file still changed while it was
    read the last time, so that a value may be half of another.
    """

    plan: Plan
    bases: Sequence[int]
    has_base: bool
    content: bytes | bytearray
    is_whole: bool
    version: int
    moment: int
    written: int
    is_torn: bool

    @property
    def told_bases(self) -> Sequence[int]:
        """Slot 0's stamp of each archive if it lies in the window or the file is whole, else 0."""
        if self.is_whole:
            return self.bases
        stretches = self.plan.stretches
        return [
            base if each.first <= base <= each.last else 0 for each, base in zip(stretches, self.bases, strict=True)
        ]


def read_fresh(
    fd: int,
    since: int,
    until: int,
    is_whole: bool = False,
    absent: list[int] | None = None,
) -> Raw:
    """The window [since, until] of the whisper file that is open as `fd`, read under carbon's shared lock.

    No more is read than the module's docstring shows; carbon waits for no disk meanwhile; the pages that were not in
    the page cache are given back.  What may be torn is read again, READINGS times at most.  `absent`: pages to give
    back, too.
    Raises CorruptFile (ShortFile: it may be in the making), Compressed, Locked, OSError.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # or the kernel reads 32 pages for one
    absent = absent or []
    try:
        for number in range(1, READINGS + 1):
            raw = _read_once(fd, since, until, is_whole, absent)
            if not raw.is_torn or number == READINGS:
                break
            time.sleep(TICK / 1e9)
        return raw
    finally:
        if absent:
            _give_back(fd, absent)


def read_whole(fd: int) -> Raw:
    """As `read_fresh`, but every point of the file."""
    return read_fresh(fd, 0, END_OF_TIME - 1, is_whole=True)


def _give_back(fd: int, pages: list[int]) -> None:
    for page in pages:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, page, PAGE, os.POSIX_FADV_DONTNEED)


def _read_once(fd: int, since: int, until: int, is_whole: bool, absent: list[int]) -> Raw:
    """One reading, of what the page cache holds: what it does not hold is brought there before the lock is taken."""
    for _ in range(WARMINGS if NOWAIT else 0):
        try:
            return _read_locked(fd, since, until, is_whole, from_cache, absent)
        except BlockingIOError:
            _gather(fd, since, until, _from_disk, absent)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            break
    return _read_locked(fd, since, until, is_whole, _plainly, absent)


def _read_locked(fd: int, since: int, until: int, is_whole: bool, into: Into, absent: list[int]) -> Raw:
    try:
        flock(fd, LOCK_SHARED)
    except BlockingIOError:
        acquire(fd, fcntl.LOCK_SH)
    try:
        began = time.time_ns()
        before = os.fstat(fd)
        plan, bases, has_base, content = _gather(fd, since, until, into, absent)
        after = os.fstat(fd)
    finally:
        flock(fd, UNLOCK)
    if after.st_size != plan.file_size:
        kind = ShortFile if after.st_size < plan.file_size else CorruptFile
        raise kind(f"{after.st_size} bytes, its header says {plan.file_size}")
    written = after.st_mtime_ns
    # A write in the same tick as the one before it leaves no trace in the file's times.
    is_torn = before.st_mtime_ns != written or before.st_size != after.st_size or abs(began - written) < TICK
    # A file whose times lie in the future has the version of its reading: what was read then was there then.
    version = min(max(written, after.st_ctime_ns), began)
    has_base = has_base or is_whole
    moments = (version // SECOND, began // SECOND, written // SECOND)
    return Raw(plan, bases, has_base, content, is_whole, *moments, is_torn)


class _Buffers(threading.local):
    """What the beginnings of files are read into."""

    def __init__(self) -> None:
        self.header = bytearray(BEGINNING)
        self.header_view = memoryview(self.header)
        self.stamp = bytearray(STAMP)
        self.stamp_view = memoryview(self.stamp)


_BUFFERS = _Buffers()


def _gather(fd: int, since: int, until: int, into: Into, absent: list[int]) -> tuple[Plan, list[int], bool, bytearray]:
    """The plan by the file's header, slot 0's stamps, whether one may lie in the window, the slots of all stretches."""
    buffers = _BUFFERS
    buffer = buffers.header
    try:
        into(fd, buffers.header_view, 0, absent)
        size = METADATA.size + ARCHIVE_INFO.size * buffer[METADATA.size - 1]
    except ShortFile:
        size = BEGINNING
    if size > BEGINNING - STAMP or buffer.startswith(MAGIC):
        buffer = _other_header(fd, into, absent)
        size = len(buffer) - STAMP
    plan = plan_of(bytes(buffer[:size]), since, until)
    content = bytearray(plan.size)
    view = memoryview(content)
    stamp: bytearray = buffer[size : size + STAMP]
    bases: list[int] = []
    has_base = False
    for offset, step, points, first, count, last, begin, end in plan.stretches:
        if count == points:
            into(fd, view[begin:end], offset, absent)
            bases.append(int.from_bytes(content[begin : begin + STAMP], "big"))
            has_base = True
            continue
        if bases:
            into(fd, buffers.stamp_view, offset, absent)
            stamp = buffers.stamp
        base = int.from_bytes(stamp, "big")
        bases.append(base)
        if not base or not count:
            continue  # whisper finds nothing in an archive without a base
        slot = (first - base) // step % points
        after = slot + count - points
        if after <= 0:
            into(fd, view[begin:end], offset + slot * POINT_SIZE, absent)
        else:
            cut = end - after * POINT_SIZE
            into(fd, view[begin:cut], offset + slot * POINT_SIZE, absent)
            into(fd, view[cut:end], offset, absent)
        has_base = has_base or first <= base <= last
    return plan, bases, has_base, content


def _other_header(fd: int, into: Into, absent: list[int]) -> bytearray:
    """The header, and the stamp behind it, of a file that is tiny or has more than three archives.

    Raises CorruptFile, Compressed.
    """
    beginning = bytearray(min(BEGINNING, os.fstat(fd).st_size))
    into(fd, memoryview(beginning), 0, absent)
    if is_compressed(beginning):
        raise Compressed("a compressed file; backup stores it")
    whole = bytearray(header_size(beginning) + STAMP)
    into(fd, memoryview(whole), 0, absent)
    return whole


def from_cache(fd: int, buffer: memoryview, offset: int, absent: list[int]) -> None:
    """Raises BlockingIOError where the page cache lacks some of it, with the page noted.

    A page at a time: the kernel begins to read all that is asked for, and later these pages are there by our doing.
    """
    size = len(buffer)
    left = PAGE - offset % PAGE
    try:
        if size <= left:
            if preadv(fd, (buffer,), offset, NOWAIT) == size:
                return
            left = size
        while buffer:
            length = preadv(fd, (buffer[:left],), offset, NOWAIT)
            if not length:
                _end(offset)
            buffer = buffer[length:]
            offset += length
            left = PAGE - offset % PAGE
    except BlockingIOError:
        absent.append(offset - offset % PAGE)
        raise


def _from_disk(fd: int, buffer: memoryview, offset: int, absent: list[int]) -> None:
    """Have the page cache hold it, each page that it lacked noted."""
    while buffer:
        piece = buffer[: PAGE - offset % PAGE]
        try:
            from_cache(fd, piece, offset, absent)
        except BlockingIOError:
            _plainly(fd, piece, offset, absent)
        buffer = buffer[len(piece) :]
        offset += len(piece)


def _plainly(fd: int, buffer: memoryview, offset: int, _: list[int]) -> None:
    while buffer:
        length = preadv(fd, (buffer,), offset)
        if not length:
            _end(offset)
        buffer = buffer[length:]
        offset += length


def _end(offset: int) -> NoReturn:
    raise ShortFile(f"it ends at byte {offset}, its header says more")
