"""When a file was created, as the file system reports it (statx(2)), which `os` does not tell."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct

from whisperbackup.whisper.throttle import LIBC

# linux/stat.h, linux/fcntl.h
AT_FDCWD, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, STATX_BTIME = -100, 0x100, 0x7FF, 0x800
STATX_SIZE = 256
# stx_mask, stx_mode, stx_size; stx_btime, stx_ctime, stx_mtime as seconds and nanoseconds
STATUS = struct.Struct("=I24xH10xQ32xqI4xqI4xqI")
SECOND = 1_000_000_000  # nanoseconds
Look = tuple[int, int, int, int, int | None]


class Looker:
    """Looks at many files with one buffer; each thread needs its own."""

    def __init__(self) -> None:
        self._status = ctypes.create_string_buffer(STATX_SIZE)
        self._address = ctypes.addressof(self._status)
        self._statx = None
        with contextlib.suppress(AttributeError):  # a C library from before 2018, or not on Linux
            self._statx = LIBC["statx"]
            self._statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)

    def look(self, path: bytes) -> Look:
        """A file's mode, size, mtime, ctime and birth, the times in nanoseconds, links not followed.  Raises OSError.

        The birth is None if C library, kernel or file system do not report it.
        """
        if self._statx is None or self._statx(
            AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS | STATX_BTIME, self._address
        ):
            status = os.lstat(path)
            return status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, None
        mask, mode, size, born, born_ns, changed, changed_ns, written, written_ns = STATUS.unpack_from(self._status)
        birth = born * SECOND + born_ns if mask & STATX_BTIME else None
        return mode, size, written * SECOND + written_ns, changed * SECOND + changed_ns, birth


def birth_time(path: bytes) -> float | None:
    """The Unix time when the file was created; None if it is not reported.  Raises OSError."""
    born = Looker().look(path)[-1]
    return None if born is None else born / SECOND
