"""When a file was created, as the file system reports it (statx(2))."""

from __future__ import annotations

import ctypes
import struct

from whisperbackup.whisper.throttle import LIBC

# linux/stat.h, linux/fcntl.h
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_EMPTY_PATH, STATX_BTIME = -100, 0x100, 0x1000, 0x800
STATX_SIZE, BTIME = 256, struct.Struct("=I76xqI")  # stx_mask, stx_btime
Status = ctypes.c_char * STATX_SIZE


def birth_time(path: bytes) -> float | None:
    """The Unix time when the file was created; None if C library, kernel or file system do not report it."""
    return _birth_time(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW)


def birth_time_of(fd: int) -> float | None:
    """As `birth_time`, of an open file."""
    return _birth_time(fd, b"", AT_EMPTY_PATH)


def _birth_time(fd: int, path: bytes, flags: int) -> float | None:
    status = Status()
    try:
        failed = LIBC.statx(fd, path, flags, STATX_BTIME, status)
    except AttributeError:  # a C library from before 2018, or not on Linux
        return None
    mask, seconds, nanoseconds = BTIME.unpack_from(status)
    return seconds + nanoseconds / 1e9 if not failed and mask & STATX_BTIME else None
