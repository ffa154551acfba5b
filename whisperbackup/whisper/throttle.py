"""How fast a worker reads, and with what priority."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

CHUNK = 256 * 1024  # bytes read between two looks at the clock
MIN_PAUSE = 0.01  # seconds; shorter ones are added up
LOWEST = 19
LIBC = ctypes.CDLL(None)
# linux/ioprio.h, linux/unistd.h; the C library has no functions for these
IOPRIO_WHO_PROCESS, IOPRIO_IDLE = 1, 3 << 13
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "ppc64le": 273, "s390x": 282}.get(os.uname().machine)


class Throttle:
    """The limits of one worker; safe to use from all its threads."""

    def __init__(self, bandwidth: float | None = None, is_nice: bool = False) -> None:
        """Read at most `bandwidth` bytes a second (None: no limit); with `is_nice` at the lowest priority.

        Make it before the threads: they inherit the priority.
        """
        self._bandwidth = bandwidth
        self._lock = threading.Lock()
        self._next = time.monotonic()
        self._normal = os.getpriority(os.PRIO_PROCESS, 0)
        self.is_nice = is_nice and _may_raise_again(self._normal)
        if self.is_nice:
            os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
        if is_nice and IOPRIO_SET is not None:
            LIBC.syscall(IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE)

    def fill_cache(self, fd: int, size: int) -> None:
        """Bring the first `size` bytes of a file into the page cache, within the bandwidth."""
        chunk = bytearray(CHUNK)
        for offset in range(0, size, CHUNK):
            self._pace(min(CHUNK, size - offset))
            os.preadv(fd, [chunk], offset)

    def _pace(self, size: int) -> None:
        """Sleep for as long as `size` bytes may take."""
        if self._bandwidth is None:
            return
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now) + size / self._bandwidth
            pause = self._next - now
        if pause > MIN_PAUSE:
            time.sleep(pause)

    @contextlib.contextmanager
    def normal_priority(self) -> Iterator[None]:
        """Normal CPU priority for this thread while it holds a lock that carbon may wait for.

        The I/O priority stays: what is read under the lock is in the page cache.
        """
        if not self.is_nice:
            yield
            return
        os.setpriority(os.PRIO_PROCESS, 0, self._normal)
        try:
            yield
        finally:
            os.setpriority(os.PRIO_PROCESS, 0, LOWEST)


def _may_raise_again(normal: int) -> bool:
    """Whether this user may raise a lowered priority: tried in a thread, since on Linux each has its own."""

    def lower_and_raise() -> None:
        os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
        os.setpriority(os.PRIO_PROCESS, 0, normal)

    with ThreadPoolExecutor(1) as trial:
        return trial.submit(lower_and_raise).exception() is None
