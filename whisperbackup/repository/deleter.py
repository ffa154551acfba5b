"""Objects to be deleted: gathered where they are found, deleted many at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from whisperbackup.repository.outcome import Outcome, PendingDelete
from whisperbackup.storage.base import Driver

KEYS_AT_ONCE = 1000  # what one request can name where the service is at its best


class HasDriver(Protocol):
    """The context of jobs that need the store alone."""

    driver: Driver
    noop: bool


class DeleteObjects(NamedTuple):
    """Delete what is pending; `name` stands for it in an error."""

    name: str
    pending: tuple[PendingDelete, ...]
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Delete; what is counted is gone.  Raises StorageError; then some of the keys may be gone, uncounted."""
        for keys in (
            [key for one in self.pending for key in one.keys],
            [key for one in self.pending for key in one.last],
        ):
            if keys:
                context.driver.delete(keys)
        return Outcome(self.name, Counter(one.counter for one in self.pending))


class Deleter:
    """Holds what is to be deleted until it is worth a request.

    A PendingDelete is never divided between jobs: workers know nothing of each other, so nobody could tell when the
    last of its keys is gone.
    """

    def __init__(self) -> None:
        self._pending: deque[PendingDelete] = deque()
        self._size = 0  # keys

    def add(self, *pending: PendingDelete) -> None:
        """Have these deleted with one of the next jobs."""
        for one in pending:
            if size := _size(one):
                self._pending.append(one)
                self._size += size

    def full_jobs(self) -> Iterator[DeleteObjects]:
        """Jobs for as long as there are enough keys for a whole request."""
        while self._size >= KEYS_AT_ONCE:
            yield self._next_job()

    def flush(self) -> Iterator[DeleteObjects]:
        """Jobs for everything that is left."""
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
