"""The store's listing read as metrics and their backups, streaming.

    <storage path><metric>/<stamp>.wsp.<codec>     the whisper file, compressed
    <storage path><metric>/<stamp>.sha1            the mark: SHA-1 of the uncompressed file
    <storage path><metric>/<stamp>.missing         the tombstone
    <storage path><metric>/.whisper-backup-<stamp>-<hex>    what a killed write left in a directory

Stamps compare as strings: they are all UTC and of one length.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from whisperbackup.compression import CODECS
from whisperbackup.selection import Selection
from whisperbackup.storage.base import Driver, StorageError, StoredObject
from whisperbackup.tree import ForeignName, is_canonical, metric_path

logger = logging.getLogger(__name__)

_STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
_OBJECT = re.compile(rf"({_STAMP})\.(sha1|missing|wsp\.({'|'.join(CODECS)}))", re.ASCII)
_TEMPORARY = re.compile(rf"\.whisper-backup-({_STAMP})-[0-9a-f]+", re.ASCII)


class Disordered(StorageError):
    """The listing did not come in ascending order; nothing can be concluded from what it lacks."""


class Payload(NamedTuple):
    """One compressed whisper file in the store; `size` in bytes as stored."""

    codec: str
    size: int


class Backup(NamedTuple):
    """A complete backup: at least one payload and the mark.

    `mark_md5` is the MD5 of the mark's content where the listing tells it.
    """

    stamp: str
    payloads: tuple[Payload, ...]
    mark_md5: str | None
    mark_size: int = 40

    def suffixes(self) -> list[str]:
        """The ends of its keys, the mark first: a deletion that stops half-way leaves no mark to a lost payload."""
        return [f"{self.stamp}.sha1", *(f"{self.stamp}.wsp.{payload.codec}" for payload in self.payloads)]


class Debris(NamedTuple):
    """What an interrupted run left: a payload without its mark, a mark without payload, a temporary file."""

    stamp: str
    suffixes: tuple[str, ...]
    size: int

    @property
    def is_temporary(self) -> bool:
        """Whether it is no half of anything."""
        return self.suffixes[0].startswith(".")


class Metric(NamedTuple):
    """What the store holds of one metric; `backups` are complete, the oldest first, as are the others."""

    name: str
    backups: tuple[Backup, ...]
    tombstones: tuple[str, ...]
    debris: tuple[Debris, ...]
    last_stamp: str  # of any object

    @property
    def key(self) -> str:
        """What its keys begin with, below the storage path."""
        return self.name + "/"

    @property
    def is_canonical(self) -> bool:
        """Whether its name is one that this tool writes; others are never given a tombstone, never purged."""
        return is_canonical(self.name)


def stamp_of(moment: datetime) -> str:
    """The stamp of an aware datetime."""
    moment = moment.astimezone(UTC)
    return f"{moment.year:04}" + moment.strftime("-%m-%dT%H:%M:%S+00:00")  # %Y does not pad


def next_stamp(now: datetime, last: str) -> str:
    """A stamp for `now` that is later than `last` (empty: none), whatever the clock did.

    Raises ValueError at the end of time.
    """
    stamp = stamp_of(now)
    if stamp > last:
        return stamp
    try:
        return stamp_of(datetime.fromisoformat(last) + timedelta(seconds=1))
    except OverflowError:
        raise ValueError(f"the store holds an object stamped {last}, and no later stamp can be made") from None


def parse_suffix(suffix: str) -> tuple[str, str, str | None] | None:
    """Stamp, kind (`sha1`, `missing`, `wsp.gz` …) and codec of what follows the metric in a key; None if foreign.

    The kind of a temporary file is its name, which begins with a dot.
    """
    match = _OBJECT.fullmatch(suffix) or _TEMPORARY.fullmatch(suffix)
    if match is None:
        return None
    try:
        datetime.fromisoformat(match[1])
    except ValueError:
        return None
    return (match[1], match[2], match[3]) if match.re is _OBJECT else (match[1], suffix, None)


class Catalog:
    """The metrics of `selection` in the store, ascending by key; iterate once.

    After that `foreign` counts the keys that are none of ours, `rooted` those of them that begin with a slash.
    Raises Disordered as soon as a key is not greater than the one before.
    """

    def __init__(self, driver: Driver, storage_path: str, selection: Selection) -> None:
        self.driver = driver
        self.storage_path = storage_path
        self.selection = selection
        self.foreign = 0
        self.rooted = 0
        self._is_foreign = False  # the name at hand

    def __iter__(self) -> Iterator[Metric]:
        key: str | None = None
        parts: list[Part] | None = None  # of the metric at hand; None if it is foreign or not meant
        for listed in self._objects():
            name, slash, suffix = listed.key.partition("/")
            if name + slash != key:
                if key is not None and parts:
                    yield read_metric(key[:-1], parts)
                key = name + slash
                parts = self._parts_of(name, slash)
            part = parse_suffix(suffix)
            if part is None or parts is None:
                self._count(key, part is None)
            else:
                parts.append(Part(*part, listed.size, listed.md5))
        if key is not None and parts:
            yield read_metric(key[:-1], parts)

    def _parts_of(self, name: str, slash: str) -> list[Part] | None:
        """Where to gather the parts of the metric `name`; None if it is none, or not meant."""
        self._is_foreign = True
        try:
            metric_path(name)
        except ForeignName:
            return None
        self._is_foreign = not slash
        return [] if slash and name in self.selection else None

    def _count(self, key: str, has_foreign_suffix: bool) -> None:
        if has_foreign_suffix or self._is_foreign:
            self.foreign += 1
            self.rooted += key == "/"

    def report_foreign(self) -> None:
        """Say in one line what the listing held besides."""
        if self.rooted and not self.storage_path:
            logger.warning(
                "%d keys begin with a slash: an older whisper-backup wrote them; --storage-path / reaches them",
                self.rooted,
            )
        if self.foreign:
            logger.info("%d objects in the store are none of ours and were left alone", self.foreign)

    def _objects(self) -> Iterator[StoredObject]:
        """What is listed below the heads of the selection, keys without the storage path."""
        last = ""
        for head in self.selection.heads:
            for listed in self.driver.list(self.storage_path + head):
                if listed.key <= last:
                    raise Disordered(
                        f"the store lists '{listed.key}' after '{last}': it does not sort its keys, "
                        "so no conclusion can be drawn from its listing and the run ends here"
                    )
                last = listed.key
                yield StoredObject(listed.key.removeprefix(self.storage_path), listed.size, listed.md5)


class Part(NamedTuple):
    """One of a metric's objects."""

    stamp: str
    kind: str
    codec: str | None
    size: int
    md5: str | None


def read_metric(name: str, parts: Iterable[Part]) -> Metric:
    """The metric that these parts, ascending by key, make."""
    backups: list[Backup] = []
    tombstones: list[str] = []
    debris: list[Debris] = []
    stamps: dict[str, list[Part]] = {}
    for part in parts:
        if part.kind.startswith("."):
            debris.append(Debris(part.stamp, (part.kind,), part.size))
        else:
            stamps.setdefault(part.stamp, []).append(part)
    for stamp, of_stamp in stamps.items():
        payloads = tuple(Payload(part.codec, part.size) for part in of_stamp if part.codec)
        mark = next((part for part in of_stamp if part.kind == "sha1"), None)
        if any(part.kind == "missing" for part in of_stamp):
            tombstones.append(stamp)
        if payloads and mark:
            backups.append(Backup(stamp, payloads, mark.md5, mark.size))
        elif payloads or mark:
            halves = [part for part in of_stamp if part.kind != "missing"]
            suffixes = tuple(f"{stamp}.{part.kind}" for part in halves)
            debris.append(Debris(stamp, suffixes, sum(part.size for part in halves)))
    return Metric(name, tuple(backups), tuple(tombstones), tuple(debris), max(stamps, default=""))


def newest_at(metric: Metric, date: str | None) -> list[Backup]:
    """The complete backups at or before the stamp `date` (None: all), the newest first."""
    return [backup for backup in reversed(metric.backups) if date is None or backup.stamp <= date]
