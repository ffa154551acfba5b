"""How a worker keeps out of carbon's way: read bandwidth, priorities, the page cache."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
import time
from collections.abc import Iterator

logger = logging.getLogger(__name__)

PIECE = 256 * 1024  # bytes read between two looks at the clock
PAUSE = 0.01  # seconds; shorter sleeps are gathered
LOWEST = 19
LIBC = ctypes.CDLL(None)
# linux/ioprio.h, linux/unistd.h; the C library has no functions for these
IOPRIO_WHO_PROCESS, IOPRIO_IDLE, IOPRIO_BEST_EFFORT = 1, 3 << 13, 2 << 13 | 4
IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "ppc64le": 273, "s390x": 282}.get(os.uname().machine)


class Throttle:
    """One worker's manners; safe to use from all its threads."""

    def __init__(self, bandwidth: float | None = None, is_nice: bool = False) -> None:
        """At most `bandwidth` bytes a second (None: as many as come); with `is_nice` at the lowest priority.

        Make it before the threads: they inherit the priority.
        """
        self._bandwidth = bandwidth
        self._lock = threading.Lock()
        self._next = time.monotonic()
        self._normal = os.getpriority(os.PRIO_PROCESS, 0)
        self._lowest = LOWEST if is_nice and _can_come_back(self._normal) else self._normal
        self._is_nice = is_nice
        self._lower_priority()

    @property
    def is_slow(self) -> bool:
        """Whether reading must be paced."""
        return self._bandwidth is not None

    def fill_cache(self, fd: int, size: int) -> None:
        """Have the page cache hold the first `size` bytes of a file, no faster than agreed."""
        piece = bytearray(PIECE)
        for offset in range(0, size, PIECE):
            self._pace(min(PIECE, size - offset))
            os.preadv(fd, [piece], offset)

    def _pace(self, size: int) -> None:
        """Sleep for as long as `size` bytes may take."""
        if self._bandwidth is None:
            return
        with self._lock:
            now = time.monotonic()
            self._next = max(self._next, now) + size / self._bandwidth
            pause = self._next - now
        if pause > PAUSE:
            time.sleep(pause)

    @contextlib.contextmanager
    def normal_priority(self) -> Iterator[None]:
        """Normal priority for this thread while it holds what carbon may be waiting for."""
        if not self._is_nice:
            yield
            return
        os.setpriority(os.PRIO_PROCESS, 0, self._normal)
        _set_io_priority(IOPRIO_BEST_EFFORT)
        try:
            yield
        finally:
            self._lower_priority()

    def _lower_priority(self) -> None:
        if self._is_nice:
            os.setpriority(os.PRIO_PROCESS, 0, self._lowest)
            _set_io_priority(IOPRIO_IDLE)


def _can_come_back(normal: int) -> bool:
    """Whether this user may raise a priority again; on Linux a priority is a thread's, so one that ends can try."""
    could: list[bool] = []

    def attempt() -> None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, LOWEST)
            os.setpriority(os.PRIO_PROCESS, 0, normal)
            could.append(True)
        except OSError:
            logger.debug("only the I/O priority is lowered: this user may not raise the other one again")

    trial = threading.Thread(target=attempt)
    trial.start()
    trial.join()
    return bool(could)


def _set_io_priority(priority: int) -> None:
    """The I/O priority of the calling thread; where that is unknown, nothing."""
    if IOPRIO_SET is not None:
        LIBC.syscall(IOPRIO_SET, IOPRIO_WHO_PROCESS, 0, priority)
