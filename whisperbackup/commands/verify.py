"""verify: read backups back and check them, without writing anything to the store."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from whisperbackup.commands import open_driver, verify_tree
from whisperbackup.commands.pipeline import work_on_backups
from whisperbackup.options import Options
from whisperbackup.report.run_stats import Tally
from whisperbackup.repository import backups
from whisperbackup.repository.catalog import Backup, Metric, newest_at
from whisperbackup.repository.known_bad import MAX_LINES, KnownBad
from whisperbackup.runtime import clock
from whisperbackup.runtime.budget import Budget
from whisperbackup.runtime.outcome import Outcome
from whisperbackup.runtime.pool import Work, failure
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.tree.selection import is_in_share

COPIES = 2  # of a file that are in memory while it is checked


class Job(NamedTuple):
    """A backup of the metric `name` to be checked."""

    name: str
    backup: Backup
    is_newest: bool  # up to -c
    is_missing: bool  # the metric has a tombstone, so that purge may be about to delete it


def run(options: Options, tally: Tally) -> int:
    """Check the newest backup of every metric that is meant, or that as of -c, or all; the exit status."""
    is_meant = _todays(options.shares, tally)
    if options.compares_tree:
        with noting_bad(options) as note:
            return verify_tree.run(options, tally, is_meant, note)

    def jobs(metric: Metric, candidates: list[Backup]) -> list[Job]:
        chosen = candidates if options.every_backup else candidates[:1]
        return [Job(metric.name, one, one is candidates[0], bool(metric.missing_since)) for one in chosen]

    with noting_bad(options) as note:
        return work_on_backups(options, tally, prepare, jobs, is_meant, note)


@contextlib.contextmanager
def noting_bad(options: Options) -> Iterator[Callable[[Outcome], None]]:
    """What is to be called with each outcome; at the end, however it comes, the next backup is told what is bad."""
    found: list[tuple[str, str]] = []

    def note(outcome: Outcome) -> None:
        if outcome.is_bad and outcome.stamp and len(found) < MAX_LINES:
            found.append((outcome.metric, outcome.stamp))

    try:
        yield note
    finally:
        if found and not options.noop:
            KnownBad(options).add(found)


def _todays(shares: int, tally: Tally) -> Callable[[str], bool]:
    """Whether a metric is in today's share; counts it if not."""
    day = clock.utc_now().toordinal()

    def is_todays(name: str) -> bool:
        is_meant = is_in_share(name, shares, day)
        tally.figures["left to other days"] += not is_meant
        return is_meant

    return is_todays if shares > 1 else lambda _: True


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    return functools.partial(verify_backup, options=options, driver=open_driver(options), budget=Budget())


def verify_backup(job: Job, options: Options, driver: Driver, budget: Budget) -> Outcome:
    """Check one backup; if a run beside this one deleted it, the newest that there is now instead.

    An older one that was deleted vanished, and so did the newest of a metric that purge was to delete.
    """
    backup = job.backup
    try:
        while True:
            outcome, is_gone = check(job.name, backup, options, driver, budget)
            metric = backups.look_again(driver, options.storage_path, job.name, backup) if is_gone else None
            if metric is None:
                return outcome
            now = newest_at(metric, options.date)[:1]
            if job.is_newest and not job.is_missing and not now:
                up_to = f" up to {options.date}" if options.date else ""
                reason = f"all its backups{up_to} were deleted while this run was reading"
                return Outcome(job.name, {"examined": 1}, (reason,))
            # With --all an older one has a job of its own.
            if not job.is_newest or not now or (options.every_backup and now[0].stamp < backup.stamp):
                return Outcome(job.name, {"vanished": 1})
            (backup,) = now
    except StorageError as error:
        return failure(job.name, error, examined=1)._replace(stamp=backup.stamp)


def check(name: str, backup: Backup, options: Options, driver: Driver, budget: Budget) -> tuple[Outcome, bool]:
    """The outcome for each payload of one backup, since restore may come to need any; and whether any is gone.

    Raises StorageError.
    """
    key = f"{options.storage_path}{name}/"
    reasons: list[str] = []
    is_bad = False
    size = 0
    is_gone = False
    for payload in backup.payloads:
        alone = backup._replace(payloads=(payload,))
        try:
            backups.load(driver, key, alone, options.max_file_size, budget, COPIES, len)
            size += payload.size
        except backups.BadBackup as error:
            is_gone |= isinstance(error, backups.GoneBackup)
            reasons.append(str(error))
            is_bad = is_bad or error.is_damaged
    figures = {"examined": 1, "good": int(not reasons), "read bytes": size}
    if not reasons:
        return Outcome(name, figures), False
    told = "; ".join(dict.fromkeys(reasons))  # a bad mark is one fault, however many payloads it has
    reason = f"the backup of {backup.stamp} is bad: {told}"
    return Outcome(name, figures, (reason,), is_bad=is_bad, stamp=backup.stamp), is_gone
