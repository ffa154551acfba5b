"""What `fresh.py` reads of a live file, for the ordinary one: in the page cache, not locked, not being written to.

This runs once for each of a million files an hour, so it makes few calls, and its buffers once.  Whatever is out of the
ordinary is left to `fresh.py`.
"""

from __future__ import annotations

import struct
import time
from fcntl import flock
from mmap import PAGESIZE as PAGE
from os import POSIX_FADV_RANDOM, fstat, posix_fadvise, preadv
from typing import NamedTuple

from whisperbackup.increments.fresh import BEGINNING, LOCK_SHARED, NOWAIT, SECOND, STAMP, UNLOCK, Raw, from_cache
from whisperbackup.increments.plan import Plan, plan_of
from whisperbackup.whisper.cwhisper import MAGIC
from whisperbackup.whisper.format import ARCHIVE_INFO, METADATA, POINT_SIZE, CorruptFile
from whisperbackup.whisper.reader import TICK

Views = tuple[memoryview]
Found = tuple[Plan, tuple[int, ...], bool, bytes]


class _Step(NamedTuple):
    """An archive and its window; `highest` is the last slot that this may begin with and not wrap."""

    offset: int
    step: int
    points: int
    first: int
    last: int
    highest: int
    size: int
    views: Views


class _Steps(NamedTuple):
    """How to read the files of one plan: slot 0's stamps into `stamps`, those of the others than the first; slots."""

    plan: Plan
    stamps: bytearray
    stamp_reads: tuple[tuple[int, Views], ...]
    unpack: struct.Struct
    content: bytearray
    steps: tuple[_Step, ...]


class Quick:
    """Reads windows from `since` to `lag` after now; each thread needs its own."""

    def __init__(self, since: int, lag: int) -> None:
        self.since = since
        self._lag = lag
        self._header = bytearray(BEGINNING)
        self._views = (memoryview(self._header),)
        self._second = 0
        self._known: dict[bytes, _Steps | None] = {}

    def read(self, fd: int, size: int, written: int, absent: list[int]) -> Raw | None:
        """What is fresh in the file that is open as `fd`, with its lock, which it keeps until it is closed.

        None if it is out of the ordinary; then its lock is free, and `absent` has the page that the kernel began to
        read.  `size` and `written`: the file's size and mtime (ns) at a moment before.
        """
        posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM)  # or the kernel reads 32 pages for one
        try:
            flock(fd, LOCK_SHARED)
        except BlockingIOError:
            return None
        began = time.time_ns()
        if began // SECOND != self._second:
            self._second, self._known = began // SECOND, {}
        found = self._gather(fd, absent)
        if found is not None:
            plan, bases, has_base, content = found
            after = fstat(fd)
            is_unchanged = after.st_mtime_ns == written and after.st_size == plan.file_size == size
            if is_unchanged and abs(began - written) >= TICK:
                version = max(written, after.st_ctime_ns)
                if version > began:
                    version = began
                return Raw(
                    plan, bases, has_base, content, False,
                    version // SECOND, self._second, written // SECOND, False,
                )  # fmt: skip
        flock(fd, UNLOCK)
        return None

    def _gather(self, fd: int, absent: list[int]) -> Found | None:
        header = self._header
        at = 0
        try:
            if preadv(fd, self._views, 0, NOWAIT) != BEGINNING:
                return None
            end = METADATA.size + ARCHIVE_INFO.size * header[METADATA.size - 1]
            name = bytes(header[:end])
            found = self._known[name] if name in self._known else self._steps(name)
            if found is None:
                return None
            plan, stamps, stamp_reads, unpack, content, steps = found
            stamps[:STAMP] = header[end : end + STAMP]
            for at, views in stamp_reads:
                if preadv(fd, views, at, NOWAIT) != STAMP:
                    return None  # or the stamp would be that of the file before
            bases = unpack.unpack(stamps)
            if not all(bases):
                return None
            has_base = False
            for base, (offset, step, points, first, last, highest, size, views) in zip(bases, steps, strict=True):
                slot = (first - base) // step % points
                at = offset + slot * POINT_SIZE
                if slot > highest:
                    cut = (points - slot) * POINT_SIZE
                    if not _from_cache(fd, views[0][:cut], at, absent):
                        return None
                    if not _from_cache(fd, views[0][cut:], offset, absent):
                        return None
                elif at % PAGE + size > PAGE:
                    if not _from_cache(fd, views[0], at, absent):
                        return None
                elif preadv(fd, views, at, NOWAIT) != size:
                    return None
                if first <= base <= last:
                    has_base = True
        except BlockingIOError:
            absent.append(at - at % PAGE)
            return None
        except OSError:  # no NOWAIT on this file system, or a disk's error
            return None
        return plan, bases, has_base, bytes(content)

    def _steps(self, name: bytes) -> _Steps | None:
        """How to read files with the header `name`; None for those that are out of the ordinary."""
        self._known[name] = found = self._planned(name)
        return found

    def _planned(self, name: bytes) -> _Steps | None:
        if name.startswith(MAGIC[: METADATA.size]):
            return None
        try:
            plan = plan_of(name, self.since, self._second + self._lag)
        except CorruptFile:
            return None
        if len(name) > BEGINNING - STAMP or any(each.is_lap or not each.slots for each in plan.stretches):
            return None
        stamps, content = bytearray(STAMP * len(plan.stretches)), bytearray(plan.size)
        stamp, slots = memoryview(stamps), memoryview(content)
        return _Steps(
            plan,
            stamps,
            tuple(
                (each.offset, (stamp[number * STAMP : (number + 1) * STAMP],))
                for number, each in enumerate(plan.stretches)
                if number
            ),
            struct.Struct(f">{len(plan.stretches)}L"),
            content,
            tuple(
                _Step(
                    each.offset, each.step, each.points, each.first, each.last, each.points - each.slots,
                    each.end - each.begin, (slots[each.begin : each.end],),
                )
                for each in plan.stretches
            ),
        )  # fmt: skip


def _from_cache(fd: int, buffer: memoryview, offset: int, absent: list[int]) -> bool:
    try:
        from_cache(fd, buffer, offset, absent)
    except BlockingIOError:
        return False
    return True
