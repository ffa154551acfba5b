"""A limit on the bytes of file content in memory in one worker process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

BYTES_IN_FLIGHT = 64 * 1024 * 1024


class Budget:
    """A limit on the bytes in memory; a single file may exceed it."""

    def __init__(self, limit: int = BYTES_IN_FLIGHT) -> None:
        self._limit = limit
        self._taken = 0
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Reserve `size` bytes; wait until they are free."""
        with self._freed:
            self._freed.wait_for(lambda: self._taken == 0 or self._taken + size <= self._limit)
            self._taken += size
        try:
            yield
        finally:
            with self._freed:
                self._taken -= size
                self._freed.notify_all()
