"""A wrapper around any driver for --noop: it passes reads on, and accepts and discards writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from whisperbackup.storage.base import (
    Driver,
    NotFound,
    OnUnreadable,
    RangedDriver,
    StoredObject,
    get_range,
    is_marked,
    list_range,
    on_unreadable,
)


class ReadOnly:
    """A driver that changes nothing in the store.

    With `absent_is_empty` a bucket that does not exist lists as empty, like the one that a real run would create.
    """

    def __init__(self, driver: Driver, absent_is_empty: bool) -> None:
        self._driver = driver
        self._absent_is_empty = absent_is_empty
        self.threads = driver.threads
        self.is_ranged = isinstance(driver, RangedDriver) and driver.is_ranged

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Like the wrapped driver."""
        try:
            yield from self._driver.list(prefix)
        except NotFound:
            if not self._absent_is_empty:
                raise

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        """Like the wrapped driver, if it can list ranges; otherwise part of its whole listing."""
        try:
            yield from list_range(self._driver, prefix, after, until)
        except NotFound:
            if not self._absent_is_empty:
                raise

    def get(self, key: str) -> bytes:
        """Like the wrapped driver."""
        return self._driver.get(key)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Like the wrapped driver."""
        return get_range(self._driver, key, offset, length)

    def put(self, key: str, body: bytes) -> None:
        """Do nothing."""

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Do nothing."""
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Do nothing."""

    def on_unreadable(self, report: OnUnreadable) -> None:
        """Like the wrapped driver, if it has folders."""
        on_unreadable(self._driver, report)

    def is_marked(self) -> bool:
        """Like the wrapped driver, if it uses markers."""
        return is_marked(self._driver)

    def mark(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Close the wrapped driver."""
        self._driver.close()
