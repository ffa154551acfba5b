"""verify: read backups and check them, without writing anything to the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from whisperbackup import util
from whisperbackup.commands import verify_tree
from whisperbackup.commands.context import Context
from whisperbackup.commands.known_store import known_bad_of
from whisperbackup.commands.pipeline import work_on_backups
from whisperbackup.errors import StorageError
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import backups, keys
from whisperbackup.repository.catalog import Backup, Metric, newest_at
from whisperbackup.repository.known_bad import MAX_LINES
from whisperbackup.repository.outcome import Outcome, failed
from whisperbackup.runtime import clock
from whisperbackup.tree.selection import is_in_share

COPIES = 2  # of a file that are in memory while it is checked


def run(options: Options, stats: RunStats) -> int:
    """Check the backups that restore would use of every selected metric, or all backups; the exit status."""
    is_selected = _in_todays_share(options.shares, stats)
    with _recording_bad(options) as on_outcome:
        if options.compares_tree:
            return verify_tree.run(options, stats, is_selected, on_outcome)

        def jobs(metric: Metric, candidates: list[Backup]) -> list[VerifyBackup]:
            chosen = candidates if options.every_backup else used_by_restore(candidates)
            return [VerifyBackup(metric.name, one, one is candidates[0], bool(metric.missing_since)) for one in chosen]

        return work_on_backups(options, stats, jobs, is_selected, on_outcome)


def used_by_restore(candidates: list[Backup]) -> list[Backup]:
    """The newest of `candidates`, and the older ones that dwarf everything newer: restore fills gaps from these."""
    generations = [backups.generation_of(backup) for backup in candidates]
    return [one for index, one in enumerate(candidates) if util.dwarfs(generations[index], generations[:index])]


@contextlib.contextmanager
def _recording_bad(options: Options) -> Iterator[Callable[[Outcome], None]]:
    """What to call with each outcome; at the end, even an early one, the next backup is told what is damaged."""
    found: list[tuple[str, str]] = []

    def on_outcome(outcome: Outcome) -> None:
        if outcome.is_damaged and outcome.stamp and len(found) < MAX_LINES:
            found.append((outcome.name, outcome.stamp))

    try:
        yield on_outcome
    finally:
        if found and not options.noop:
            known_bad_of(options).add(found)


def _in_todays_share(shares: int, stats: RunStats) -> Callable[[str], bool]:
    """Whether a metric is in today's share; counts it if not."""
    day = clock.utc_now().toordinal()

    def is_todays(name: str) -> bool:
        is_selected = is_in_share(name, shares, day)
        stats.count(Count.LEFT_TO_OTHER_DAYS, not is_selected)
        return is_selected

    return is_todays if shares > 1 else lambda _: True


class VerifyBackup(NamedTuple):
    """Check one backup of the metric `name`."""

    name: str
    backup: Backup
    is_newest: bool  # up to -c
    is_missing: bool  # the metric has a tombstone, so purge may be about to delete it
    examines: bool = True

    def run(self, context: Context) -> Outcome:
        """Check the backup; if a concurrent run deleted it, check the newest that there is now instead.

        An older one that was deleted vanished, and so did the newest of a metric that purge was to delete.
        """
        options, backup = context.options, self.backup
        try:
            while True:
                outcome, is_gone = check(self.name, backup, context)
                if not is_gone:
                    return outcome
                metric = backups.look_again(context.driver, options.storage_path, self.name, backup)
                if metric is None:
                    return outcome
                now = newest_at(metric, options.date)[:1]
                if self.is_newest and not self.is_missing and not now:
                    up_to = f" up to {options.date}" if options.date else ""
                    reason = f"all its backups{up_to} were deleted while this run was reading"
                    return Outcome(self.name, {Count.EXAMINED: 1}, (reason,))
                # With --all an older one has a job of its own.
                if not self.is_newest or not now or (options.every_backup and now[0].stamp < backup.stamp):
                    return Outcome(self.name, {Count.VANISHED: 1})
                (backup,) = now
        except StorageError as error:
            return failed(self, error)._replace(stamp=backup.stamp)


def check(name: str, backup: Backup, context: Context) -> tuple[Outcome, bool]:
    """The outcome for each payload of one backup, since restore may need any; and whether any is gone.

    Raises StorageError.
    """
    key = keys.metric_key(context.options.storage_path, name)
    reasons: list[str] = []
    is_damaged = is_gone = False
    size = 0
    for payload in backup.payloads:
        alone = backup._replace(payloads=(payload,))
        try:
            backups.load(context.driver, key, alone, context.options.max_file_size, context.budget, COPIES, len)
            size += payload.size
        except backups.BadBackup as error:
            is_gone |= isinstance(error, backups.GoneBackup)
            is_damaged |= error.is_damaged
            reasons.append(str(error))
    counts = {Count.EXAMINED: 1, Count.GOOD: int(not reasons), Count.READ_BYTES: size}
    if not reasons:
        return Outcome(name, counts), False
    each = "; ".join(dict.fromkeys(reasons))  # a bad mark is one fault, however many payloads it has
    reason = f"the backup of {backup.stamp} is bad: {each}"
    return Outcome(name, counts, (reason,), is_damaged=is_damaged, stamp=backup.stamp), is_gone
