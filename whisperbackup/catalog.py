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

STAMP_FORMAT = "%Y-%m-%dT%H:%M:%S+00:00"
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
    return moment.astimezone(UTC).strftime(STAMP_FORMAT)


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
    """Stamp, kind (`sha1`, `missing`, `wsp.gz` …, `temporary`) and codec of what follows the metric in a key.

    None if it is foreign.
    """
    match = _OBJECT.fullmatch(suffix) or _TEMPORARY.fullmatch(suffix)
    if match is None:
        return None
    try:
        datetime.fromisoformat(match[1])
    except ValueError:
        return None
    return (match[1], match[2], match[3]) if match.re is _OBJECT else (match[1], "temporary", None)


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

    def __iter__(self) -> Iterator[Metric]:
        name: str | None = None
        objects: list[tuple[str, StoredObject]] = []
        for listed in self._objects():
            metric, slash, suffix = listed.key.partition("/")
            if not slash:
                self.foreign += 1
                continue
            if metric != name:
                if name is not None and objects:
                    yield from self._metric(name, objects)
                name, objects = metric, []
            objects.append((suffix, listed))
        if name is not None and objects:
            yield from self._metric(name, objects)

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

    def _metric(self, name: str, objects: list[tuple[str, StoredObject]]) -> Iterator[Metric]:
        try:
            metric_path(name)
        except ForeignName:
            self.foreign += len(objects)
            self.rooted += len(objects) if not name else 0
            return
        if name not in self.selection:
            return
        metric, foreign = read_metric(name, objects)
        self.foreign += foreign
        if metric is not None:
            yield metric


def read_metric(name: str, objects: Iterable[tuple[str, StoredObject]]) -> tuple[Metric | None, int]:
    """The metric that these (suffix, object) make, ascending by suffix, and how many of them are foreign."""
    backups: list[Backup] = []
    tombstones: list[str] = []
    debris: list[Debris] = []
    foreign = 0
    stamps: dict[str, list[tuple[str, str | None, StoredObject]]] = {}
    for suffix, listed in objects:
        parsed = parse_suffix(suffix)
        if parsed is None:
            foreign += 1
        elif parsed[1] == "temporary":
            debris.append(Debris(parsed[0], (suffix,), listed.size))
        else:
            stamp, kind, codec = parsed
            stamps.setdefault(stamp, []).append((kind, codec, listed))
    for stamp, parts in stamps.items():
        payloads = tuple(Payload(codec, listed.size) for _, codec, listed in parts if codec)
        mark = next((listed for kind, _, listed in parts if kind == "sha1"), None)
        if any(kind == "missing" for kind, _, _ in parts):
            tombstones.append(stamp)
        if payloads and mark:
            backups.append(Backup(stamp, payloads, mark.md5))
        elif payloads or mark:
            halves = [(kind, listed) for kind, _, listed in parts if kind != "missing"]
            suffixes = tuple(f"{stamp}.{kind}" for kind, _ in halves)
            debris.append(Debris(stamp, suffixes, sum(listed.size for _, listed in halves)))
    if not stamps and not debris:
        return None, foreign
    return Metric(name, tuple(backups), tuple(tombstones), tuple(debris), max(stamps, default="")), foreign


def newest_at(metric: Metric, date: str | None) -> list[Backup]:
    """The complete backups at or before the stamp `date` (None: all), the newest first."""
    return [backup for backup in reversed(metric.backups) if date is None or backup.stamp <= date]
