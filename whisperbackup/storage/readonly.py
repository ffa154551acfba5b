"""A wrapper around any driver for --noop: reads pass, writes are accepted and forgotten."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from whisperbackup.storage.base import Driver, NotFound, RangedDriver, StoredObject, is_marked, list_range


class ReadOnly:
    """A driver under which nothing changes.

    With `absent_is_empty` a bucket that does not exist lists nothing, as the one that a real run would create.
    """

    def __init__(self, driver: Driver, absent_is_empty: bool) -> None:
        self._driver = driver
        self._absent_is_empty = absent_is_empty
        self.threads = driver.threads
        self.is_ranged = isinstance(driver, RangedDriver) and driver.is_ranged

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """As the wrapped driver."""
        try:
            yield from self._driver.list(prefix)
        except NotFound:
            if not self._absent_is_empty:
                raise

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        """As the wrapped driver, if it can begin a listing anywhere; else a part of its listing."""
        try:
            yield from list_range(self._driver, prefix, after, until)
        except NotFound:
            if not self._absent_is_empty:
                raise

    def get(self, key: str) -> bytes:
        """As the wrapped driver."""
        return self._driver.get(key)

    def put(self, key: str, body: bytes) -> None:
        """Nothing."""

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Nothing."""
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Nothing."""

    def is_marked(self) -> bool:
        """As the wrapped driver, if it knows markers."""
        return is_marked(self._driver)

    def mark(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Close the wrapped driver."""
        self._driver.close()
