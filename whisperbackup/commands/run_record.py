"""The record that a backup run leaves in the store: whether it came to its end, and what it cannot vouch for."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta

from whisperbackup import __version__
from whisperbackup.errors import AccessDenied, StorageError
from whisperbackup.increments import expire, history
from whisperbackup.increments.manifest import Run, run_key
from whisperbackup.increments.names import Folding
from whisperbackup.increments.window import MAX_OWED
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.join import Pair
from whisperbackup.repository.outcome import Outcome
from whisperbackup.repository.stamps import next_stamp, seconds, stamp_of
from whisperbackup.repository.steady import Last, Moment, Steady, judge
from whisperbackup.runtime import clock
from whisperbackup.storage.base import Driver
from whisperbackup.tree.places import Place, Places, there
from whisperbackup.tree.walk import LocalFile, Skipped

logger = logging.getLogger(__name__)

DAY = timedelta(days=1)


class RunRecord:
    """The record of this run; the store has it from the beginning, as that of a run which did not end."""

    def __init__(self, options: Options, driver: Driver, stats: RunStats, places: Places) -> None:
        """`places` are those of the walk.

        Raises StorageError if the store cannot be listed; a record that it refuses is a failure of the run.
        """
        self._options, self._driver = options, driver
        moment = _moment()
        begin = int(moment.now.timestamp())
        found = history.look(driver, options.storage_path, begin)
        last = _newest(driver, options, found)
        steady = _judged(last, moment)
        self._places = places
        self._missing = Folding(MAX_OWED)
        self._unsure: list[str] = []
        self._minor: list[str] = []
        days = max(options.keep_increments, options.purge_days)
        self._made_anew = stamp_of(moment.now - days * DAY)
        """A backup later than this that all newer ones are much smaller than may have been of another file, whose last
        points only increments have; an earlier one was of a file that was made smaller on purpose."""
        self._files = 0
        self._first_stamp = self._last_stamp = ""
        self.hours: set[str] = set()
        """The hours, as stamps begin, of all backups in the store."""
        self._run = Run(
            stamp=found.next_stamp(),
            node=os.uname().nodename,
            prefix=os.fsdecode(options.prefix),
            exclude=options.exclude,
            version=__version__,
            begin=begin,
            end=begin,
            boot=moment.boot,
            uptime=moment.uptime,
            places=tuple(sorted(there(options.prefix, last.places if last else ()))),
            status=1,
            is_complete=False,
            is_partial=options.selection.wanted is not None,
            metrics=options.metrics,
            after_increment=found.newest,
            keep_increments=options.keep_increments,
            steady_since=steady.since,
            pause=steady.pause,
        )
        self._has_failed = False
        if not self._put(self._run, stats):
            steady = steady._replace(doubt=steady.doubt or "the record of this run could not be stored")
        self.steady = steady
        """Whether the clock of this run can be trusted."""

    def _put(self, run: Run, stats: RunStats) -> Run | None:
        """Store the record; return it, with the stamp that it got, or None."""
        try:
            try:
                self._driver.put(self._options.storage_path + run_key(run.stamp), run.to_json())
            except AccessDenied:
                if not run.is_complete or self._has_failed:
                    raise
                # Google asks for the right to delete where an object is replaced.  The next second is still before
                # every increment that began during this run.
                run = replace(run, stamp=next_stamp(datetime.fromisoformat(run.stamp), run.stamp))
                self._driver.put(self._options.storage_path + run_key(run.stamp), run.to_json())
        except StorageError as error:
            if not self._has_failed:
                stats.fail("run record", f"cannot store it, so no increment can build on this run: {error}")
            self._has_failed = True
            return None
        return run

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield `pairs` unchanged; note what is not in the tree, and what the walk could not see."""
        for pair in pairs:
            local, metric = pair
            if metric is not None:
                for backup in metric.backups:
                    self.hours.add(backup.stamp[:13])
            if isinstance(local, LocalFile):
                self._files += 1
                self._missing.leave(local.key)
            elif isinstance(local, Skipped) and local.is_unseen:
                if metric is None:
                    self._doubt(local.key)
            elif metric is not None:
                self._missing.add(metric.key)
            yield pair

    def _doubt(self, name: str, is_minor: bool = False) -> None:
        names = self._minor if is_minor else self._unsure
        if len(names) <= MAX_OWED:
            names.append(name)

    def note(self, outcome: Outcome) -> None:
        """Note how the backup of a metric ended."""
        counts = outcome.counts
        if Count.EXAMINED not in counts:
            return  # a deletion
        if outcome.stamp:
            self._first_stamp = min(self._first_stamp or outcome.stamp, outcome.stamp)
            self._last_stamp = max(self._last_stamp, outcome.stamp)
        if outcome.errors or Count.VANISHED in counts or Count.TOO_NEW in counts:
            self._doubt(outcome.name + "/", outcome.is_foreign)
        elif outcome.guarded > self._made_anew:
            self._doubt(outcome.name + "/", is_minor=True)

    def complete(self, stats: RunStats) -> Run:
        """Store how the run ended; if the store fails, that is a failure of the run."""
        missing = self._missing.names()
        unconfirmed = None if missing is None else sorted({*self._unsure, *missing})
        if unconfirmed is None or len(unconfirmed) > MAX_OWED:
            unconfirmed = None
            logger.warning(
                "more than %d metrics could not be backed up or are not in the tree: no increment builds on this run, "
                "and none is deleted because of it", MAX_OWED,
            )  # fmt: skip
        elif len(unconfirmed) + len(self._minor) <= MAX_OWED:
            # Increments may have what they held before they broke, or were recreated.  If there are more of them than
            # that, the tree has junk, or a rule of its schemas was changed.
            unconfirmed = sorted({*unconfirmed, *self._minor})
        run = replace(
            self._run,
            end=_now() + 1,
            files=self._files,
            places=tuple(sorted(self._where())),
            status=3 if stats.failed else 0,
            is_complete=True,
            first_stamp=seconds(self._first_stamp) if self._first_stamp else 0,
            last_stamp=seconds(self._last_stamp) if self._last_stamp else 0,
            unconfirmed=None if unconfirmed is None else tuple(unconfirmed),
            counters=stats.whole_numbers(),
        )
        return self._put(run, stats) or self._run

    def _where(self) -> set[Place]:
        """Where its files were from the walk to the end; of a run for a part, also where it did not look."""
        where = self._places.used
        if self._run.is_partial:
            seen = {place.key for place in self._places.found}
            where = self._places.found | {place for place in self._run.places if place.key not in seen}
        return where & there(self._options.prefix, where)


def look_at_clock(driver: Driver, options: Options) -> Steady:
    """Whether the clock of a run that leaves no record can be trusted.  Raises StorageError."""
    moment = _moment()
    found = history.look(driver, options.storage_path, moment.now.timestamp())
    return _judged(_newest(driver, options, found), moment)


def _moment() -> Moment:
    return Moment(clock.utc_now(), clock.boot_id(), clock.uptime())


def _now() -> int:
    return int(clock.utc_now().timestamp())


def _newest(driver: Driver, options: Options, found: history.Found) -> Run | None:
    return next(history.runs_of(driver, options.storage_path, reversed(found.runs)), None)


def _judged(last: Run | None, moment: Moment) -> Steady:
    return judge(Last(last.begin, last.boot, last.uptime, last.steady_since, last.pause) if last else None, moment)


def _rules(options: Options, beyond: timedelta | None) -> expire.Rules:
    keep = options.keep_increments * DAY
    return expire.Rules(
        options.storage_path, _seconds(keep), None if beyond is None else _seconds(beyond), options.noop
    )


def _seconds(time: timedelta) -> int:
    return int(time.total_seconds())


def delete_debris(driver: Driver, options: Options, steady: Steady, stats: RunStats) -> None:
    """Delete what killed increments left; a failure is one of the run."""
    if not steady.covers(DAY):
        return
    rules = _rules(options, None)
    try:
        expire.delete_debris(driver, rules, int(steady.now.timestamp()), stats)
    except StorageError as error:
        stats.fail("increments", f"cannot delete what killed runs left: {error}")


def expire_increments(
    driver: Driver, options: Options, hours: set[str], run: Run | None, steady: Steady, stats: RunStats
) -> None:
    """Delete the increments and run records that are not needed any more; a failure is one of the run.

    `hours` are those of all backups, as stamps begin; `run` is the record of this run, if it is a backup.  Until their
    days have passed without a leap of the clock, they are kept.
    """
    keep = options.keep_increments * DAY
    beyond = None if options.purge_days < 0 else options.purge_days * DAY
    if options.purge_anyway:
        steady = Steady(steady.now)
    if not steady.covers(max(keep, DAY)):
        return
    if beyond is not None and not steady.covers(keep + beyond):
        beyond = None
    rules = _rules(options, beyond)
    try:
        now = int(steady.now.timestamp())
        expire.expire(driver, rules, now, None if options.selection.wanted else hours, stats, run)
    except StorageError as error:
        stats.fail("increments", f"cannot delete the old ones: {error}")
