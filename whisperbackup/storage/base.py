"""What every storage driver promises: the Driver protocol, the objects it lists, the errors it raises.

A driver keeps objects (bytes under a key) in one bucket.  It knows nothing about metrics, backups or
options.  Keys are non-empty Unicode strings; their order is that of their UTF-8 bytes, which is also
the order of Python's strings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable


class StoredObject(NamedTuple):
    """One line of a listing: `size` in bytes as stored, `md5` of the content in lower-case hex, or None if unknown."""

    key: str
    size: int
    md5: str | None


class StorageError(Exception):
    """The store could not do what was asked; the text names the thing and the remedy."""


class NotFound(StorageError):
    """The bucket or the key does not exist."""


class AccessDenied(StorageError):
    """The store knows who asks, or not, and refuses."""


class Unranged(StorageError):
    """The service does not begin a listing where it was asked to."""


class Unavailable(StorageError):
    """The store did not answer, or not usefully, also after the client library's retries."""


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
class BatchDriver(Driver, Protocol):
    """A driver that can make several objects durable at once for less than it costs one by one."""

    def put_all(self, objects: Sequence[tuple[str, bytes]]) -> None:
        """As `put` of each key and body, in this order; durable when it returns."""


def put_all(driver: Driver, objects: Sequence[tuple[str, bytes]]) -> None:
    """Store keys and bodies in this order: who sees one of them sees those before it."""
    if isinstance(driver, BatchDriver):
        driver.put_all(objects)
    else:
        for key, body in objects:
            driver.put(key, body)


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

        Raises Unranged where a service that most speak like takes no notice of `after`.
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


class UsageError(Exception):
    """A storage argument that the driver does not understand."""


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
