"""Objects to be deleted: gathered where they are found, deleted many at a time."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from typing import NamedTuple

from whisperbackup.storage.base import Driver

KEYS_AT_ONCE = 1000  # what one request can name where the service is at its best


class PendingDelete(NamedTuple):
    """Keys that are counted once, under the name `counter`, when all of them are gone.

    `last` are keys that are deleted only when `keys` are gone.  Among `keys` no order is promised: the services delete
    a request's keys in any order, and whichever half of a backup stays alone is debris, which is never restored.
    """

    counter: str
    keys: tuple[str, ...]
    last: tuple[str, ...] = ()


class Deletion(NamedTuple):
    """A job for one worker; `name` stands for it in an error."""

    name: str
    pending: list[PendingDelete]


class Deleter:
    """Holds what is to be deleted until it is worth a request.

    A PendingDelete is never divided between jobs: workers take no notice of each other, so nobody could tell
    when the last of its keys is gone.
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

    def full_jobs(self) -> Iterator[Deletion]:
        """Jobs for as long as there are enough keys for a whole request."""
        while self._size >= KEYS_AT_ONCE:
            yield self._next_job()

    def flush(self) -> Iterator[Deletion]:
        """Jobs for everything that is left."""
        while self._pending:
            yield self._next_job()

    def _next_job(self) -> Deletion:
        job = [self._pending.popleft()]
        size = _size(job[0])
        while self._pending and size + _size(self._pending[0]) <= KEYS_AT_ONCE:
            size += _size(self._pending[0])
            job.append(self._pending.popleft())
        self._size -= size
        return Deletion(f"deleting {size} objects", job)


def _size(pending: PendingDelete) -> int:
    return len(pending.keys) + len(pending.last)


def carry_out(deletion: Deletion, driver: Driver) -> dict[str, int]:
    """Delete, and the counters to add for it.  Raises StorageError; then some of the keys may be gone, uncounted."""
    for keys in (
        [key for one in deletion.pending for key in one.keys],
        [key for one in deletion.pending for key in one.last],
    ):
        if keys:
            driver.delete(keys)
    return dict(Counter(one.counter for one in deletion.pending))
