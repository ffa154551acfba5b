"""A long listing by several threads at once: a service needs a tenth of a second or more for a page of 1000 keys.

The caller names split keys, which are approximately the keys in the store, in ascending order (others are ignored).
A window is the range between two split keys.  The next few windows are listed at the same time, and their objects
are yielded in order.
"""

from __future__ import annotations

import collections
import itertools
import logging
import queue
import threading
from collections.abc import Iterable, Iterator
from typing import TypeGuard

from whisperbackup.storage.base import Driver, RangedDriver, StartAfterUnsupported, StoredObject

logger = logging.getLogger(__name__)

AT_ONCE = 8
MANY = 1900  # objects that a window should hold: almost two pages of S3; what a last page holds beyond it is lost
START_WIDTH, MAX_WIDTH = 8, 64  # split keys from one end of a window to the other
BATCH, BATCHES = 500, 6  # objects in a batch, and batches of a window in memory before it is read


def list_in_windows(driver: Driver, prefix: str, split_keys: Iterable[str]) -> Iterator[StoredObject]:
    """Like `driver.list(prefix)`, but faster if the driver can list ranges; `split_keys` are read as needed.

    If the service does not support ranges correctly, the listing continues as a single one.
    """
    if not is_ranged(driver):
        yield from driver.list(prefix)
        return
    last = ""
    try:
        for found in _in_windows(driver, prefix, split_keys):
            yield found
            last = found.key
    except StartAfterUnsupported as error:
        logger.info("%s; listing it with one request at a time", error)
        yield from itertools.dropwhile(lambda found: found.key <= last, driver.list(prefix))


def _in_windows(driver: RangedDriver, prefix: str, split_keys: Iterable[str]) -> Iterator[StoredObject]:
    ahead = _ascending(split_keys)
    windows: collections.deque[_Window] = collections.deque()
    to_list: queue.SimpleQueue[_Window | None] = queue.SimpleQueue()
    threads = 0
    after: str | None = ""
    width = START_WIDTH
    try:
        while True:
            while after is not None and len(windows) < AT_ONCE:
                until = next(itertools.islice(ahead, width - 1, None), None)
                windows.append(_Window(driver, prefix, after, until or "", width))
                to_list.put(windows[-1])
                after = until
                if threads < AT_ONCE:
                    # A daemon, so that the run can end without it.
                    threading.Thread(target=_list_all, args=[to_list], daemon=True).start()
                    threads += 1
            if not windows:
                return
            count = 0
            for batch in windows[0].batches():
                count += len(batch)
                yield from batch
            width = next_width(windows.popleft().width, count)
    finally:
        for window in windows:
            window.abandon()
        for _ in range(threads):
            to_list.put(None)


def next_width(width: int, count: int) -> int:
    """The width of windows to come, after one of this width that held `count` objects."""
    return max(1, min(MAX_WIDTH, width * 2, width * MANY // max(1, count)))


def _ascending(keys: Iterable[str]) -> Iterator[str]:
    """Those of `keys` that are greater than all before them, so that windows cover every key exactly once."""
    last = ""
    for key in keys:
        if key > last:
            yield key
            last = key


def is_ranged(driver: Driver) -> TypeGuard[RangedDriver]:
    """Whether the driver, or what it wraps, can list ranges."""
    return isinstance(driver, RangedDriver) and driver.is_ranged


class _Window:
    """One window, listed by one thread and read by another."""

    def __init__(self, driver: RangedDriver, prefix: str, after: str, until: str, width: int) -> None:
        self.width = width  # in split keys
        self._objects = driver.list_range(prefix, after, until)
        self._queue: queue.Queue[list[StoredObject] | BaseException] = queue.Queue(BATCHES)
        self._is_abandoned = False

    def fill(self) -> None:
        """List the window; wait while as much is in memory as may be."""
        try:
            while not self._is_abandoned and (batch := list(itertools.islice(self._objects, BATCH))):
                self._queue.put(batch)
            self._queue.put([])
        except BaseException as error:  # noqa: BLE001  (raised again where the listing is read)
            self._queue.put(error)

    def batches(self) -> Iterator[list[StoredObject]]:
        """Yield the window's objects.  Raises the exception of its listing."""
        while batch := self._queue.get():
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def abandon(self) -> None:
        """Stop the thread after its current request."""
        self._is_abandoned = True
        while not self._queue.empty():
            self._queue.get_nowait()


def _list_all(windows: queue.SimpleQueue[_Window | None]) -> None:
    """List one window after another, until None."""
    while (window := windows.get()) is not None:
        window.fill()
