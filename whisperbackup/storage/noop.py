"""A store that keeps nothing: it shows what a backup costs on this machine alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from whisperbackup.storage.base import Driver, NotFound, StoredObject, keyword_arguments


class Noop:
    """Accepts all writes and stores nothing."""

    threads = 1

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield nothing."""
        return iter(())

    def get(self, key: str) -> bytes:
        """Raise NotFound."""
        raise NotFound(f"'{key}' does not exist: the noop store keeps nothing; name another driver")

    def put(self, key: str, body: bytes) -> None:
        """Discard `body`."""

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Discard `objects`."""
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


def open(bucket: str, create: bool, arguments: list[str]) -> Driver:
    """Open the store that keeps nothing; this driver has no arguments."""
    keyword_arguments(arguments, None, ())
    return Noop()
