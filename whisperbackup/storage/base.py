"""What every storage driver promises: the Driver protocol, the objects it lists, the errors it raises.

A driver keeps objects (bytes under a key) in one bucket.  It knows nothing about metrics, backups or
options.  Keys are non-empty Unicode strings; their order is that of their UTF-8 bytes, which is also
the order of Python's strings.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

from whisperbackup.errors import (  # drivers find all that they need here
    AccessDenied as AccessDenied,
)
from whisperbackup.errors import (
    Exists as Exists,
)
from whisperbackup.errors import (
    NotFound as NotFound,
)
from whisperbackup.errors import (
    StartAfterUnsupported as StartAfterUnsupported,
)
from whisperbackup.errors import (
    StorageError as StorageError,
)
from whisperbackup.errors import (
    Unavailable as Unavailable,
)
from whisperbackup.errors import (
    UsageError as UsageError,
)


class StoredObject(NamedTuple):
    """One line of a listing: `size` in bytes as stored, `md5` of the content in lower-case hex, or None if unknown."""

    key: str
    size: int
    md5: str | None


FIRST = "\1"
"""Behind a key it makes the next one that a service can be asked about; none of ours lies between."""


class Driver(Protocol):
    """One open bucket.  Safe to use from `threads` threads at once, never from two processes."""

    threads: int
    """How many requests the service likes in flight from one process; 1 where more gain nothing."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """The objects whose key begins with `prefix` (a plain string, not a folder), ascending, streaming."""

    def get(self, key: str) -> bytes:
        """The content of `key`.  Raises NotFound."""

    def put(self, key: str, body: bytes) -> None:
        """Store `body`, replacing what was there.

        Durable when it returns, and all or nothing: no reader ever sees half an object.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Remove `keys`, in as few requests as the service allows; a missing key is no error.

        Tries all of them before it raises a StorageError that names the first that stayed and counts the rest;
        only a store that does not answer any more (Unavailable) ends it early.
        """

    def close(self) -> None:
        """Let go of connections and files."""


@runtime_checkable
class CreatingDriver(Driver, Protocol):
    """A driver that can store objects without replacing what another run has put there meanwhile."""

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Store keys and bodies in this order, durable when it returns: who sees one of them sees those before it.

        Raises Exists for the first key that is there with another content; what comes before it is stored then.
        One with the same content is as good as stored: it may be our own, by a request whose answer was lost.
        Returns whether nothing was replaced for sure: False where the service may not know such a condition.
        """


def create_all(driver: Driver, objects: Sequence[tuple[str, bytes]]) -> bool:
    """As CreatingDriver has it; a driver that can only replace does so, and it returns False."""
    if isinstance(driver, CreatingDriver):
        return driver.create_all(objects)
    return look_and_put(driver, objects)


def look_and_put(driver: Driver, objects: Sequence[tuple[str, bytes]]) -> bool:
    """As `create_all` where nothing refuses to replace an object: another run may still come in between.  False."""
    keys = [key for key, _ in objects]
    there = {found.key for found in driver.list(os.path.commonprefix(keys))}  # noqa: RUF071  (keys are strings)
    for key, body in objects:
        if key not in there:
            driver.put(key, body)
        elif not holds(driver, key, body):
            raise Exists(key)
    return False


def holds(driver: Driver, key: str, body: bytes) -> bool:
    """Whether `key` is there with this content."""
    try:
        return driver.get(key) == body
    except NotFound:
        return False


@runtime_checkable
class MarkedDriver(Driver, Protocol):
    """A driver whose store may be absent while its place is there, as a directory on which no disk is mounted."""

    def is_marked(self) -> bool:
        """Whether the store itself is there, and not only its place."""

    def mark(self) -> None:
        """Make it known by a marker that no listing shows and nothing deletes.

        Durable when it returns.  Raises StorageError, also where the marker is there and nothing can be written.
        """


def is_marked(driver: Driver) -> bool:
    """Whether the store is surely there; so is each that needs no marker."""
    return not isinstance(driver, MarkedDriver) or driver.is_marked()


def mark(driver: Driver) -> None:
    """Mark the store, if it is of a kind that needs it."""
    if isinstance(driver, MarkedDriver):
        driver.mark()


@runtime_checkable
class RangedDriver(Driver, Protocol):
    """A driver whose service can begin and end a listing anywhere: several parts of it can be listed at once."""

    is_ranged: bool
    """Whether that is faster; False for a directory, and for a wrapper around a driver that cannot."""

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        """As `list`, but only keys greater than `after` and not greater than `until` (empty: to the end).

        Raises StartAfterUnsupported where a service that most speak like takes no notice of `after`.
        """


def list_range(driver: Driver, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
    """As `RangedDriver.list_range`, for any driver; one that cannot is listed from the beginning."""
    if isinstance(driver, RangedDriver):
        yield from driver.list_range(prefix, after, until)
        return
    for found in driver.list(prefix):
        if until and found.key > until:
            return
        if found.key > after:
            yield found


Opener = Callable[[str, bool, list[str]], Driver]
"""`open(bucket, create, arguments)`, which every driver's module has.

`create` says whether an absent bucket is to be made; without it an absent bucket raises NotFound.
`arguments` are the words after the driver's name on the command line: `name=value`, or one bare value.
Raises UsageError for arguments that the driver does not know.
"""


def keyword_arguments(words: list[str], bare: str | None, known: Iterable[str]) -> dict[str, str]:
    """`words` of the form `name=value` as a dict; one word without `=` is the value of the name `bare`.

    Raises UsageError for a name that is not in `known`, and for a name given twice.
    """
    names = sorted(known)
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and bare:
            name, value = bare, word
        if name not in names:
            takes = f"it takes {', '.join(f'{n}=' for n in names)}" if names else "it takes none"
            raise UsageError(f"unknown storage argument '{name}': {takes}")  # its value may be a secret
        if name in values:
            raise UsageError(f"storage argument '{name}' is given twice")
        values[name] = value
    return values


def silence(*libraries: str) -> None:
    """Keep what client libraries log below WARNING out of our logs at every level: it holds tokens and signatures."""
    for name in libraries:
        logging.getLogger(name).setLevel(logging.WARNING)


def batches(keys: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    """`keys` in portions of at most `size`."""
    remaining = iter(keys)
    while batch := tuple(islice(remaining, size)):
        yield batch
