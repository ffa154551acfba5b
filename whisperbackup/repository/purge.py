"""Finds the metrics that are missing from the tree, and deletes them after their days of grace.

A metric without a file gets a tombstone, loses it when the file exists again, and is deleted when the tombstone is old
enough.  A tombstone that is not empty remembers that many metrics disappeared at once: whatever the store gets later,
these are deleted only with --purge-anyway.  One pass over tree and store writes these actions to a temporary file; they
are carried out only if the pass ends without an error.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from whisperbackup.errors import NotFound, NoTree
from whisperbackup.report.counters import Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import keys
from whisperbackup.repository.catalog import Metric, Orphan
from whisperbackup.repository.compression import CODECS
from whisperbackup.repository.deleter import DeleteObjects, Deleter, HasDriver
from whisperbackup.repository.future_stamps import horizon
from whisperbackup.repository.join import Pair
from whisperbackup.repository.outcome import Outcome, PendingDelete
from whisperbackup.repository.spool import Spool
from whisperbackup.repository.stamps import next_stamp, stamp_of
from whisperbackup.repository.steady import Steady
from whisperbackup.storage.base import Driver, Exists, create_all
from whisperbackup.tree import names
from whisperbackup.tree.walk import LocalFile, Skipped, check_tree

logger = logging.getLogger(__name__)

ORPHAN_AGE = timedelta(days=1)  # younger ones may be another run's work
KEPT = "%d metrics that are missing for long enough are kept: %s; --purge-anyway deletes them now"
TOGETHER = (
    "{count} metrics that are due for deletion disappeared together, which looks like a mistake, so they are kept: "
    "check the tree that is backed up (is a disk missing?), its -p, -b and --storage-path; -d names them; if it is not "
    "a mistake, use --purge-anyway"
)
HIDDEN = (
    "{count} metrics were marked as missing before a link took the place of their files: prune will delete their "
    "backups; replace the link by what it leads to, or run backup once without --no-delete, which removes the marks"
)
ANYWAY = "if it is not, --purge-anyway deletes them then"
MANY = 10  # if at least this many metrics, and half of the store, are missing at once, that is treated as a mistake


class PutTombstone(NamedTuple):
    """Mark the metric `name` as missing."""

    name: str
    key: str
    body: bytes = b""
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Raises StorageError."""
        # Created, since a service that denies deleting may also deny replacing what an attempt before stored.
        with contextlib.suppress(Exists):  # another run marked it in the same second, and counted other metrics
            create_all(context.driver, [(self.key, self.body)])
        return Outcome(self.name, {Count.MARKED_MISSING: 1})


class RemoveOrphan(NamedTuple):
    """Delete half a backup of the metric `name`, if its other half does not exist."""

    name: str
    metric_key: str
    orphan: Orphan
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
        """Whether the other half exists although it is not listed: a Swift listing can lag behind for hours."""
        stamp = self.orphan.stamp
        mark = keys.mark(self.metric_key, stamp)
        payloads = [keys.payload(self.metric_key, stamp, codec) for codec in CODECS]
        for key in payloads if f"{stamp}.sha1" in self.orphan.suffixes else [mark]:
            try:
                driver.get(key)
                return True
            except NotFound:
                continue
        return False


class PurgeMetric(NamedTuple):
    """Delete all objects of the metric `name`, its tombstones after the others.

    `tombstone` is the key of the one that it gets instead, if its deletion looks like a mistake.
    """

    name: str
    keys: tuple[str, ...]
    tombstones: tuple[str, ...]
    is_together: bool  # it disappeared with many others
    tombstone: str


class VoidTombstones(NamedTuple):
    """Delete tombstones of the metric `name`, which is not purged any more."""

    name: str
    keys: tuple[str, ...]


class Rules(NamedTuple):
    """The limits of a purge, for metrics of the tree `prefix` below `storage_path`."""

    prefix: bytes
    storage_path: str
    days: int  # 0: at once, -1: never
    anyway: bool  # even if it looks like a mistake
    noop: bool
    deletes: bool = True  # with --no-delete everything is planned, and left to prune


class Plan(NamedTuple):
    """The action for one metric: delete everything, or else write a tombstone with this stamp."""

    tombstone: str | None
    is_due: bool


def plan(metric: Metric, days: int, now: datetime, deletes: bool = True, latest: datetime | None = None) -> Plan:
    """The action for a metric that is not in the tree, with `days` of grace (0: none, -1: for ever).

    Without `deletes` it gets a tombstone in any case, which is how prune learns that it is missing.  A tombstone that
    is not later than the newest backup is ignored; of several the newest counts.  A metric with half a backup alone
    needs none: the half is deleted by its age.  The tombstone is stamped no earlier than `latest`.
    """
    if days < 0 or not metric.is_canonical:
        return Plan(None, False)
    if not metric.missing_since:
        stamp = next_stamp(max(now, latest or now), metric.last_stamp) if metric.backups else None
        return Plan(stamp, days == 0 and deletes)
    return Plan(None, (days == 0 and deletes) or is_due(metric, days, now))


def is_due(metric: Metric, days: int, now: datetime) -> bool:
    """Whether the metric has had a tombstone for `days` (-1: never)."""
    if days < 0 or not metric.is_canonical or not metric.missing_since:
        return False
    return metric.missing_since <= stamp_of(now - timedelta(days=days))


def needs_new_backup(metric: Metric, days: int, now: datetime, deletes: bool) -> bool:
    """Whether a metric that is in the tree again must be stored even if it did not change.

    Without `deletes` only a newer backup voids its tombstone.  With them one is needed if the tombstone is due within a
    day: a prune on another machine may be deleting all backups that it listed, and it has not listed the new one.
    A tombstone ahead of the clock is not due before the clock gets there.
    """
    latest = horizon(now)
    newest = metric.backups[-1].stamp if metric.backups else ""
    tombstone = max((stamp for stamp in metric.tombstones if stamp <= latest), default="")
    if tombstone <= newest:
        return False
    return not deletes or days <= 0 or tombstone <= stamp_of(now - timedelta(days=days - 1))


def looks_wrong(count: int, known: int) -> bool:
    """Whether it looks like a mistake that `count` of the `known` metrics are missing, or due."""
    return count >= MANY and count * 2 >= known


def of_which(together: int) -> str:
    """How many of the metrics before it disappeared together, for a message."""
    return f", {together} of which disappeared together" if together else ""


def keys_of(metric: Metric, now: datetime) -> list[str]:
    """The suffixes of the keys of its backups and orphans.

    Orphans younger than a day are excluded: another run may be about to complete them.
    """
    backups = [suffix for backup in metric.backups for suffix in backup.suffixes()]
    orphans = [suffix for half in metric.orphans if is_old(half, now) for suffix in half.suffixes]
    return [*backups, *orphans]


def is_old(orphan: Orphan, now: datetime) -> bool:
    """Whether it is too old to belong to a run in progress."""
    return orphan.stamp <= stamp_of(now - ORPHAN_AGE)


class Purge:
    """The missing metrics that one pass over tree and store finds, and the actions for them."""

    def __init__(self, rules: Rules, stats: RunStats, steady: Steady) -> None:
        self._rules = rules
        self._stats = stats
        self._now = steady.now
        self._steady = steady._replace(since=0, doubt="") if rules.anyway else steady
        self.saw_any = False
        """Whether any metric was selected, in the tree or in the store."""
        self.saw_stored = False
        """Whether any metric was selected in the store."""
        self.deletes_any = False
        """Whether the backups of a metric are deleted."""
        # These count only metrics with a backup in the store: orphans of interrupted runs and metrics that were never
        # backed up are no evidence.
        self._here = 0  # in the tree
        self._stayed = 0  # of them, those that have not just come back
        self._missing = 0  # not in the tree
        self._marked = 0  # of them, those that this run marks as missing, if it does not delete them
        self._together = 0  # those that an earlier run marked together with many others
        self._due = 0  # those to be deleted
        self._due_together = 0  # of them, those that were marked together with many others
        self._kept = 0  # those that would be, could the clock be trusted
        self._hidden = 0  # those that were marked as missing before a link took their place
        self._is_blind = False
        self._root = os.stat(rules.prefix)
        self._spool = Spool[PutTombstone | PurgeMetric | VoidTombstones | RemoveOrphan]()

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield `pairs` unchanged; record missing metrics and the parts of the tree that the walk could not read."""
        for pair in pairs:
            if isinstance(pair.local, Skipped):
                if pair.metric is None:
                    self._record_skipped(pair.local)
                elif pair.metric.missing_since and not pair.local.is_unseen:
                    self._record_hidden(pair.metric)
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

    def _record_hidden(self, metric: Metric) -> None:
        self._hidden += 1
        key = keys.metric_key(self._rules.storage_path, metric.name)
        tombstones = tuple(keys.tombstone(key, stamp) for stamp in metric.tombstones)
        self._spool.write(VoidTombstones(metric.name, tombstones))

    def _record(self, metric: Metric, is_missing: bool) -> None:
        has_backup = bool(metric.backups)
        self._here += has_backup and not is_missing
        self._stayed += has_backup and not is_missing and not metric.missing_since
        self._missing += has_backup and is_missing
        if not is_missing and not metric.orphans:
            return
        key = keys.metric_key(self._rules.storage_path, metric.name)
        if is_missing:
            self._stats.count(Count.MISSING)
            together = has_backup and metric.left_with_many
            self._together += together
            try:
                # A mark of a clock that is behind would be old when the clock is right again.
                tombstone, is_due = plan(metric, self._rules.days, self._now, self._rules.deletes, self._steady.latest)
            except ValueError as error:
                self._stats.fail(metric.name, str(error))
                return
            is_marked = tombstone and (is_due or not self._steady.doubt)
            mark = keys.tombstone(key, tombstone) if tombstone and is_marked else ""
            self._marked += bool(mark)
            if mark and not is_due:
                self._spool.write(PutTombstone(metric.name, mark))
            if is_due and not self._steady.has_shown(self._rules.days):
                self._kept += has_backup
            elif is_due:
                self._due += has_backup
                self._due_together += together
                others = tuple(key + suffix for suffix in keys_of(metric, self._now))
                tombstones = tuple(keys.tombstone(key, stamp) for stamp in metric.tombstones)
                self._spool.write(PurgeMetric(metric.name, others, tombstones, together, mark))
                return
        if metric.is_canonical and self._steady.covers(ORPHAN_AGE):
            for half in metric.orphans:
                if is_old(half, self._now):
                    self._spool.write(RemoveOrphan(metric.name, key, half))

    def jobs(self, deleter: Deleter) -> Iterator[PutTombstone | DeleteObjects | RemoveOrphan]:
        """Yield the actions after the end of the pass; none, if a part of the tree could not be read.

        Deletions are added to `deleter`, whose full jobs are yielded in between.
        """
        yield from deleter.flush()
        if self._is_blind:
            self._stats.fail(
                "purge", "nothing was purged, since a part of the tree could not be read; run as its owner"
            )
            return
        if not self._is_same_tree():
            return
        self._warn_of_leap()
        if self._hidden and not self._rules.deletes:
            self._stats.fail("purge", HIDDEN.format(count=self._hidden))
        body = self._body()
        is_mistake = self._is_mistake(self._marked if body else 0)
        keeps_together = self._due_together >= MANY and self._rules.deletes and not self._rules.anyway
        if keeps_together and not is_mistake:
            self._stats.fail("purge", TOGETHER.format(count=self._due_together))
        for job in self._spool.read():
            if isinstance(job, PutTombstone):
                would = "would be " if self._rules.noop else ""
                logger.info("%s: not in the tree, %smarked as missing", job.name, would)
                yield job._replace(body=body)
            elif isinstance(job, VoidTombstones):
                if self._rules.deletes:
                    logger.info(
                        "%s: a link is in the place of its file, so it is no longer marked as missing", job.name
                    )
                    deleter.add(PendingDelete(Count.CAME_BACK, job.keys))
            elif is_mistake:
                if isinstance(job, PurgeMetric) and job.tombstone:
                    yield PutTombstone(job.name, job.tombstone, body)
            elif keeps_together and isinstance(job, PurgeMetric) and job.is_together:
                logger.debug("%s: kept, it disappeared together with many others", job.name)
            elif isinstance(job, RemoveOrphan):
                if self._rules.deletes:
                    yield job
                else:
                    orphans = tuple(job.metric_key + suffix for suffix in job.orphan.suffixes)
                    deleter.add(PendingDelete(Count.ORPHANS_REMOVED, orphans))
            elif self._is_back(job.name):
                logger.info("%s: not purged, its file exists again", job.name)
            else:
                deletes = self._rules.deletes
                did = "would be deleted" if self._rules.noop else "purged" if deletes else "left to prune"
                logger.info("%s: %s, missing for long enough", job.name, did)
                self.deletes_any = deletes
                deleter.add(PendingDelete(Count.PURGED, job.keys, job.tombstones))
            yield from deleter.full_jobs()

    def _warn_of_leap(self) -> None:
        if self._steady.doubt and self._rules.days:
            logger.warning(
                "%s; in this run no metric is marked as missing or deleted after its days of grace, which are counted "
                "anew; correct the clock if it is wrong", self._steady.doubt,
            )  # fmt: skip
        elif self._kept:
            logger.warning(KEPT, self._kept, self._steady.remark)

    def _body(self) -> bytes:
        """What the tombstones of this run remember: how many metrics disappeared at once, if that looks like a mistake.

        The store may have got the metrics of the wrong tree since, and no longer show it.
        """
        known = self._stayed + self._marked
        if not looks_wrong(self._marked, known):
            return b""
        return b"missing together with %d of %d metrics\n" % (self._marked, known)

    def _is_mistake(self, together_now: int) -> bool:
        """Whether the due deletions look like a mistake, which is a failure; warns of one that is not due yet.

        So many metrics disappeared with many others since the last run, beside those before.
        """
        stored = self._here + self._missing
        remedy = "if it is not a mistake, use --purge-anyway"
        anyway = self._rules.anyway or not self._rules.deletes
        if self._due and not self._here and stored >= MANY and not anyway:
            self._stats.fail(
                "purge",
                f"none of {stored} metrics in the store is in the tree {os.fsdecode(self._rules.prefix)}, which "
                f"looks like a mistake, nothing was deleted: check -p, -b and --storage-path; {remedy}",
            )
            return True
        if (looks_wrong(self._due, stored) or (together_now and not self._rules.days)) and not anyway:
            self._stats.fail(
                "purge",
                f"{self._due} of {stored} metrics in the store are due for deletion, which looks like a mistake, "
                f"nothing was deleted: check the tree (is a disk missing?), -p, -b and --storage-path; {remedy}",
            )
            return True
        days, deletes = self._rules.days, self._rules.deletes
        together = self._together + together_now - (self._due_together if deletes else 0)
        if (together >= MANY or looks_wrong(self._missing, stored)) and (days or not deletes):
            until = f" before they are due, {days} days after they disappeared; {ANYWAY}" if days > 0 else ""
            logger.warning(
                "%d of %d metrics in the store are not in the tree any more%s; if that is a mistake (a missing disk, a "
                "renamed folder, a wrong -p), fix it%s", self._missing, stored, of_which(together), until,
            )  # fmt: skip
        return False

    def _is_same_tree(self) -> bool:
        """Whether the tree is still the same, and not the empty folder of an unmounted disk."""
        try:
            check_tree(self._rules.prefix)
            if os.path.samestat(os.stat(self._rules.prefix), self._root):
                return True
            self._stats.fail(
                "purge",
                "nothing was purged, since the prefix became another folder during this run",
            )
        except (NoTree, OSError) as error:
            self._stats.fail("purge", f"nothing was purged: {error}")
        return False

    def _is_back(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._rules.prefix, names.metric_path(name)))


def log_return(name: str, noop: bool) -> None:
    """Log that the metric `name` loses its tombstone."""
    state = "would no longer be" if noop else "no longer"
    logger.info("%s: is in the tree again, %s marked as missing", name, state)
