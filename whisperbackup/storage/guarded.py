"""A wrapper around any driver: whatever its libraries raise comes out as a StorageError."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

from whisperbackup.storage.base import (
    Driver,
    RangedDriver,
    StorageError,
    StoredObject,
    UsageError,
    create_all,
    is_marked,
    list_range,
    mark,
)


class Guarded:
    """A driver whose every exception is of the one family, as callers rely on; the drivers' own mapping comes first."""

    def __init__(self, driver: Driver, name: str) -> None:
        self._driver = driver
        self._name = name
        self.threads = driver.threads
        self.is_ranged = isinstance(driver, RangedDriver) and driver.is_ranged

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As the wrapped driver."""
        with guard(self._name):
            yield from self._driver.list(prefix)

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        """As the wrapped driver, if it can begin a listing anywhere; else a part of its listing."""
        with guard(self._name):
            yield from list_range(self._driver, prefix, after, until)

    def get(self, key: str) -> bytes:
        """As the wrapped driver."""
        with guard(self._name):
            return self._driver.get(key)

    def put(self, key: str, body: bytes) -> None:
        """As the wrapped driver."""
        with guard(self._name):
            self._driver.put(key, body)

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """As the wrapped driver."""
        with guard(self._name):
            return create_all(self._driver, objects)

    def delete(self, keys: Iterable[str]) -> None:
        """As the wrapped driver."""
        with guard(self._name):
            self._driver.delete(keys)

    def is_marked(self) -> bool:
        """As the wrapped driver, if it knows markers."""
        with guard(self._name):
            return is_marked(self._driver)

    def mark(self) -> None:
        """As the wrapped driver, if it knows markers."""
        with guard(self._name):
            mark(self._driver)

    def close(self) -> None:
        """As the wrapped driver."""
        with guard(self._name):
            self._driver.close()


@contextlib.contextmanager
def guard(name: str) -> Iterator[None]:
    """Turn what is not of the family into a StorageError that names the driver and the exception."""
    try:
        yield
    except (StorageError, UsageError):
        raise
    except (Exception, SystemExit) as error:
        raise StorageError(f"the driver {name} failed unexpectedly: {type(error).__name__}: {error}") from error
