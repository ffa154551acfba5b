"""verify: read backups back and check them, without writing anything to the store."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from whisperbackup import backups, util
from whisperbackup.catalog import Backup
from whisperbackup.commands import open_driver, verify_tree
from whisperbackup.commands.passes import work_on_backups
from whisperbackup.known_bad import MAX_LINES, KnownBad
from whisperbackup.options import Options
from whisperbackup.outcome import Outcome
from whisperbackup.progress import Tally
from whisperbackup.selection import is_in_share
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.workers import Budget, Work, failure

COPIES = 2  # of a file that are in memory while it is checked


class Job(NamedTuple):
    """A backup of the metric `name` to be checked."""

    name: str
    backup: Backup


def run(options: Options, tally: Tally) -> int:
    """Check the newest backup of every metric that is meant, or that as of -c, or all; the exit status."""
    is_meant = _todays(options.shares, tally)
    if options.compares_tree:
        with noting_bad(options) as note:
            return verify_tree.run(options, tally, is_meant, note)

    def jobs(name: str, candidates: list[Backup]) -> list[Job]:
        return [Job(name, backup) for backup in (candidates if options.every_backup else candidates[:1])]

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
    day = util.utc_now().toordinal()

    def is_todays(name: str) -> bool:
        is_meant = is_in_share(name, shares, day)
        tally.figures["left to other days"] += not is_meant
        return is_meant

    return is_todays if shares > 1 else lambda _: True


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    return functools.partial(verify_backup, options=options, driver=open_driver(options), budget=Budget())


def verify_backup(job: Job, options: Options, driver: Driver, budget: Budget) -> Outcome:
    """Check one backup, each of its payloads: restore may come to need any of them."""
    key = f"{options.storage_path}{job.name}/"
    reasons: list[str] = []
    is_bad = False
    size = 0
    for payload in job.backup.payloads:
        alone = job.backup._replace(payloads=(payload,))
        try:
            backups.load(driver, key, alone, options.max_file_size, budget, COPIES, len)
            size += payload.size
        except backups.BadBackup as error:
            reasons.append(str(error))
            is_bad = is_bad or error.is_damaged
        except StorageError as error:
            return failure(job.name, error, examined=1)._replace(stamp=job.backup.stamp)
    figures = {"examined": 1, "good": int(not reasons), "read bytes": size}
    if not reasons:
        return Outcome(job.name, figures)
    told = "; ".join(dict.fromkeys(reasons))  # a bad mark is one fault, however many payloads it has
    stamp = job.backup.stamp
    return Outcome(job.name, figures, (f"the backup of {stamp} is bad: {told}",), is_bad=is_bad, stamp=stamp)
