"""The interface of storage drivers: the Driver protocol, the objects that it lists, and the errors that it raises.

A driver stores objects (bytes under a key) in one bucket.  It knows nothing about metrics, backups or
options.  Keys are non-empty Unicode strings.  They are ordered by their UTF-8 bytes, which is also the
order of Python's strings.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, TypeGuard, runtime_checkable

from whisperbackup.errors import (  # so that a driver imports everything from this module
    AccessDenied as AccessDenied,
)
from whisperbackup.errors import (
    Exists as Exists,
)
from whisperbackup.errors import (
    NotDeleted as NotDeleted,
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
    Unreadable as Unreadable,
)
from whisperbackup.errors import (
    UnsortedListing as UnsortedListing,
)
from whisperbackup.errors import (
    UsageError as UsageError,
)


class StoredObject(NamedTuple):
    """One entry of a listing: `size` in bytes as stored, `md5` of the content in lower-case hex, None if unknown."""

    key: str
    size: int
    md5: str | None


LOCKED = re.compile(r"lock|retention|retained|hold|worm|immutable|protected", re.I)
"""What the reason of a store that refuses to delete an object says if it protects the object, whoever asks."""

EMPTY_PAGES = 10_000
"""After so many empty pages in a row a listing ends with an error.  S3 has some, where it skips deleted versions."""

REPEATS = 10
"""So many times a listing may repeat a key: rclone's S3 lists an object twice while two runs create it."""

FIRST = "\1"
"""Appended to a key, it makes the next key that every service accepts; this tool writes no key in between."""


class Driver(Protocol):
    """One open bucket.  Up to `threads` threads may use it at once, but never two processes."""

    threads: int
    """How many requests of one process should run at once; 1 where more are no faster."""

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the objects whose key begins with `prefix` (a plain string, not a folder), in ascending order."""

    def get(self, key: str) -> bytes:
        """Return the content of `key`.  Raises NotFound."""

    def put(self, key: str, body: bytes) -> None:
        """Store `body` under `key`, replacing an existing object.

        The object is durable when this returns.  The write is atomic: a reader never sees part of an object.
        """

    def delete(self, keys: Iterable[str]) -> None:
        """Delete `keys`, in as few requests as the service allows.  A missing key is not an error.

        Tries all keys, then raises a StorageError that names the first one it could not delete and counts the rest:
        NotDeleted, if the driver can tell which.  It stops early only when the store no longer answers (Unavailable).
        """

    def close(self) -> None:
        """Release connections and files."""


@runtime_checkable
class CreatingDriver(Driver, Protocol):
    """A driver that can store objects without replacing those that another run stored meanwhile."""

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Store keys and bodies in this order: a reader who sees one object also sees those before it.

        The objects are durable when this returns.  Raises Exists for the first key that exists with other content;
        the objects before it are stored by then.  A key that exists with the same content counts as stored: an
        earlier attempt may have written it and lost the answer.  Returns True if it surely replaced nothing, and
        False where the service may ignore conditions.
        """


def create_all(driver: Driver, objects: Sequence[tuple[str, bytes]]) -> bool:
    """Like `CreatingDriver.create_all`, for any driver; returns False for one that can only replace objects."""
    return driver.create_all(objects) if _creates(driver) else look_and_put(driver, objects)


_creating: dict[type, bool] = {}


def _creates(driver: Driver) -> TypeGuard[CreatingDriver]:
    """Whether it is a CreatingDriver; Python needs as long to find out as for half of a request."""
    kind = type(driver)
    if kind not in _creating:
        _creating[kind] = isinstance(driver, CreatingDriver)
    return _creating[kind]


def look_and_put(driver: Driver, objects: Sequence[tuple[str, bytes]]) -> bool:
    """Like `create_all`, where the service cannot refuse to replace an object: check first, then put.

    Another run may store an object in between, so this returns False.
    """
    keys = [key for key, _ in objects]
    there = {found.key for found in driver.list(os.path.commonprefix(keys))}  # noqa: RUF071  (keys are strings)
    for key, body in objects:
        if key not in there:
            driver.put(key, body)
        elif not holds(driver, key, body):
            raise Exists(key)
    return False


def holds(driver: Driver, key: str, body: bytes) -> bool:
    """Whether `key` exists with this content."""
    try:
        return driver.get(key) == body
    except NotFound:
        return False


@runtime_checkable
class PartialDriver(Driver, Protocol):
    """A driver that can read a part of an object."""

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return `length` bytes (at least 1) of `key` from `offset` on: fewer at its end, none behind it.

        Raises NotFound.  It never returns other bytes of the object, whatever the service answers.
        """


def get_range(driver: Driver, key: str, offset: int, length: int) -> bytes:
    """Like `PartialDriver.get_range`, for any driver; one that can only read whole objects does so."""
    if isinstance(driver, PartialDriver):
        return driver.get_range(key, offset, length)
    return driver.get(key)[offset : offset + length]


@runtime_checkable
class MarkedDriver(Driver, Protocol):
    """A driver whose location can exist without the store, for example a directory on which no disk is mounted."""

    def is_marked(self) -> bool:
        """Whether the store itself is present, and not only its location."""

    def mark(self) -> None:
        """Write a marker that no listing shows and nothing deletes.

        It is durable when this returns.  Raises StorageError if the store is not writable, even if it has a marker.
        """


OnUnreadable = Callable[[str, StorageError], None]
"""Called with the beginning of the keys in a folder that a listing cannot read, and with the reason."""


@runtime_checkable
class FolderDriver(Driver, Protocol):
    """A driver with folders, of which a listing may be unable to read one."""

    def on_unreadable(self, report: OnUnreadable) -> None:
        """From now on leave such a folder out of listings, and call `report`; until then it ends them."""


def on_unreadable(driver: Driver, report: OnUnreadable) -> None:
    """Like `FolderDriver.on_unreadable`; nothing for any other driver."""
    if isinstance(driver, FolderDriver):
        driver.on_unreadable(report)


@runtime_checkable
class DatingDriver(Driver, Protocol):
    """A driver that can tell when the store wrote an object."""

    def modified(self, key: str) -> float | None:
        """Unix time by the store's clock, maybe rounded to a second; None if unknown.  Raises NotFound."""


def modified(driver: Driver, key: str) -> float | None:
    """Like `DatingDriver.modified`; None for any other driver."""
    return driver.modified(key) if isinstance(driver, DatingDriver) else None


def is_marked(driver: Driver) -> bool:
    """Whether the store is surely present.  A store that needs no marker always is."""
    return not isinstance(driver, MarkedDriver) or driver.is_marked()


def mark(driver: Driver) -> None:
    """Mark the store, if its driver uses markers."""
    if isinstance(driver, MarkedDriver):
        driver.mark()


@runtime_checkable
class RangedDriver(Driver, Protocol):
    """A driver whose service can list a range of keys, so that several parts of a listing can be read at once."""

    is_ranged: bool
    """Whether that is faster; False for a directory, and for a wrapper around a driver that cannot list ranges."""

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        """Like `list`, but only keys greater than `after` and not greater than `until` (empty: to the end).

        Raises StartAfterUnsupported if the service ignores `after`, as some S3-compatible stores do.
        """


def list_range(driver: Driver, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
    """Like `RangedDriver.list_range`, for any driver; one that cannot list ranges is listed from the beginning."""
    if isinstance(driver, RangedDriver):
        yield from driver.list_range(prefix, after, until)
        return
    for found in driver.list(prefix):
        if until and found.key > until:
            return
        if found.key > after:
            yield found


def in_range(listing: Iterable[StoredObject], after: str, until: str, store: str) -> Iterator[StoredObject]:
    """Check what `list_range` yields: keys greater than `after`, ascending, and not greater than `until`.

    A service that ignores where a page should begin would repeat that page for ever.  A few repeated keys are skipped.
    Raises StartAfterUnsupported, UnsortedListing.
    """
    last, repeats = after, 0
    for found in listing:
        key = found.key
        if key > last:
            repeats = 0
        elif last == after:
            raise StartAfterUnsupported(f"{store} does not begin a listing where it should")
        else:
            repeats += 1
            if key < last or repeats > REPEATS:
                raise UnsortedListing(last, key, store)
            continue
        if until and key > until:
            return
        yield found
        last = key


Opener = Callable[[str, bool, list[str]], Driver]
"""The type of `open(bucket, create, arguments)`, which every driver's module defines.

With `create` it creates a missing bucket; without it a missing bucket raises NotFound.
`arguments` are the words after the driver's name on the command line: `name=value`, or one bare value.
Raises UsageError for arguments that the driver does not know.
"""


WRITERS = {"writers": ("one", "many")}
"""A storage argument.  `one`: the operator promises that no two runs write below a storage path at the same time, so
what stands in for conditional puts where a service has none, a look before and after each backup, is left out."""


def keyword_arguments(
    words: list[str], bare: str | None, known: Iterable[str], choices: Mapping[str, Sequence[str]] | None = None
) -> dict[str, str]:
    """`words` of the form `name=value` as a dict; one word without `=` is the value of the name `bare`.

    Raises UsageError for a name that is not in `known`, one given twice, and a value that is not in its `choices`.
    """
    names = sorted(known)
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals and bare:
            name, value = bare, word
        if name not in names:
            allowed = f"use {', '.join(f'{n}=' for n in names)}" if names else "this driver has no storage arguments"
            raise UsageError(f"unknown storage argument '{name}': {allowed}")  # its value may be a secret
        if name in values:
            raise UsageError(f"storage argument '{name}' is given twice; give it once")
        values[name] = value
    for chosen, among in (choices or {}).items():
        if chosen in values and values[chosen] not in among:
            raise UsageError(f"storage argument '{chosen}={values[chosen]}' is invalid: use {', '.join(among)}")
    return values


def silence(*libraries: str) -> None:
    """Hide what client libraries log below WARNING, even with --debug: it contains tokens and signatures."""
    for name in libraries:
        logging.getLogger(name).setLevel(logging.WARNING)


def batches(keys: Iterable[str], size: int) -> Iterator[Sequence[str]]:
    """Yield `keys` in batches of at most `size`."""
    remaining = iter(keys)
    while batch := tuple(islice(remaining, size)):
        yield batch
