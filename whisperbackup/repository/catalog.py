"""The store's listing read as metrics and their backups, streaming.

    <storage path><metric>/<stamp>.wsp.<codec>     the whisper file, compressed
    <storage path><metric>/<stamp>.sha1            the mark: SHA-1 of the uncompressed file
    <storage path><metric>/<stamp>.recreated       empty: the file has no points from before the last backup
    <storage path><metric>/<stamp>.missing         the tombstone; not empty: one of many at once
    <storage path><metric>/.whisper-backup-<stamp>-<hex>    left in a directory by a killed write

Stamps compare as strings: they are all UTC and of one length.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from whisperbackup.errors import UnsortedListing
from whisperbackup.repository.compression import CODECS
from whisperbackup.repository.keys import STAMP, TEMPORARY, is_record
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.runtime import clock
from whisperbackup.storage.base import Driver
from whisperbackup.storage.windows import list_in_windows
from whisperbackup.tree.names import ForeignName, is_canonical, metric_path
from whisperbackup.tree.selection import Selection

logger = logging.getLogger(__name__)

MARK_SIZE = 40
"""Bytes of a mark; some tools end a file with a newline."""
_OBJECT = re.compile(rf"({STAMP})\.(sha1|missing|recreated|wsp\.({'|'.join(CODECS)}))", re.ASCII)
_TEMPORARY = re.compile(TEMPORARY, re.ASCII)
_RECORD = re.compile(r"(.*/)?(\.(?:increments|runs)/.+)", re.DOTALL)


class Payload(NamedTuple):
    """One compressed whisper file in the store; `size` in bytes as stored."""

    codec: str
    size: int


class Backup(NamedTuple):
    """A complete backup: at least one payload and the mark.

    `mark_md5` is the MD5 of the mark's content, if the listing shows it.  `is_recreated`: it is the first of a file
    that has no point from before the backup before it.
    """

    stamp: str
    payloads: tuple[Payload, ...]
    mark_md5: str | None
    mark_size: int = MARK_SIZE
    is_recreated: bool = False

    def suffixes(self) -> list[str]:
        """The ends of its keys."""
        payloads = [f"{self.stamp}.wsp.{payload.codec}" for payload in self.payloads]
        return [f"{self.stamp}.sha1", *payloads, *([f"{self.stamp}.recreated"] if self.is_recreated else [])]


class Orphan(NamedTuple):
    """Objects left by an interrupted run: a payload without its mark, a mark without payload, a temporary file."""

    stamp: str
    suffixes: tuple[str, ...]
    size: int

    @property
    def is_temporary(self) -> bool:
        """Whether it is a temporary file, and not half a backup."""
        return self.suffixes[0].startswith(".")


class Metric(NamedTuple):
    """One metric in the store.  `backups` are complete.  Backups, tombstones and orphans are sorted, oldest first."""

    name: str
    backups: tuple[Backup, ...]
    tombstones: tuple[str, ...]
    orphans: tuple[Orphan, ...]
    last_stamp: str  # of any object
    together: tuple[str, ...] = ()  # of the tombstones, those that are not empty

    @property
    def key(self) -> str:
        """The prefix of its keys, below the storage path."""
        return self.name + "/"

    @property
    def missing_since(self) -> str:
        """The stamp of its tombstone; empty if it has none, or none that is later than its newest backup."""
        newest = self.backups[-1].stamp if self.backups else ""
        tombstone = max(self.tombstones, default="")
        return tombstone if tombstone > newest else ""

    @property
    def left_with_many(self) -> bool:
        """Whether it was marked as missing together with so many others that this looked like a mistake."""
        return bool(self.together) and self.missing_since in self.together

    @property
    def is_canonical(self) -> bool:
        """Whether this tool writes names like this one; other metrics never get a tombstone and are never purged."""
        return is_canonical(self.name)


def mark_md5(sha1: str) -> str:
    """The MD5 that a listing shows for a mark with this content."""
    return hashlib.md5(sha1.encode(), usedforsecurity=False).hexdigest()


class Suffix(NamedTuple):
    """What follows the metric in a key; `kind` is `sha1`, `missing`, `wsp.gz` …, or a temporary file's whole name."""

    stamp: str
    kind: str
    codec: str | None


Part = tuple[Suffix, int, str | None]
"""One of a metric's objects, with its size and MD5 from the listing."""

END: Part = (Suffix("", "", None), 0, None)


@functools.lru_cache(1024)  # metrics backed up in the same second follow one another in a listing
def parse_suffix(suffix: str) -> Suffix | None:
    """Parse the end of a key, after the metric; None if this tool does not write such keys."""
    match = _OBJECT.fullmatch(suffix) or _TEMPORARY.fullmatch(suffix)
    if match is None:
        return None
    try:
        datetime.fromisoformat(match[1])
    except ValueError:
        return None
    return Suffix(match[1], match[2], match[3]) if match.re is _OBJECT else Suffix(match[1], suffix, None)


def storage_path_of(key: str) -> str | None:
    """The storage path in a whole key; None if this tool does not write such keys."""
    record = _RECORD.fullmatch(key) if ".increments/" in key or ".runs/" in key else None
    if record and is_record(record[2]):
        return record[1] or ""
    folder, slash, suffix = key.rpartition("/")
    if not slash or parse_suffix(suffix) is None:
        return None
    path, slash, name = folder.rpartition("/")
    try:
        metric_path(name)
    except ForeignName:
        return None
    return path + slash


class Catalog:
    """The metrics of `selection` in the store, ascending by key; iterate once.

    After that `foreign` counts the unrecognized keys, and `rooted` those of them that begin with a slash.
    Raises UnsortedListing as soon as a key is not greater than the one before.
    """

    def __init__(
        self,
        driver: Driver,
        storage_path: str,
        selection: Selection,
        split_keys: Iterable[str] = (),
        is_absent: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`split_keys` are some of the keys that metrics may have, ascending; they make a long listing faster.

        They are used only where the selection has a single prefix.  `is_absent(prefix)` is called when the first key
        listed under `prefix` belongs to another storage path.  If it returns True, no key there belongs to this storage
        path, and the rest is not listed.
        """
        self.driver = driver
        self._is_absent = is_absent
        (prefix, *others) = selection.prefixes
        self._split_keys = (storage_path + key for key in split_keys if not others and key.startswith(prefix))
        self.storage_path = storage_path
        self.selection = selection
        self.foreign = 0
        self.rooted = 0
        self._latest = stamp_of(clock.utc_now() + timedelta(days=1))
        self._ahead, self._example = 0, ""  # backups with a stamp ahead of the clock
        self._is_foreign = False  # the current name

    def __iter__(self) -> Iterator[Metric]:
        last = ""
        beginning: str | None = None  # the prefix of the current name's keys
        name = slash = ""
        parts: list[Part] | None = None  # of the current metric; None if it is foreign or not selected
        for prefix in self.selection.prefixes:
            is_first = True
            for listed in list_in_windows(self.driver, self.storage_path + prefix, self._split_keys):
                key, size, md5 = listed
                if key <= last:
                    raise UnsortedListing(last, key)  # windows and prefixes must not overlap either
                last = key
                if beginning is None or not key.startswith(beginning):
                    if parts:
                        yield self._look_at(read_metric(name, parts))
                    name, slash, _ = key[len(self.storage_path) :].partition("/")
                    beginning = self.storage_path + name + slash if slash else None
                    parts = self._parts_of(name, slash)
                suffix = parse_suffix(key[len(beginning) :]) if beginning else None
                if suffix is None or parts is None:
                    if is_first and storage_path_of(key) not in (None, self.storage_path):
                        if self._is_absent(self.storage_path + prefix):
                            break
                        is_first = False
                    if not (name.startswith(".") and is_record(key[len(self.storage_path) :])):
                        self._count(name + slash, suffix is None)
                else:
                    is_first = False
                    parts.append((suffix, size, md5))
        if parts:
            yield self._look_at(read_metric(name, parts))

    def _look_at(self, metric: Metric) -> Metric:
        if metric.last_stamp > self._latest:
            for backup in metric.backups:
                if backup.stamp > self._latest:
                    self._ahead += 1
                    self._example = self._example or f"{metric.name} of {backup.stamp}"
        return metric

    def _parts_of(self, name: str, slash: str) -> list[Part] | None:
        """An empty list for the parts of the metric `name`; None if it is not a metric, or not selected."""
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
        """Log unrecognized keys and backups with stamps in the future, one line for each kind."""
        if self.rooted and not self.storage_path:
            logger.warning(
                "%d keys begin with a slash: an older whisper-backup wrote them; to use them, set --storage-path /",
                self.rooted,
            )
        if self._ahead:
            logger.warning(
                "%d backups have a stamp more than a day ahead of this machine's clock, for example %s: "
                "check the clock; if it was wrong when they were made, no -c with a date before that finds them",
                self._ahead, self._example,
            )  # fmt: skip
        if self.foreign:
            logger.info(
                "skipped %d unrecognized objects under this path; for another node use --storage-path", self.foreign
            )


def read_metric(name: str, parts: Iterable[Part]) -> Metric:
    """Build a metric from its parts, which are ascending by key."""
    backups: list[Backup] = []
    tombstones: list[str] = []
    together: list[str] = []
    orphans: list[Orphan] = []
    last_stamp = ""
    mark: Part | None = None
    recreated: list[Part] = []
    payloads: list[Part] = []
    for part in (*parts, END):
        (stamp, kind, codec), size, _ = part
        if stamp != last_stamp or part is END:
            if mark and payloads:
                found = tuple([Payload(suffix.codec or "", size) for suffix, size, _ in payloads])
                backups.append(Backup(last_stamp, found, mark[2], mark[1], bool(recreated)))
            elif halves := [*recreated, *payloads, *([mark] if mark else [])]:
                suffixes = tuple(f"{last_stamp}.{suffix.kind}" for suffix, _, _ in halves)
                orphans.append(Orphan(last_stamp, suffixes, sum(size for _, size, _ in halves)))
            if part is END:
                break
            mark, recreated, payloads = None, [], []
        if kind.startswith("."):
            orphans.append(Orphan(stamp, (kind,), size))
            continue  # a temporary file sorts before all objects, and is none
        last_stamp = stamp
        if codec:
            payloads.append(part)
        elif kind == "sha1":
            mark = part
        elif kind == "recreated":
            recreated.append(part)
        else:
            tombstones.append(stamp)
            if size:
                together.append(stamp)
    return Metric(name, tuple(backups), tuple(tombstones), tuple(orphans), last_stamp, tuple(together))


def look_up(driver: Driver, storage_path: str, name: str) -> Metric:
    """The metric `name` as the store holds it now, possibly without any object."""
    key = f"{storage_path}{name}/"
    parts = [(parse_suffix(found.key[len(key) :]), found.size, found.md5) for found in driver.list(key)]
    return read_metric(name, [(suffix, size, md5) for suffix, size, md5 in parts if suffix])


def newest_at(metric: Metric, date: str | None) -> list[Backup]:
    """The complete backups at or before the stamp `date` (None: all), the newest first."""
    return [backup for backup in reversed(metric.backups) if date is None or backup.stamp <= date]
