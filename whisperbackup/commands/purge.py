"""purge: delete what has been gone from the tree for long enough, and what interrupted runs left.

A metric without a file gets a tombstone, loses it when the file is seen again, and is deleted when the
tombstone is old enough.  What one pass over tree and store finds is spooled, and carried out only when
both came to their end without an error.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

from whisperbackup import errors
from whisperbackup.commands import open_driver
from whisperbackup.commands.known_store import holds_nothing, open_for_purge, state_of
from whisperbackup.commands.pipeline import tree_and_store, work_through
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.report.progress import told
from whisperbackup.report.run_stats import Tally
from whisperbackup.repository.catalog import Debris, Metric
from whisperbackup.repository.compression import CODECS
from whisperbackup.repository.deleter import Deleter, Deletion, PendingDelete, carry_out
from whisperbackup.repository.join import Pair
from whisperbackup.repository.stamps import next_stamp, stamp_of
from whisperbackup.runtime import clock
from whisperbackup.runtime.outcome import Outcome
from whisperbackup.runtime.pool import Pool, Work
from whisperbackup.storage.base import Driver, NotFound
from whisperbackup.tree import names, walk
from whisperbackup.tree.selection import select
from whisperbackup.tree.walk import LocalFile, Skipped

logger = logging.getLogger(__name__)

DEBRIS_AGE = timedelta(days=1)  # younger debris may be another run's work
MANY = 10  # metrics from which on half of what the store holds, gone at once, is treated as a mistake


class Tombstone(NamedTuple):
    """The mark that the metric `name` is missing, to be put at `key`."""

    name: str
    key: str


class Sweep(NamedTuple):
    """Half a backup of the metric `name`, to go if its other half is really not there."""

    name: str
    key: str  # the metric's
    debris: Debris


class Farewell(NamedTuple):
    """All keys of the metric `name`, which is due; `tombstones` are deleted when the others are gone."""

    name: str
    keys: list[str]
    tombstones: list[str]


class Plan(NamedTuple):
    """What is to be done about one metric: a tombstone to set (its stamp), or everything to delete."""

    tombstone: str | None
    is_due: bool


def plan(metric: Metric, days: int, now: datetime) -> Plan:
    """What becomes of a metric that is surely not in the tree, with `days` of grace (0: none, -1: for ever).

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
    """The ends of the keys of its backups and debris.

    Debris younger than a day is not among them: another run may be about to complete it.
    """
    backups = [suffix for backup in metric.backups for suffix in backup.suffixes()]
    debris = [suffix for half in metric.debris if is_old(half, now) for suffix in half.suffixes]
    return [*backups, *debris]


def is_old(debris: Debris, now: datetime) -> bool:
    """Whether no run can be at work on it any more."""
    return debris.stamp <= stamp_of(now - DEBRIS_AGE)


class Purge:
    """What one pass over tree and store says about metrics that are gone, and what is done about them."""

    def __init__(self, options: Options, tally: Tally) -> None:
        self._options = options
        self._tally = tally
        self._now = clock.utc_now()
        self._saw_any = False
        # Of metrics with a backup, so that what is left of interrupted runs is no evidence either way; and of
        # those alone that the store holds, since metrics of another tree say nothing about these.
        self._here = 0  # in the tree
        self._gone = 0  # not in the tree
        self._due = 0  # of them, those to be deleted
        self._is_blind = False
        self._root = os.stat(options.prefix)
        self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (lives as long as this object)

    @property
    def saw_any(self) -> bool:
        """Whether any metric was in scope, here or in the store."""
        return self._saw_any

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Pass `pairs` on, noting what is gone and what the walk could not see."""
        for pair in pairs:
            if isinstance(pair.local, Skipped):
                if pair.metric is None:
                    self._note_skipped(pair.local)
            elif pair.metric is not None:
                self._note(pair.metric, pair.local is None)
            self._saw_any |= pair.metric is not None or isinstance(pair.local, LocalFile)
            yield pair

    def _note_skipped(self, skipped: Skipped) -> None:
        path = os.fsdecode(skipped.path)
        if skipped.is_error:
            self._is_blind = True
            self._tally.fail(path, skipped.reason)
        elif skipped.reason:
            logger.warning("%s: neither backed up nor purged: %s", path, skipped.reason)

    def _note(self, metric: Metric, is_missing: bool) -> None:
        key = self._options.storage_path + metric.key
        has_backup = bool(metric.backups)
        self._here += has_backup and not is_missing
        self._gone += has_backup and is_missing
        if is_missing:
            self._tally.figures["missing"] += 1
            try:
                tombstone, is_due = plan(metric, self._options.purge_days, self._now)
            except ValueError as error:
                self._tally.fail(metric.name, str(error))
                return
            if tombstone:
                self._write(Tombstone(metric.name, f"{key}{tombstone}.missing"))
            if is_due:
                self._due += has_backup
                keys = [key + suffix for suffix in keys_of(metric, self._now)]
                self._write(Farewell(metric.name, keys, [f"{key}{stamp}.missing" for stamp in metric.tombstones]))
                return
        if metric.debris and metric.is_canonical:
            for half in metric.debris:
                if is_old(half, self._now):
                    self._write(Sweep(metric.name, key, half))

    def _write(self, job: Tombstone | Farewell | Sweep) -> None:
        with _spooling():
            json.dump((type(job).__name__, job), self._spool)
            self._spool.write("\n")

    def carry_out(self, pool: Pool, deleter: Deleter) -> None:
        """Do what the pass has planned, and delete what is left in `deleter`."""
        work_through(pool, self._jobs(deleter), self._tally, lambda outcome: deleter.add(*outcome.pending_deletes))
        work_through(pool, deleter.flush(), self._tally)

    def _jobs(self, deleter: Deleter) -> Iterator[Tombstone | Deletion | Sweep]:
        """What is to be done now that the pass has come to its end: nothing, if it could not see everything."""
        yield from deleter.flush()
        if self._is_blind:
            self._tally.fail(
                "purge", "nothing was purged, since a part of the tree could not be read; run as a user who may"
            )
            return
        if not self._is_still_there():
            return
        is_mistake = self._is_mistake()
        with _spooling():
            self._spool.seek(0)
        noop = self._options.noop
        for line in self._spool:
            kind, fields = json.loads(line)
            if kind == "Tombstone":
                logger.info("%s: not in the tree, %smarked as missing", fields[0], "would be " if noop else "")
                yield Tombstone(*fields)
            elif is_mistake:
                continue
            elif kind == "Sweep":
                name, key, half = fields
                yield Sweep(name, key, Debris(half[0], tuple(half[1]), half[2]))
            elif self._is_back(fields[0]):
                logger.info("%s: came back while this run was at work", fields[0])
            else:
                logger.info("%s: %s, gone for long enough", fields[0], "would be deleted" if noop else "purged")
                deleter.add(PendingDelete("purged", tuple(fields[1]), tuple(fields[2])))
            yield from deleter.full_jobs()

    def _is_mistake(self) -> bool:
        """Whether what is due looks like a mistake, which is a failure; warns of a mistake that is not due yet."""
        stored = self._here + self._gone
        remedy = "if it is none, use --purge-anyway"
        anyway = self._options.purge_anyway
        if self._due and not self._here and stored >= MANY and not anyway:
            self._tally.fail(
                "purge",
                f"none of {stored} metrics in the store is in the tree {os.fsdecode(self._options.prefix)}, which "
                f"looks like a mistake, nothing was deleted: check -p, -b and --storage-path; {remedy}",
            )
            return True
        if self._due >= MANY and self._due * 2 >= stored and not anyway:
            self._tally.fail(
                "purge",
                f"{self._due} of {stored} metrics in the store are due for deletion, which looks like a mistake, "
                f"nothing was deleted: check the tree (is a disk missing?), -p, -b and --storage-path; {remedy}",
            )
            return True
        if self._gone >= MANY and self._gone * 2 >= stored and self._options.purge_days:
            days = self._options.purge_days
            logger.warning(
                "%d of %d metrics in the store are not in the tree any more; if that is a mistake (a missing disk, a "
                "renamed folder, a wrong -p), fix it%s",
                self._gone, stored, f" before they are purged, {days} days after they went missing" if days > 0 else "",
            )  # fmt: skip
        return False

    def _is_still_there(self) -> bool:
        """Whether the tree is the one that the walk began with, and not what an unmounted disk leaves."""
        try:
            check_tree(self._options.prefix)
            if os.path.samestat(os.stat(self._options.prefix), self._root):
                return True
            self._tally.fail("purge", "nothing was purged, since the prefix became another folder meanwhile")
        except (errors.NoTree, OSError) as error:
            self._tally.fail("purge", f"nothing was purged: {error}")
        return False

    def _is_back(self, name: str) -> bool:
        return os.path.lexists(os.path.join(self._options.prefix, names.metric_path(name)))


@contextlib.contextmanager
def _spooling() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        folder = tempfile.gettempdir()
        raise CannotRun(
            f"cannot note in {folder} what to purge: {error.strerror}; make room, or name another folder in TMPDIR"
        ) from error


def work_on(job: Deletion | Tombstone | Sweep, driver: Driver, noop: bool = False) -> Outcome:
    """Do one of purge's jobs; with `noop` the driver changes nothing, and what is logged says so.

    Raises StorageError.
    """
    if isinstance(job, Deletion):
        return Outcome(job.name, carry_out(job, driver))
    if isinstance(job, Tombstone):
        driver.put(job.key, b"")
        return Outcome(job.name, {"marked missing": 1})
    if not job.debris.is_temporary and _has_other_half(job, driver):
        return Outcome(job.name, {})
    did = "would remove" if noop else "removed"
    logger.info("%s: %s what an interrupted run left of %s", job.name, did, job.debris.stamp)
    keys = tuple(job.key + suffix for suffix in job.debris.suffixes)
    return Outcome(job.name, {}, (), (PendingDelete("debris removed", keys),))


def _has_other_half(job: Sweep, driver: Driver) -> bool:
    """Whether what the listing lacks is there after all: a Swift listing can lag behind for hours."""
    stamp = job.debris.stamp
    is_mark = job.debris.suffixes == (f"{stamp}.sha1",)
    for end in [f"wsp.{codec}" for codec in CODECS] if is_mark else ["sha1"]:
        try:
            driver.get(f"{job.key}{stamp}.{end}")
            return True
        except NotFound:
            continue
    return False


def check_tree(prefix: bytes) -> None:
    """Raises NoTree for a prefix that is missing, unreadable, or holds no whisper file at all, as an unmounted disk."""
    walk.check_prefix(prefix)
    if not any(isinstance(item, LocalFile) for item in walk.walk(prefix, select(["*"]))):
        raise errors.NoTree(
            f"there is no whisper file below {os.fsdecode(prefix)}; is it the right folder, is it mounted?"
        )


def run(options: Options, tally: Tally) -> int:
    """Purge without backing up; the exit status."""
    state = state_of(options)
    with contextlib.closing(open_for_purge(options, state)) as driver:
        check_tree(options.prefix)
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(_prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog, pairs = tree_and_store(options, driver, state)
            deleter = Deleter()
            purge = Purge(options, tally)
            work_through(pool, _returned(purge.watch(pairs), options, deleter, tally), tally)
            purge.carry_out(pool, deleter)
            catalog.report_foreign()
        if tally.figures["purged"] and holds_nothing(driver, options):
            state.forget()  # or the next backup would look for what is rightly gone
    return tally.finish()


def _returned(pairs: Iterable[Pair], options: Options, deleter: Deleter, tally: Tally) -> Iterator[Deletion]:
    """Deletions of the tombstones of metrics that are back; what is too little for a request stays in `deleter`."""
    for local, metric in pairs:
        tally.figures["examined"] += metric is not None
        if metric is not None and isinstance(local, LocalFile):
            key = options.storage_path + metric.key
            if metric.tombstones:
                log_return(metric.name, options.noop)
            deleter.add(PendingDelete("came back", tuple(f"{key}{stamp}.missing" for stamp in metric.tombstones)))
        yield from deleter.full_jobs()


def log_return(name: str, noop: bool) -> None:
    """Say that the metric `name` loses its tombstone."""
    state = "would no longer be" if noop else "no longer"
    logger.info("%s: is in the tree again, %s marked as missing", name, state)


def _prepare(options: Options) -> Work:
    driver = open_driver(options)
    return lambda job: work_on(job, driver, options.noop)
