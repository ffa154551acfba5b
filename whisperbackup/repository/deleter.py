"""Objects to delete: they are collected where they are found, and deleted many at a time."""

from __future__ import annotations

import enum
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from whisperbackup.report.counters import Count
from whisperbackup.repository.outcome import Outcome, PendingDelete
from whisperbackup.storage.base import LOCKED, AccessDenied, Driver, NotDeleted

KEYS_AT_ONCE = 1000  # the most that any service accepts in one request
NAMED = 20  # protected objects of one request that are named
NO_RIGHT = "if these credentials may not delete on purpose, run backup with --no-delete"


class HasDriver(Protocol):
    """The context of jobs that need only the store."""

    driver: Driver
    noop: bool


class Protected(enum.Enum):
    """What it is if the store refuses to delete single objects."""

    FAILS = "one failure of the request, whose reason names the first"
    IS_NAMED = "each is counted, and a failure"
    IS_FINE = "each is counted"


class DeleteObjects(NamedTuple):
    """Delete the pending objects; an error shows `name`."""

    name: str
    pending: tuple[PendingDelete, ...]
    protected: Protected = Protected.FAILS
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Delete the keys; counted ones are deleted.  After a StorageError some may be deleted but not counted."""
        try:
            return self._delete(context.driver)
        except (NotDeleted, AccessDenied) as error:
            if isinstance(error, NotDeleted) and not error.is_denied:
                raise
            remedy = "" if self.protected is not Protected.FAILS else f"; {NO_RIGHT}"
            return Outcome(self.name, {}, (f"{error}{remedy}",), store_failed=isinstance(error, AccessDenied))

    def _delete(self, driver: Driver) -> Outcome:
        stayed: dict[str, str] = {}
        errors: list[str] = []
        refused: dict[str, str] = {}
        for is_last in (False, True):
            left = [one for one in self.pending if not is_last or not stayed.keys() & set(one.keys)]
            batch = [key for one in left for key in (one.last if is_last else one.keys)]
            try:
                if batch:
                    driver.delete(batch)
            except NotDeleted as error:
                if self.protected is Protected.FAILS:
                    raise
                refused |= error.refused
                stayed |= {**error.refused, **error.failed}
                if error.failed:
                    errors.append(str(error))
        if self.protected is not Protected.IS_FINE:
            errors += [f"'{key}' is protected: {reason}" for key, reason in itertools.islice(refused.items(), NAMED)]
            if len(refused) > NAMED:
                errors.append(f"{len(refused) - NAMED} more objects are protected")
        done = [one for one in self.pending if not stayed.keys() & {*one.keys, *one.last}]
        counts = Counter(one.counter for one in done)
        if refused:
            counts[Count.PROTECTED] = len(refused)
        unexplained = sum(not LOCKED.search(reason) for reason in refused.values())
        return Outcome(self.name, counts, tuple(errors), unexplained=unexplained)


class Deleter:
    """Collects pending deletes until they fill a request.

    A PendingDelete is never split between jobs: workers do not know of each other, so none could determine when the
    last of its keys is deleted.
    """

    def __init__(self, skip: Callable[[int], None] | None = None, protected: Protected = Protected.FAILS) -> None:
        """With `skip` nothing is deleted: it is called with the number of keys instead."""
        self._protected = protected
        self._skip = skip
        self._pending: deque[PendingDelete] = deque()
        self._size = 0  # keys

    def add(self, *pending: PendingDelete) -> None:
        """Add these to the next jobs."""
        for one in pending:
            size = size_of(one)
            if self._skip:
                self._skip(size)
            elif size:
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
        size = size_of(job[0])
        while self._pending and size + size_of(self._pending[0]) <= KEYS_AT_ONCE:
            size += size_of(self._pending[0])
            job.append(self._pending.popleft())
        self._size -= size
        return DeleteObjects(f"deleting {size} objects", tuple(job), self._protected)


def size_of(pending: PendingDelete) -> int:
    """How many keys it has."""
    return len(pending.keys) + len(pending.last)
