"""Objects to delete: they are collected where they are found, and deleted many at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from whisperbackup.repository.outcome import Outcome, PendingDelete
from whisperbackup.storage.base import Driver

KEYS_AT_ONCE = 1000  # the most that any service accepts in one request


class HasDriver(Protocol):
    """The context of jobs that need only the store."""

    driver: Driver
    noop: bool


class DeleteObjects(NamedTuple):
    """Delete the pending objects; an error shows `name`."""

    name: str
    pending: tuple[PendingDelete, ...]
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Delete the keys; counted ones are deleted.  After a StorageError some may be deleted but not counted."""
        for keys in (
            [key for one in self.pending for key in one.keys],
            [key for one in self.pending for key in one.last],
        ):
            if keys:
                context.driver.delete(keys)
        return Outcome(self.name, Counter(one.counter for one in self.pending))


class Deleter:
    """Collects pending deletes until they fill a request.

    A PendingDelete is never split between jobs: workers do not know of each other, so none could determine when the
    last of its keys is deleted.
    """

    def __init__(self) -> None:
        self._pending: deque[PendingDelete] = deque()
        self._size = 0  # keys

    def add(self, *pending: PendingDelete) -> None:
        """Add these to the next jobs."""
        for one in pending:
            if size := _size(one):
                self._pending.append(one)
                self._size += size

    def full_jobs(self) -> Iterator[DeleteObjects]:
        """Yield jobs while the pending keys fill a whole request."""
        while self._size >= KEYS_AT_ONCE:
            yield self._next_job()

    def flush(self) -> Iterator[DeleteObjects]:
        """Yield jobs for all remaining keys."""
        while self._pending:
            yield self._next_job()

    def _next_job(self) -> DeleteObjects:
        job = [self._pending.popleft()]
        size = _size(job[0])
        while self._pending and size + _size(self._pending[0]) <= KEYS_AT_ONCE:
            size += _size(self._pending[0])
            job.append(self._pending.popleft())
        self._size -= size
        return DeleteObjects(f"deleting {size} objects", tuple(job))


def _size(pending: PendingDelete) -> int:
    return len(pending.keys) + len(pending.last)
