"""What is deleted from the store alone, without a tree: what retention drops, due metrics, void tombstones, orphans.

Whether a metric is missing cannot be seen without its tree: only the tombstones that backups wrote decide.  One pass
over the listing plans everything; nothing is done before it ended without an error.  Each rule stays true while backups
and other prunes go on:

* retention drops a backup because of newer ones, and nothing deletes those for a smaller reason;
* a void tombstone is older than a complete backup, and stays so;
* a due metric is looked up again just before its backups are deleted.  A backup run that finds it in the tree again
  either deleted the tombstone before that look, and it stays, or it stores a new backup (purge.needs_new_backup),
  whose keys are not among those that were listed;
* an orphan is a day old.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from whisperbackup.report.counters import Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import keys
from whisperbackup.repository.catalog import Backup, Metric, look_up
from whisperbackup.repository.deleter import KEYS_AT_ONCE, DeleteObjects, Deleter, HasDriver, Protected, size_of
from whisperbackup.repository.outcome import Outcome, PendingDelete
from whisperbackup.repository.purge import (
    ANYWAY,
    KEPT,
    MANY,
    ORPHAN_AGE,
    TOGETHER,
    RemoveOrphan,
    VoidTombstones,
    is_due,
    is_old,
    keys_of,
    looks_wrong,
    of_which,
)
from whisperbackup.repository.retention import dropped, may_drop
from whisperbackup.repository.spool import Spool
from whisperbackup.repository.steady import Steady
from whisperbackup.util import YEAR, Keep

logger = logging.getLogger(__name__)


class Rules(NamedTuple):
    """The limits of a prune of the metrics below `storage_path`."""

    storage_path: str
    keep: Keep
    days: int  # of grace since the tombstone; 0: none, -1: never
    anyway: bool  # even if it looks like a mistake
    noop: bool
    protected: Protected


class RetainBackups(NamedTuple):
    """Delete what retention does not keep of the metric `name`."""

    name: str
    key: str
    backups: tuple[Backup, ...]
    keep: Keep
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Raises StorageError."""
        surplus = dropped(context.driver, self.key, self.backups, self.keep)
        counts = {Count.GUARDED: len(surplus.guarded)} if surplus.guarded else {}
        if surplus.guarded:
            stamps = ", ".join(surplus.guarded)
            logger.info("%s: kept beyond -r: all newer backups are much smaller: %s", self.name, stamps)
        if surplus.backups:
            level, did = (logging.INFO, "would delete") if context.noop else (logging.DEBUG, "deleting")
            stamps = ", ".join(backup.stamp for backup in surplus.backups)
            logger.log(level, "%s: %s the backups of %s: retention does not keep them", self.name, did, stamps)
        deletes = [
            PendingDelete(Count.REMOVED, tuple(self.key + end for end in backup.suffixes()))
            for backup in surplus.backups
        ]
        return Outcome(self.name, counts, deletes=tuple(deletes))


class Due(NamedTuple):
    """A metric that is missing for long enough, since the stamp of its tombstone, and its keys."""

    name: str
    missing_since: str
    delete: PendingDelete
    is_together: bool  # it disappeared with many others


class DeleteDue(NamedTuple):
    """Delete all that was listed of due metrics, unless a look shows that they are not due any more."""

    name: str
    storage_path: str
    due: tuple[Due, ...]
    protected: Protected
    examines: bool = False

    def run(self, context: HasDriver) -> Outcome:
        """Raises StorageError."""
        pending = []
        for one in self.due:
            if look_up(context.driver, self.storage_path, one.name).missing_since != one.missing_since:
                logger.info("%s: not deleted, a backup or another prune changed it meanwhile", one.name)
                continue
            did = "would be deleted" if context.noop else "deleting it"
            logger.info("%s: %s, missing since %s", one.name, did, one.missing_since)
            pending.append(one.delete)
        return DeleteObjects(self.name, tuple(pending), self.protected).run(context)


class Prune:
    """What one pass over the store finds to delete."""

    def __init__(self, rules: Rules, stats: RunStats, steady: Steady) -> None:
        self._rules = rules
        self._stats = stats
        self._now = steady.now
        self._steady = steady._replace(since=0, doubt="") if rules.anyway else steady
        self._keep = rules.keep._replace(can_tell_year=self._steady.covers(YEAR))
        self.saw_any = False
        """Whether any metric was selected."""
        self._stored = self._missing = self._due = 0  # metrics with a backup; of them
        self._together = self._due_together = 0  # those of `missing` and `due` that disappeared together with many
        self._kept = 0  # those that would be due, could the clock be trusted
        self._spool = Spool[RetainBackups | VoidTombstones | Due | RemoveOrphan]()

    def record(self, metric: Metric) -> None:
        """Plan what is to be deleted of one metric.  Raises CannotRun."""
        self.saw_any = True
        self._stats.count(Count.EXAMINED)
        if not metric.is_canonical:
            return  # nothing that this tool wrote
        has_backup = bool(metric.backups)
        together = has_backup and metric.left_with_many
        self._together += together
        self._stored += has_backup
        if metric.missing_since:
            self._stats.count(Count.MISSING)
            self._missing += has_backup
        key = keys.metric_key(self._rules.storage_path, metric.name)
        is_over = is_due(metric, self._rules.days, self._now)
        if is_over and not self._steady.has_shown(self._rules.days):
            self._kept += has_backup
        elif is_over:
            self._due += has_backup
            self._due_together += together
            others = tuple(key + suffix for suffix in keys_of(metric, self._now))
            tombstones = tuple(keys.tombstone(key, stamp) for stamp in metric.tombstones)
            delete = PendingDelete(Count.PURGED, others, tombstones)
            self._spool.write(Due(metric.name, metric.missing_since, delete, together))
            return
        if may_drop(metric.backups, self._keep):
            self._spool.write(RetainBackups(metric.name, key, metric.backups, self._keep))
        newest = metric.backups[-1].stamp if has_backup else ""
        if void := tuple(keys.tombstone(key, stamp) for stamp in metric.tombstones if stamp <= newest):
            self._spool.write(VoidTombstones(metric.name, void))
        for half in metric.orphans if self._steady.covers(ORPHAN_AGE) else ():
            if is_old(half, self._now):
                self._spool.write(RemoveOrphan(metric.name, key, half))

    def jobs(self, deleter: Deleter) -> Iterator[RetainBackups | DeleteDue | DeleteObjects | RemoveOrphan]:
        """Yield what was planned, after the end of the pass; nothing, if it looks like a mistake."""
        if self._kept:
            logger.warning(KEPT, self._kept, self._steady.remark)
        if self._is_mistake():
            return
        yield from self._deletions_of_due()
        for job in self._spool.read():
            if isinstance(job, VoidTombstones):
                deleter.add(PendingDelete(Count.CAME_BACK, job.keys))
            elif not isinstance(job, Due):
                yield job
            yield from deleter.full_jobs()

    def _deletions_of_due(self) -> Iterator[DeleteDue]:
        keeps_together = self._due_together >= MANY and not self._rules.anyway
        if keeps_together:
            self._stats.fail("prune", TOGETHER.format(count=self._due_together))
        batch: list[Due] = []
        size = 0
        for due in self._spool.read():
            if not isinstance(due, Due):
                continue
            if keeps_together and due.is_together:
                logger.debug("%s: kept, it disappeared together with many others", due.name)
                continue
            if batch and size + size_of(due.delete) > KEYS_AT_ONCE:
                yield self._deletion_of(batch, size)
                batch, size = [], 0
            batch.append(due)
            size += size_of(due.delete)
        if batch:
            yield self._deletion_of(batch, size)

    def _deletion_of(self, batch: Iterable[Due], size: int) -> DeleteDue:
        rules = self._rules
        return DeleteDue(f"deleting {size} objects", rules.storage_path, tuple(batch), rules.protected)

    def _is_mistake(self) -> bool:
        """Whether the due deletions look like a mistake, which is a failure; warns of one that is not due yet."""
        if looks_wrong(self._due, self._stored) and not self._rules.anyway:
            self._stats.fail(
                "prune",
                f"{self._due} of {self._stored} metrics in the store are due for deletion, which looks like a "
                "mistake, nothing was deleted: check the tree that is backed up there (is a disk missing?), and -x; "
                "if it is not a mistake, use --purge-anyway",
            )
            return True
        missing, together = self._missing - self._due, self._together - self._due_together
        if together >= MANY or looks_wrong(missing, self._stored):
            logger.warning(
                "%d of %d metrics in the store were missing from their tree%s; if that is a mistake (a missing disk, a "
                "renamed folder, a wrong -p of backup), fix it before they are due; %s",
                missing, self._stored, of_which(together), ANYWAY,
            )  # fmt: skip
        return False
