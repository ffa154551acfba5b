"""Which metrics are missing from the tree, and what is deleted when.

A metric without a file gets a tombstone, loses it when the file is seen again, and is deleted when the tombstone is old
enough.  What one pass over tree and store finds is written to a temporary file, and done only when both came to their
end without an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from whisperbackup.errors import CannotRun, NotFound, NoTree
from whisperbackup.report.counters import Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import keys
from whisperbackup.repository.catalog import Debris, Metric
from whisperbackup.repository.compression import CODECS
from whisperbackup.repository.deleter import DeleteObjects, Deleter, HasDriver
from whisperbackup.repository.join import Pair
from whisperbackup.repository.outcome import Outcome, PendingDelete
from whisperbackup.repository.stamps import next_stamp, stamp_of
from whisperbackup.storage.base import Driver
from whisperbackup.tree import names
from whisperbackup.tree.walk import LocalFile, Skipped, check_tree

logger = logging.getLogger(__name__)

ORPHAN_AGE = timedelta(days=1)  # younger ones may be another run's work
MANY = 10  # metrics from which on half of what the store holds, gone at once, is treated as a mistake


class PutTombstone(NamedTuple):
    """Mark the metric `name` as missing."""

    name: str
    key: str
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Raises StorageError."""
        context.driver.put(self.key, b"")
        return Outcome(self.name, {Count.MARKED_MISSING: 1})


class RemoveOrphan(NamedTuple):
    """Delete half a backup of the metric `name`, if its other half does not exist."""

    name: str
    metric_key: str
    orphan: Debris
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Raises StorageError."""
        if not self.orphan.is_temporary and self._has_other_half(context.driver):
            return Outcome(self.name, {})
        did = "would remove" if context.noop else "removed"
        logger.info("%s: %s what an interrupted run left of %s", self.name, did, self.orphan.stamp)
        orphans = tuple(self.metric_key + suffix for suffix in self.orphan.suffixes)
        return Outcome(self.name, {}, deletes=(PendingDelete(Count.ORPHANS_REMOVED, orphans),))

    def _has_other_half(self, driver: Driver) -> bool:
        """Whether what the listing lacks exists: a Swift listing can lag behind for hours."""
        stamp = self.orphan.stamp
        mark = keys.mark(self.metric_key, stamp)
        payloads = [keys.payload(self.metric_key, stamp, codec) for codec in CODECS]
        for key in payloads if self.orphan.suffixes == (f"{stamp}.sha1",) else [mark]:
            try:
                driver.get(key)
                return True
            except NotFound:
                continue
        return False


class PurgeMetric(NamedTuple):
    """Delete all objects of the metric `name`, its tombstones when the others are gone."""

    name: str
    keys: tuple[str, ...]
    tombstones: tuple[str, ...]


class Rules(NamedTuple):
    """What purge is allowed to do, for metrics of the tree `prefix` below `storage_path`."""

    prefix: bytes
    storage_path: str
    days: int  # 0: at once, -1: never
    anyway: bool  # even if it looks like a mistake
    noop: bool


class Plan(NamedTuple):
    """What to do about one metric: set a tombstone (its stamp), or delete everything."""

    tombstone: str | None
    is_due: bool


def plan(metric: Metric, days: int, now: datetime) -> Plan:
    """What to do about a metric that is not in the tree, with `days` of grace (0: none, -1: for ever).

    A tombstone that is not later than the newest backup is void; of several the newest counts.
    """
    if days < 0 or not metric.is_canonical:
        return Plan(None, False)
    if days == 0:
        return Plan(None, True)
    if not metric.missing_since:
        return Plan(next_stamp(now, metric.last_stamp), False)
    return Plan(None, metric.missing_since <= stamp_of(now - timedelta(days=days)))


def keys_of(metric: Metric, now: datetime) -> list[str]:
    """The ends of the keys of its backups and orphans.

    Orphans younger than a day are not among them: another run may be about to complete them.
    """
    backups = [suffix for backup in metric.backups for suffix in backup.suffixes()]
    orphans = [suffix for half in metric.debris if is_old(half, now) for suffix in half.suffixes]
    return [*backups, *orphans]


def is_old(orphan: Debris, now: datetime) -> bool:
    """Whether no run can be at work on it any more."""
    return orphan.stamp <= stamp_of(now - ORPHAN_AGE)


class Purge:
    """What one pass over tree and store shows about missing metrics, and what is done about them."""

    def __init__(self, rules: Rules, stats: RunStats, now: datetime) -> None:
        self._rules = rules
        self._stats = stats
        self._now = now
        self.saw_any = False
        """Whether any metric was selected, in the tree or in the store."""
        self.saw_stored = False
        """Whether any metric was selected in the store."""
        self.deletes_any = False
        """Whether the backups of a metric are deleted."""
        # Metrics with a backup, so that what interrupted runs left is no evidence either way; and only those that the
        # store holds, since metrics of another tree prove nothing about these.
        self._here = 0  # in the tree
        self._missing = 0  # not in the tree
        self._due = 0  # of them, those to be deleted
        self._is_blind = False
        self._root = os.stat(rules.prefix)
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as this object)

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Pass `pairs` on, recording what is missing and what the walk could not see."""
        for pair in pairs:
            if isinstance(pair.local, Skipped):
                if pair.metric is None:
                    self._record_skipped(pair.local)
            elif pair.metric is not None:
                self._record(pair.metric, pair.local is None)
            self.saw_stored |= pair.metric is not None
            self.saw_any |= pair.metric is not None or isinstance(pair.local, LocalFile)
            yield pair

    def _record_skipped(self, skipped: Skipped) -> None:
        path = os.fsdecode(skipped.path)
        if skipped.is_error:
            self._is_blind = True
            self._stats.fail(path, skipped.reason)
        elif skipped.reason:
            logger.warning("%s: neither backed up nor purged: %s", path, skipped.reason)

    def _record(self, metric: Metric, is_missing: bool) -> None:
        key = keys.metric_key(self._rules.storage_path, metric.name)
        has_backup = bool(metric.backups)
        self._here += has_backup and not is_missing
        self._missing += has_backup and is_missing
        if is_missing:
            self._stats.count(Count.MISSING)
            try:
                tombstone, is_due = plan(metric, self._rules.days, self._now)
            except ValueError as error:
                self._stats.fail(metric.name, str(error))
                return
            if tombstone:
                self._write(PutTombstone(metric.name, keys.tombstone(key, tombstone)))
            if is_due:
                self._due += has_backup
                others = tuple(key + suffix for suffix in keys_of(metric, self._now))
                tombstones = tuple(keys.tombstone(key, stamp) for stamp in metric.tombstones)
                self._write(PurgeMetric(metric.name, others, tombstones))
                return
        if metric.is_canonical:
            for half in metric.debris:
                if is_old(half, self._now):
                    self._write(RemoveOrphan(metric.name, key, half))

    def _write(self, job: PutTombstone | PurgeMetric | RemoveOrphan) -> None:
        with _spooling():
            pickle.dump(job, self._spool)

    def jobs(self, deleter: Deleter) -> Iterator[PutTombstone | DeleteObjects | RemoveOrphan]:
        """What to do now that the pass has come to its end: nothing, if it could not see everything.

        What is to be deleted is added to `deleter`, whose full jobs come between.
        """
        yield from deleter.flush()
        if self._is_blind:
            self._stats.fail(
                "purge", "nothing was purged, since a part of the tree could not be read; run as its owner"
            )
            return
        if not self._is_same_tree():
            return
        is_mistake = self._is_mistake()
        for job in self._spooled():
            if isinstance(job, PutTombstone):
                would = "would be " if self._rules.noop else ""
                logger.info("%s: not in the tree, %smarked as missing", job.name, would)
                yield job
            elif is_mistake:
                continue
            elif isinstance(job, RemoveOrphan):
                yield job
            elif self._is_back(job.name):
                logger.info("%s: came back while this run was at work", job.name)
            else:
                did = "would be deleted" if self._rules.noop else "purged"
                logger.info("%s: %s, missing for long enough", job.name, did)
                self.deletes_any = True
                deleter.add(PendingDelete(Count.PURGED, job.keys, job.tombstones))
            yield from deleter.full_jobs()

    def _spooled(self) -> Iterator[PutTombstone | PurgeMetric | RemoveOrphan]:
        with _spooling():
            self._spool.seek(0)
        while True:
            with _spooling():
                try:
                    job = pickle.load(self._spool)  # ours alone: it never had a name
                except EOFError:
                    return
            yield job

    def _is_mistake(self) -> bool:
        """Whether what is due looks like a mistake, which is a failure; warns of a mistake that is not due yet."""
        stored = self._here + self._missing
        remedy = "if it is none, use --purge-anyway"
        anyway = self._rules.anyway
        if self._due and not self._here and stored >= MANY and not anyway:
            self._stats.fail(
                "purge",
                f"none of {stored} metrics in the store is in the tree {os.fsdecode(self._rules.prefix)}, which "
                f"looks like a mistake, nothing was deleted: check -p, -b and --storage-path; {remedy}",
            )
            return True
        if self._due >= MANY and self._due * 2 >= stored and not anyway:
            self._stats.fail(
                "purge",
                f"{self._due} of {stored} metrics in the store are due for deletion, which looks like a mistake, "
                f"nothing was deleted: check the tree (is a disk missing?), -p, -b and --storage-path; {remedy}",
            )
            return True
        if self._missing >= MANY and self._missing * 2 >= stored and self._rules.days:
            days = self._rules.days
            before = f" before they are purged, {days} days after they disappeared" if days > 0 else ""
            logger.warning(
                "%d of %d metrics in the store are not in the tree any more; if that is a mistake (a missing disk, a "
                "renamed folder, a wrong -p), fix it%s", self._missing, stored, before,
            )  # fmt: skip
        return False

    def _is_same_tree(self) -> bool:
        """Whether the tree is the one that the walk began with, and not what an unmounted disk leaves."""
        try:
            check_tree(self._rules.prefix)
            if os.path.samestat(os.stat(self._rules.prefix), self._root):
                return True
            self._stats.fail("purge", "nothing was purged, since the prefix became another folder meanwhile")
        except (NoTree, OSError) as error:
            self._stats.fail("purge", f"nothing was purged: {error}")
        return False

    def _is_back(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._rules.prefix, names.metric_path(name)))


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise CannotRun(
            f"cannot write to {folder} what to purge: {error.strerror}; make room, or name another folder in TMPDIR"
        ) from error


def log_return(name: str, noop: bool) -> None:
    """Log that the metric `name` loses its tombstone."""
    state = "would no longer be" if noop else "no longer"
    logger.info("%s: is in the tree again, %s marked as missing", name, state)
