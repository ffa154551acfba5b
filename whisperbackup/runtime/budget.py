"""Bytes in flight in one worker process, bounded."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

BYTES_IN_FLIGHT = 64 * 1024 * 1024


class Budget:
    """Bytes in flight in one process, bounded; one file alone may exceed the bound."""

    def __init__(self, limit: int = BYTES_IN_FLIGHT) -> None:
        self._limit = limit
        self._taken = 0
        self._freed = threading.Condition()

    @contextlib.contextmanager
    def take(self, size: int) -> Iterator[None]:
        """Hold `size` bytes of the budget, waiting until they are free."""
        with self._freed:
            self._freed.wait_for(lambda: self._taken == 0 or self._taken + size <= self._limit)
            self._taken += size
        try:
            yield
        finally:
            with self._freed:
                self._taken -= size
                self._freed.notify_all()
