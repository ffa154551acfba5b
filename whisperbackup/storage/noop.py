"""A store that keeps nothing: what a backup would cost on this machine alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from whisperbackup.storage.base import Driver, NotFound, StoredObject, keyword_arguments


class Noop:
    """Accepts everything, holds nothing."""

    threads = 1

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Nothing."""
        return iter(())

    def get(self, key: str) -> bytes:
        """Raises NotFound."""
        raise NotFound(f"the noop store holds nothing, not '{key}' either")

    def put(self, key: str, body: bytes) -> None:
        """Forget `body`."""

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Forget `objects`."""
        return True

    def delete(self, keys: Iterable[str]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def open(bucket: str, create: bool, arguments: list[str]) -> Driver:
    """The store that keeps nothing; takes no arguments."""
    keyword_arguments(arguments, None, ())
    return Noop()
