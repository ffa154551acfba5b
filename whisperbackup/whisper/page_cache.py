"""The page cache around one reading: which pages it lacks, and giving back those that it did not hold before."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os

from whisperbackup.whisper.throttle import LIBC


def absent_pages(fd: int, size: int) -> list[tuple[int, int]]:
    """The parts of a file that are not in the page cache, as (offset, length) in bytes, whole pages.

    The kernel says so only of files that this user might write to; of others it calls every page present.
    """
    pages = -(-size // mmap.PAGESIZE)
    if not pages:
        return []
    residency = (ctypes.c_ubyte * pages)()
    try:
        mapping = mmap.mmap(fd, size, access=mmap.ACCESS_COPY)
    except ValueError:
        return []  # it shrank meanwhile: carbon creates it anew, and whoever reads it will see
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


def give_back(fd: int, parts: list[tuple[int, int]]) -> None:
    """Let go of pages that nobody but us has asked for, or reading a tree would push out those that carbon needs."""
    for offset, length in parts:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
