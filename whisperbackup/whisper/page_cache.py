"""The page cache around one reading: which pages it lacks before, and dropping those again after."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

from whisperbackup.whisper.throttle import LIBC


def absent_pages(fd: int, size: int) -> list[tuple[int, int]]:
    """The parts of a file that are not in the page cache, as (offset, length) in bytes, whole pages.

    For files that this user cannot write, the kernel reports every page as present, so their pages stay cached.
    """
    pages = -(-size // mmap.PAGESIZE)
    if not pages:
        return []
    residency = (ctypes.c_ubyte * pages)()
    try:
        mapping = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    except ValueError:
        return []  # it shrank meanwhile: carbon is creating it anew, which the reading will notice
    with mapping as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        try:
            if LIBC.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), residency):
                return []
        finally:
            del start  # or the mapping could not be closed
    present = bytes(residency).translate(_LOWEST_BIT)
    absent = []
    begin = present.find(b"\0")
    while begin >= 0:
        end = present.find(b"\1", begin)
        end = end if end >= 0 else pages
        absent.append((begin * mmap.PAGESIZE, (end - begin) * mmap.PAGESIZE))
        begin = present.find(b"\0", end)
    return absent


_LOWEST_BIT = bytes(byte & 1 for byte in range(256))  # the others are reserved


def drop_pages(fd: int, parts: list[tuple[int, int]]) -> None:
    """Drop pages that only our reading brought in, or reading a tree would push out those that carbon needs."""
    for offset, length in parts:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
