"""A long listing by several threads at once: a page of a thousand keys takes a service a tenth of a second, and more.

Somebody who knows about which keys are there names milestones, keys in ascending order (others are passed over).
What lies between two of them is a window; the windows next in turn are listed at the same time, and what they hold
is handed on in order.
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

AT_ONCE = 6
MANY = 700  # objects that a window should hold: a page of S3 has a thousand, and a second page is a second request
START_WIDTH, MAX_WIDTH = 8, 64  # milestones from one end of a window to the other
BATCH, BATCHES = 500, 4  # what a window holds in memory before its turn comes


def list_in_windows(driver: Driver, prefix: str, milestones: Iterable[str]) -> Iterator[StoredObject]:
    """As `driver.list(prefix)`, faster if the driver can list ranges; milestones are taken as they are needed.

    A service where ranges are not what they should be is listed as a whole.
    """
    if not is_ranged(driver):
        yield from driver.list(prefix)
        return
    last = ""
    try:
        for found in _in_windows(driver, prefix, milestones):
            yield found
            last = found.key
    except StartAfterUnsupported as error:
        logger.info("%s: one request at a time lists it", error)
        yield from itertools.dropwhile(lambda found: found.key <= last, driver.list(prefix))


def _in_windows(driver: RangedDriver, prefix: str, milestones: Iterable[str]) -> Iterator[StoredObject]:
    ahead = _ascending(milestones)
    windows: collections.deque[_Window] = collections.deque()
    after: str | None = ""
    width = START_WIDTH
    try:
        while True:
            while after is not None and len(windows) < AT_ONCE:
                until = next(itertools.islice(ahead, width - 1, None), None)
                windows.append(_Window(driver, prefix, after, until or ""))
                after = until
            if not windows:
                return
            count = 0
            for batch in windows[0].batches():
                count += len(batch)
                yield from batch
            windows.popleft()
            width = max(1, min(MAX_WIDTH, width * 2, width * MANY // max(1, count)))
    finally:
        for window in windows:
            window.abandon()


def _ascending(keys: Iterable[str]) -> Iterator[str]:
    """Those of `keys` that are greater than all before them: windows must cover every key once, wherever they end."""
    last = ""
    for key in keys:
        if key > last:
            yield key
            last = key


def is_ranged(driver: Driver) -> TypeGuard[RangedDriver]:
    """Whether the driver, or what it wraps, can list ranges."""
    return isinstance(driver, RangedDriver) and driver.is_ranged


class _Window:
    """One window, being listed by a thread of its own."""

    def __init__(self, driver: RangedDriver, prefix: str, after: str, until: str) -> None:
        self._objects = driver.list_range(prefix, after, until)
        self._queue: queue.Queue[list[StoredObject] | BaseException] = queue.Queue(BATCHES)
        self._is_abandoned = False
        threading.Thread(target=self._fill, daemon=True).start()  # at the end of a run nobody waits for it

    def _fill(self) -> None:
        try:
            while batch := list(itertools.islice(self._objects, BATCH)):
                self._queue.put(batch)
                if self._is_abandoned:
                    return
            self._queue.put([])
        except BaseException as error:  # noqa: BLE001  (raised again where the listing is read)
            self._queue.put(error)

    def batches(self) -> Iterator[list[StoredObject]]:
        """What the window holds.  Raises what its listing raised."""
        while batch := self._queue.get():
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def abandon(self) -> None:
        """Let the thread end as soon as it has what it is waiting for."""
        self._is_abandoned = True
        while not self._queue.empty():
            self._queue.get_nowait()
