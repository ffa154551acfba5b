"""verify: read backups and check them; nothing is written to the store."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from whisperbackup.commands import verify_tree
from whisperbackup.commands.context import Context
from whisperbackup.commands.known_store import known_bad_of
from whisperbackup.commands.pipeline import work_on_backups
from whisperbackup.errors import NotFound, StorageError
from whisperbackup.increments.manifest import Part, increment_key
from whisperbackup.increments.merge import Share
from whisperbackup.increments.overlay import DELETED, Overlay, missing, parts_of
from whisperbackup.increments.reader import check_part
from whisperbackup.increments.record import CorruptIncrement
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import backups, keys
from whisperbackup.repository.catalog import Backup, Metric, newest_at
from whisperbackup.repository.choice import Choice
from whisperbackup.repository.known_bad import MAX_LINES
from whisperbackup.repository.outcome import Outcome, failed
from whisperbackup.runtime import clock
from whisperbackup.tree.selection import is_in_share

COPIES = 2  # of a file in memory while it is checked


def run(options: Options, stats: RunStats) -> int:
    """Check the backups that restore would use, or with --all every backup; the exit status."""
    is_selected = _in_todays_share(options.shares, stats)
    with _recording_bad(options) as on_outcome:
        if options.compares_tree:
            return verify_tree.run(options, stats, is_selected, on_outcome)

        def jobs(metric: Metric, candidates: list[Backup], _: tuple[Share, ...]) -> list[VerifyBackup]:
            chosen = candidates if options.every_backup else list(Choice(candidates))
            return [VerifyBackup(metric.name, one, one is candidates[0], bool(metric.missing_since)) for one in chosen]

        def parts(overlay: Overlay) -> Iterator[VerifyPart]:
            for stamp, part, after in parts_of(overlay, options.selection):
                if is_selected(f"{stamp}/{part.name}"):
                    yield VerifyPart(f"the increment of {stamp}", stamp, part, after)

        return work_on_backups(options, stats, jobs, is_selected, on_outcome, parts)


@contextlib.contextmanager
def _recording_bad(options: Options) -> Iterator[Callable[[Outcome], None]]:
    """A function to call with each outcome; at the end, even an early one, damaged backups are recorded for backup."""
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
    """A function that returns whether a metric is in today's share, and counts it if not."""
    day = clock.utc_now().toordinal()

    def is_todays(name: str) -> bool:
        is_selected = is_in_share(name, shares, day)
        stats.count(Count.LEFT_TO_OTHER_DAYS, not is_selected)
        return is_selected

    return is_todays if shares > 1 else lambda _: True


class VerifyPart(NamedTuple):
    """Check one part of the increment `stamp`; `after` is the first key of the next part, if there is one."""

    name: str
    stamp: str
    part: Part
    after: str
    examines: bool = True

    def run(self, context: Context) -> Outcome:
        """Check the part; one whose increment was deleted or rewritten meanwhile counts as vanished."""
        path, part = context.options.storage_path, self.part
        counts = {Count.EXAMINED: 1}
        try:
            with context.budget.take(part.size):
                content = context.driver.get(path + increment_key(self.stamp, part.name))
                last, _ = check_part(part, [content])
            if self.after and last >= self.after:
                raise CorruptIncrement(f"part {part.name}: '{last}' comes before '{self.after}' of the next part")
        except NotFound:
            reason = missing(context.driver, path, self.stamp, part.name)
            if reason == DELETED:
                return Outcome(self.name, {Count.VANISHED: 1})
            return Outcome(self.name, counts, (reason,))
        except CorruptIncrement as error:
            return Outcome(self.name, counts, (f"it is damaged: {error}",))
        return Outcome(self.name, counts | {Count.GOOD: 1, Count.READ_BYTES: part.size})


class VerifyBackup(NamedTuple):
    """Check one backup of the metric `name`."""

    name: str
    backup: Backup
    is_newest: bool  # up to -c
    is_missing: bool  # the metric has a tombstone, so purge may be about to delete it
    examines: bool = True

    def run(self, context: Context) -> Outcome:
        """Check the backup; if a concurrent run deleted it, check the newest one that exists now instead.

        An older backup that was deleted counts as vanished; so does the newest of a metric that purge could delete.
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
                    reason = f"all its backups{up_to} were deleted during this run"
                    return Outcome(self.name, {Count.EXAMINED: 1}, (reason,))
                # With --all an older one has a job of its own.
                if not self.is_newest or not now or (options.every_backup and now[0].stamp < backup.stamp):
                    return Outcome(self.name, {Count.VANISHED: 1})
                (backup,) = now
        except StorageError as error:
            return failed(self, error)._replace(stamp=backup.stamp)


def check(name: str, backup: Backup, context: Context) -> tuple[Outcome, bool]:
    """Check every payload of one backup, since restore may need any of them.

    Return the outcome, and whether any payload is gone.  Raises StorageError.
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
    each = "; ".join(dict.fromkeys(reasons))  # a bad mark is one fault, even with several payloads
    reason = backups.BadBackup(each, is_damaged).of(backup.stamp)
    return Outcome(name, counts, (reason,), is_damaged=is_damaged, stamp=backup.stamp), is_gone
