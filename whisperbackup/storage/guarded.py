"""A wrapper around any driver: it converts its libraries' exceptions to StorageErrors, and checks its listings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from whisperbackup.storage.base import (
    Driver,
    OnUnreadable,
    RangedDriver,
    StorageError,
    StoredObject,
    UsageError,
    create_all,
    get_range,
    in_range,
    is_marked,
    list_range,
    mark,
    modified,
    on_unreadable,
)


class Guarded:
    """A driver that raises only StorageError and UsageError, and whose listings are ascending or end with an error."""

    def __init__(self, driver: Driver, name: str, bucket: str, deletes: bool = True) -> None:
        """With `deletes` false no request to delete is ever sent."""
        self._driver = driver
        self._store = f"the {name} store '{bucket}'"
        self._name = name
        self._deletes = deletes
        self.threads = driver.threads
        self.is_ranged = isinstance(driver, RangedDriver) and driver.is_ranged

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Like the wrapped driver.  Raises UnsortedListing."""
        with guard(self._name):
            yield from in_range(self._driver.list(prefix), "", "", self._store)

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        """Like the wrapped driver, if it can list ranges; otherwise part of its whole listing."""
        with guard(self._name):
            yield from in_range(list_range(self._driver, prefix, after, until), after, until, self._store)

    def get(self, key: str) -> bytes:
        """Like the wrapped driver."""
        with guard(self._name):
            return self._driver.get(key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Like the wrapped driver, if it can read parts of objects; otherwise a part of the whole object."""
        with guard(self._name):
            return get_range(self._driver, key, offset, length)

    def put(self, key: str, body: bytes) -> None:
        """Like the wrapped driver."""
        with guard(self._name):
            self._driver.put(key, body)

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Like the wrapped driver."""
        with guard(self._name):
            return create_all(self._driver, objects)

    def delete(self, keys: Iterable[str]) -> None:
        """Like the wrapped driver, unless nothing may be deleted."""
        if self._deletes:
            with guard(self._name):
                self._driver.delete(keys)

    def on_unreadable(self, report: OnUnreadable) -> None:
        """Like the wrapped driver, if it has folders."""
        on_unreadable(self._driver, report)

    def is_marked(self) -> bool:
        """Like the wrapped driver, if it uses markers."""
        with guard(self._name):
            return is_marked(self._driver)

    def mark(self) -> None:
        """Like the wrapped driver, if it uses markers."""
        with guard(self._name):
            mark(self._driver)

    def modified(self, key: str) -> float | None:
        """Like the wrapped driver, if it can tell."""
        with guard(self._name):
            return modified(self._driver, key)

    def close(self) -> None:
        """Like the wrapped driver."""
        with guard(self._name):
            self._driver.close()


@contextlib.contextmanager
def guard(name: str) -> Iterator[None]:
    """Convert an unexpected exception to a StorageError that names the driver and the exception."""
    try:
        yield
    except (StorageError, UsageError):
        raise
    except (Exception, SystemExit) as error:
        raise StorageError(f"the driver {name} failed unexpectedly: {type(error).__name__}: {error}") from error
