"""Carries out the retention of increments, run records, and of what killed runs left of them.

Of an increment the manifest is deleted first: what is then left of it is no increment.  A store without any increment
costs one listing.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from whisperbackup.increments import history
from whisperbackup.increments.manifest import INCREMENTS, MANIFEST, RUNS, Manifest, Run, increment_key, run_key
from whisperbackup.increments.reader import read
from whisperbackup.increments.record import CorruptIncrement, decode
from whisperbackup.increments.retention import (
    Action,
    Judgement,
    is_mostly_held,
    judge,
    orphans,
    rewritten,
    rewritten_parts,
    settle,
)
from whisperbackup.increments.window import MAX_AGE
from whisperbackup.report.counters import Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.stamps import stamp_at
from whisperbackup.storage.base import Driver, NotFound, Unreadable

logger = logging.getLogger(__name__)

FOR_EVER = 1 << 40
RUNS_KEPT = 30
HOUR, DAY = 3600, 86400
FEW = 10  # names in a message


class Rules(NamedTuple):
    """`keep` and `beyond` in seconds; `beyond` None: what no backup has confirmed is never deleted."""

    storage_path: str
    keep: int
    beyond: int | None
    noop: bool


def expire(
    driver: Driver, rules: Rules, now: int, hours: set[str] | None, stats: RunStats, this: Run | None = None
) -> None:
    """Delete what is not needed any more.

    `hours` are those of all backups in the store, as stamps begin (2026-11-25T16); None if they are not known: then
    the records of runs are kept.  `this` is the run that calls, whose record is not in the store after a dry run.
    Raises StorageError.
    """
    found = history.look_at_all(driver, rules.storage_path)
    work = _Expiry(driver, rules, now, found, stats)
    work.delete_increments([this] if this and this.stamp not in found.runs else [])
    work.delete_orphans()
    if hours is not None:
        work.delete_runs(hours)


def delete_debris(driver: Driver, rules: Rules, now: int, stats: RunStats) -> None:
    """Delete what killed runs left, a day old and more, and nothing else.  Raises StorageError."""
    _Expiry(driver, rules, now, history.look_at_all(driver, rules.storage_path), stats).delete_orphans()


class _Held(NamedTuple):
    """How many records of an increment, and points in them, no run has confirmed, and the first few's names."""

    records: int
    points: int
    names: list[str]


class _Expiry:
    def __init__(self, driver: Driver, rules: Rules, now: int, found: history.Found, stats: RunStats) -> None:
        self.driver, self.rules, self.now, self.found, self.stats = driver, rules, now, found, stats
        limit, ahead = stamp_at(now - rules.keep), stamp_at(now + DAY)
        path = rules.storage_path
        # After a run under a fast clock all stamps follow its stamp: how old these are, only manifests tell.
        old = [stamp for stamp in found.complete if stamp <= limit or stamp > ahead]
        self.old = list(history.manifests(driver, path, old))
        self.deleted: set[str] = set()

    # Increments

    def delete_increments(self, others: list[Run]) -> None:
        """Delete the old increments that backups have, all of them or in part."""
        if not self.old:
            return
        rules = self.rules
        runs = [*history.runs_of(self.driver, rules.storage_path, self.found.runs), *others]
        for judgement in judge(self.old, runs, self.now, rules.keep):
            increment = judgement.increment
            try:
                held = self._count(judgement)
                beyond = FOR_EVER if rules.beyond is None else rules.beyond
                action = settle(judgement, held.records, self.now, rules.keep, beyond)
                if action is Action.REWRITE:
                    self._rewrite(judgement, held)
            except CorruptIncrement as error:
                if self._has_changed(increment):
                    logger.info("increment of %s: left to the run that is changing it", increment.stamp)
                else:
                    logger.warning("the increment of %s stays, it is damaged: %s", increment.stamp, error)
                continue
            if action is Action.GIVE_UP:
                names = ", ".join(held.names)
                more = f" and {held.records - FEW} more" if held.records > FEW else ""
                logger.warning(
                    "the increment of %s has points of %s%s that no backup has: %s, it is older than --keep-increments "
                    "and -x together", increment.stamp, names, more, self._did("deleted"),
                )  # fmt: skip
            if action in (Action.DELETE, Action.GIVE_UP):
                covered = "all" if action is Action.DELETE else "not all"
                self._delete(increment, f"later backup runs covered {covered} of its metrics")

    def _has_changed(self, increment: Manifest) -> bool:
        """Whether another run has deleted or rewritten it since its manifest was read."""
        return [increment] != list(history.manifests(self.driver, self.rules.storage_path, [increment.stamp]))

    def _did(self, done: str) -> str:
        return f"would be {done}" if self.rules.noop else done

    def _count(self, judgement: Judgement) -> _Held:
        """What no run has confirmed; not counted further where the increment stays in any case.

        The records themselves may be many, and are read again if they are rewritten.
        """
        names: list[str] = []
        records = points = 0
        for key, more, _ in self._doubtful(judgement):
            records += 1
            points += more
            if records <= FEW:
                names.append(key[:-1])
            if is_mostly_held(judgement.increment, records):
                break
        return _Held(records, points, names)

    def _doubtful(self, judgement: Judgement) -> Iterator[tuple[str, int, bytes]]:
        """The records of metrics that no run has confirmed, as (key, points, encoded)."""
        increment, doubtful = judgement
        if doubtful is None or not doubtful.entries:
            return
        path = self.rules.storage_path

        def fetch(name: str, offset: int, length: int) -> bytes:
            return self._part(path + increment_key(increment.stamp, name))[offset : offset + length]

        for key, content in read(increment, fetch, sorted(doubtful.entries)):
            text = key.decode()
            if doubtful.cover(text):
                yield text, decode(content).points, content

    _last_part: tuple[str, bytes] = ("", b"")

    def _part(self, key: str) -> bytes:
        if self._last_part[0] != key:
            try:
                self._last_part = (key, self.driver.get(key))
            except (NotFound, Unreadable) as error:
                raise CorruptIncrement(str(error)) from None
        return self._last_part[1]

    def _delete(self, increment: Manifest, reason: str) -> None:
        logger.info("increment of %s: %s, %s", increment.stamp, self._did("deleted"), reason)
        path = self.rules.storage_path
        self.driver.delete([path + increment_key(increment.stamp)])
        self.driver.delete([path + increment_key(increment.stamp, part.name) for part in increment.parts])
        self.deleted.add(increment.stamp)
        self.stats.count(Count.INCREMENTS_REMOVED)

    def _rewrite(self, judgement: Judgement, held: _Held) -> None:
        increment = judgement.increment
        logger.info(
            "increment of %s: %s to the %d records that no backup has confirmed",
            increment.stamp, self._did("rewritten"), held.records,
        )  # fmt: skip
        path = self.rules.storage_path
        parts = []
        for part, content in rewritten_parts(increment, self._doubtful(judgement)):
            self.driver.put(path + increment_key(increment.stamp, part.name), content)
            parts.append(part)
        made = rewritten(increment, parts, held.points)
        self.driver.put(path + increment_key(made.stamp), made.to_json())
        self.driver.delete([path + increment_key(made.stamp, part.name) for part in increment.parts])
        self.stats.count(Count.INCREMENTS_REWRITTEN)

    # What killed runs left

    def delete_orphans(self) -> None:
        """Delete the parts of a day ago and more that have no manifest beside them."""
        listing = [(key, size) for key, size in self.found.objects if key.startswith(INCREMENTS)]
        left = [orphan.key for orphan in orphans(listing, set(self.found.complete), self.now)]
        path = self.rules.storage_path
        gone = []
        for stamp in sorted({key[len(INCREMENTS) :].partition("/")[0] for key in left}):
            if not self._has_manifest(stamp):
                gone += [path + key for key in left if key.startswith(f"{INCREMENTS}{stamp}/")]
        day_ago = stamp_at(self.now - DAY)
        temporary = f"{RUNS}.whisper-backup-"
        gone += [
            path + key
            for key, _ in self.found.objects
            if key.startswith(temporary) and key.removeprefix(temporary)[: len(day_ago)] < day_ago
        ]
        if gone:
            logger.info("%d parts of increments that killed runs left: %s", len(gone), self._did("deleted"))
            self.driver.delete(gone)
            self.stats.count(Count.ORPHANS_REMOVED, len(gone))

    def _has_manifest(self, stamp: str) -> bool:
        """Whether there is one although it is not listed: a Swift listing can lag behind for hours."""
        try:
            self.driver.get(self.rules.storage_path + increment_key(stamp, MANIFEST))
        except NotFound:
            return False
        return True

    # Records of runs

    def delete_runs(self, hours: set[str]) -> None:
        """Delete the records of runs of which no backup is left, and that no increment needs."""
        remaining = [stamp for stamp in self.found.complete if stamp not in self.deleted]
        limit = min([stamp_at(self.now - MAX_AGE), *remaining[:1]])
        needed = {one.reference for one in self.old if one.stamp not in self.deleted}  # or restore would miss it
        old = [stamp for stamp in self.found.runs[:-RUNS_KEPT] if stamp < limit and stamp not in needed]
        gone = []
        for run in history.runs_of(self.driver, self.rules.storage_path, old):
            moments = range(run.earliest // HOUR * HOUR, max(run.end, run.last_stamp) + HOUR, HOUR)
            if not any(_hour(moment) in hours for moment in moments):
                gone.append(self.rules.storage_path + run_key(run.stamp))
        if gone:
            logger.info("%d records of runs of which no backup is left: %s", len(gone), self._did("deleted"))
            self.driver.delete(gone)
            self.stats.count(Count.RUNS_REMOVED, len(gone))


def _hour(moment: int) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H")
