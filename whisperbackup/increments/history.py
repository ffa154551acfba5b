"""What the store has of increments and runs, and the few requests that find where the next increment begins."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import NamedTuple, TypeVar

from whisperbackup.increments.manifest import (
    INCREMENTS,
    MANIFEST,
    RUNS,
    Manifest,
    Run,
    increment_key,
    read_manifest,
    read_run,
    run_key,
)
from whisperbackup.increments.record import CorruptIncrement
from whisperbackup.increments.window import MAX_AGE, Now, Window, choose
from whisperbackup.repository.keys import is_record
from whisperbackup.repository.stamps import next_stamp, stamp_at
from whisperbackup.runtime import clock
from whisperbackup.storage.base import Driver, NotFound, StartAfterUnsupported, StoredObject, Unreadable, list_range

logger = logging.getLogger(__name__)

TEMPORARY = "/.whisper-backup-"
RECENT = 86400  # seconds: the first look goes no further back
KEY = re.compile(
    r"\.(?:increments/(?P<stamp>{0})/(?P<name>[^/]+)|runs/(?P<run>{0})\.json)".format(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00"
    ),
    re.ASCII,
)

T = TypeVar("T", Manifest, Run)


class Found(NamedTuple):
    """Ascending stamps: of `complete` increments, of all of which there is any object, of runs.

    `objects` are the keys below the storage path, with sizes.
    """

    complete: tuple[str, ...]
    stamps: tuple[str, ...]
    runs: tuple[str, ...]
    objects: tuple[tuple[str, int], ...]

    @property
    def newest(self) -> str:
        """The newest complete increment; empty if there is none."""
        return self.complete[-1] if self.complete else ""

    @property
    def newest_run(self) -> str:
        """The newest run; empty if there is none."""
        return self.runs[-1] if self.runs else ""

    @property
    def increments(self) -> list[tuple[str, int]]:
        """The complete increments, with the sizes of all their objects."""
        sizes = dict.fromkeys(self.complete, 0)
        for key, size in self.objects:
            stamp = key.removeprefix(INCREMENTS).partition("/")[0]
            if stamp in sizes and key.startswith(INCREMENTS):
                sizes[stamp] += size
        return list(sizes.items())

    @property
    def debris(self) -> list[tuple[str, int]]:
        """What killed runs left, or a run in progress, and records with impossible stamps: keys and sizes."""
        records = {run_key(stamp) for stamp in self.runs}
        return [
            (key, size)
            for key, size in self.objects
            if TEMPORARY in key
            or (key.startswith(INCREMENTS) and key.split("/")[1] not in self.complete)
            or (key.startswith(RUNS) and is_record(key) and key not in records)
        ]

    def next_stamp(self) -> str:
        """The stamp of what begins now.  Raises ValueError if no later stamp exists."""
        return next_stamp(clock.utc_now(), max([*self.stamps[-1:], *self.runs[-1:]], default=""))


def look(driver: Driver, storage_path: str, now: float) -> Found:
    """What there is of the last day, and all runs; everything, if there is no complete increment of the last day.

    Raises StorageError.
    """
    recent = f"{storage_path}{INCREMENTS}{stamp_at(now - RECENT)}"
    try:
        found = _found(list_range(driver, f"{storage_path}.", recent, ""), storage_path)
        if found.complete:
            return found
    except StartAfterUnsupported:
        pass
    return look_at_all(driver, storage_path)


def look_at_all(driver: Driver, storage_path: str) -> Found:
    """Everything there is.  Raises StorageError."""
    return _found(driver.list(f"{storage_path}."), storage_path)


def look_from(driver: Driver, storage_path: str, stamp: str) -> Found:
    """What there is of this increment and of later ones, without runs; of all, if need be.  Raises StorageError."""
    below = storage_path + INCREMENTS
    try:
        return _found(list_range(driver, below, below + stamp, ""), storage_path)
    except StartAfterUnsupported:
        return _found(driver.list(below), storage_path)


def newest_runs(driver: Driver, storage_path: str) -> list[str]:
    """The stamps of all backup runs, the newest first.  Raises StorageError."""
    return list(reversed(_found(driver.list(storage_path + RUNS), storage_path).runs))


def _found(listing: Iterable[StoredObject], storage_path: str) -> Found:
    complete: list[str] = []
    stamps: dict[str, None] = {}
    runs: list[str] = []
    objects: list[tuple[str, int]] = []
    for key, size, _ in listing:
        inner = key.removeprefix(storage_path)
        match = KEY.fullmatch(inner)
        if match is None or not _is_possible(match["stamp"] or match["run"]):
            if inner.startswith((INCREMENTS, RUNS)):
                objects.append((inner, size))  # a temporary file, for example
            continue
        objects.append((inner, size))
        if match["run"]:
            runs.append(match["run"])
        else:
            stamps[match["stamp"]] = None
            if match["name"] == MANIFEST:
                complete.append(match["stamp"])
    return Found(tuple(complete), tuple(stamps), tuple(runs), tuple(objects))


@functools.lru_cache(1024)
def _is_possible(stamp: str) -> bool:
    """Whether a run can have had this stamp: it is a date, and a later one exists."""
    try:
        return bool(next_stamp(datetime.fromisoformat(stamp), stamp))
    except ValueError:
        return False


def manifests(driver: Driver, storage_path: str, stamps: Iterable[str]) -> Iterator[Manifest]:
    """The manifests of these increments; one that cannot be read is named in a warning.  Raises StorageError."""
    for stamp in stamps:
        found = _read(driver, storage_path + increment_key(stamp), read_manifest)
        if found is not None and found.stamp == stamp:
            yield found


def runs_of(driver: Driver, storage_path: str, stamps: Iterable[str]) -> Iterator[Run]:
    """The records of these runs; one that cannot be read is named in a warning.  Raises StorageError."""
    for stamp in stamps:
        found = _read(driver, storage_path + run_key(stamp), read_run)
        if found is not None and found.stamp == stamp:
            yield found


def _read(driver: Driver, key: str, reader: Callable[[bytes], T]) -> T | None:
    try:
        return reader(driver.get(key))
    except NotFound:
        return None  # deleted since it was listed
    except (CorruptIncrement, Unreadable) as error:
        logger.warning("%s is damaged and ignored: %s; after a complete backup run, delete it", key, error)
        return None


class Origins(NamedTuple):
    """Whose increments they are."""

    node: str
    prefix: str
    exclude: tuple[str, ...]


def find_window(
    driver: Driver, storage_path: str, found: Found, now: Now, whose: Origins, lag: int
) -> tuple[Window | None, Found]:
    """Where the window begins, and `found`, which is everything if the recent part of it was not enough.

    Manifests are read from the newest back, until one can be built on.  Raises StorageError.
    """
    window = _by_increment(driver, storage_path, found, now, whose, lag)
    if window is None:
        found = look_at_all(driver, storage_path)
        window = _by_increment(driver, storage_path, found, now, whose, lag)
    if window is None:
        runs = list(runs_of(driver, storage_path, found.runs))
        # None of the increments can be built on, but one can show that the clock was ahead when a run began.
        window = choose(manifests(driver, storage_path, found.complete), runs, now, *whose, lag)
    return window, found


def _by_increment(driver: Driver, storage_path: str, found: Found, now: Now, whose: Origins, lag: int) -> Window | None:
    oldest = stamp_at(now.time - MAX_AGE)
    candidates: list[Manifest] = []
    runs: list[Run] = []
    unread = list(found.runs)
    for manifest in manifests(driver, storage_path, reversed([s for s in found.complete if s >= oldest])):
        candidates.append(manifest)
        runs += runs_of(driver, storage_path, [run for run in unread if run > manifest.stamp])
        unread = [run for run in unread if run <= manifest.stamp]
        window = choose(candidates, runs, now, *whose, lag)
        if window is not None and window.reference == manifest.stamp:
            return window
    return None
