"""Read a whisper file whole while a carbon daemon writes to it."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from datetime import datetime
from typing import NamedTuple

from whisperbackup.runtime import clock
from whisperbackup.whisper.format import ShortFile, TooLarge, check, is_cut_off
from whisperbackup.whisper.page_cache import absent_pages, drop_pages
from whisperbackup.whisper.throttle import Throttle

LOCK_TIMEOUT = 30.0  # seconds; carbon holds a file for milliseconds
BEGINNING = 1 << 16  # bytes that hold any header, and the first slot
CREATION_AGE = 60.0  # seconds; a short file younger than this is being created
READINGS = 3
TICK = 20_000_000  # nanoseconds; a file's times move in steps of up to a kernel tick


class TooNew(Exception):
    """The file is being created at this moment."""


class Locked(OSError):
    """Another process held the file's lock for longer than LOCK_TIMEOUT."""


class Reading(NamedTuple):
    """A file's content, and whether it still changed while it was read the last time.

    `status` is the file's after the reading, `began` the Unix time of its beginning in nanoseconds, `moment` the same
    by the clock that stamps are taken from.
    """

    content: bytearray
    is_torn: bool
    status: os.stat_result
    began: int
    moment: datetime


def acquire(fd: int, operation: int, timeout: float = LOCK_TIMEOUT) -> None:
    """Take `flock(fd, operation)`, waiting at most `timeout` seconds.  Raises Locked."""
    deadline = time.monotonic() + timeout
    pause = 0.001
    while True:
        try:
            return fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Locked(errno.EAGAIN, f"another process has kept it locked for {timeout:.0f} seconds") from None
        time.sleep(pause)
        pause = min(pause * 2, 0.1)


def open_regular(path: bytes, flags: int) -> int:
    """A descriptor of the regular file `path`; refuses links, and does not hang on a FIFO.  Raises OSError."""
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return fd


def read(path: bytes, max_size: int, throttle: Throttle) -> Reading:
    """The whole whisper file at `path`, read under the shared lock that excludes a locking carbon.

    Raises CorruptFile for what is no whisper file or has more than `max_size` bytes, TooNew for a file that
    carbon is just creating, Locked, and OSError.
    """
    fd = open_regular(path, os.O_RDONLY)
    try:
        try:
            return _read(fd, max_size, throttle)
        except ShortFile:
            if not may_be_new(fd):
                raise
            time.sleep(0.2)
            try:
                return _read(fd, max_size, throttle)
            except ShortFile as error:
                if may_be_new(fd):
                    raise TooNew(str(error)) from None
                raise
    finally:
        os.close(fd)


def _read(fd: int, max_size: int, throttle: Throttle) -> Reading:
    for number in range(1, READINGS + 1):
        reading = _read_once(fd, max_size, throttle)
        if not reading.is_torn or number == READINGS:
            break
        time.sleep(TICK / 1e9)
    check(reading.content)
    return reading


def _read_once(fd: int, max_size: int, throttle: Throttle) -> Reading:
    """One reading under the lock, of what was just read without it: carbon waits for a copy in memory, not for a disk.

    It is read twice even if the cache seems to hold it: the kernel hides that of files that this user cannot write.
    """
    size = _size(fd, max_size)
    absent = absent_pages(fd, size)
    try:
        throttle.fill_cache(fd, size)
        with throttle.normal_priority():
            acquire(fd, fcntl.LOCK_SH)
            try:
                moment, began = clock.utc_now(), time.time_ns()
                before = os.fstat(fd)
                content = bytearray(_size(fd, max_size))
                length = _read_into(fd, content)
                after = os.fstat(fd)
            finally:
                fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        drop_pages(fd, absent)
    has_changed = (before.st_mtime_ns, len(content)) != (after.st_mtime_ns, after.st_size)
    # A write in the same tick as the one before it leaves no trace in the file's times.
    is_torn = has_changed or length < len(content) or abs(began - after.st_mtime_ns) < TICK
    del content[length:]
    return Reading(content, is_torn, after, began, moment)


def _size(fd: int, max_size: int) -> int:
    size = os.fstat(fd).st_size
    if size > max_size:
        raise TooLarge(f"{size} bytes, more than --max-file-size ({max_size})")
    return size


def _read_into(fd: int, content: bytearray) -> int:
    """How many bytes from the file's start could be read into `content`."""
    length = 0
    view = memoryview(content)
    while length < len(content) and (more := os.preadv(fd, [view[length:]], length)):
        length += more
    return length


def may_be_new(fd: int) -> bool:
    """Whether a short file may be one that carbon is just creating: it is young, and holds no point."""
    status = os.fstat(fd)
    if abs(time.time() - status.st_mtime) >= CREATION_AGE:
        return False
    # Whichever points a file holds, its first slot is not empty: its time is where all others are counted from.
    content = os.pread(fd, min(status.st_size, BEGINNING), 0)
    return os.fstat(fd).st_size != status.st_size or not is_cut_off(content)  # else it was made whole meanwhile
