"""verify --tree: compare the local tree with the marks of the newest backups; no payload is read.

On a live node nearly every file differs from last night's backup, and metrics appear and disappear: this is counted,
and is no failure.  Failures are what a restore could not bring back: a metric with a file but no complete backup
(unless the file is less than a day old, and no backup may have seen it), a bad newest mark, and an unreadable file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from whisperbackup.commands import check_storage_path, expected, fail_unmatched, open_store
from whisperbackup.commands.context import Context, open_pool
from whisperbackup.commands.known_store import state_of
from whisperbackup.commands.pipeline import match, run_jobs, tree_and_store
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.progress import reporting
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import backups, keys
from whisperbackup.repository.catalog import Backup, mark_md5
from whisperbackup.repository.join import Pair
from whisperbackup.repository.outcome import Outcome
from whisperbackup.runtime import clock
from whisperbackup.tree.birth import birth_time
from whisperbackup.tree.selection import Unmatched
from whisperbackup.tree.walk import LocalFile, Skipped, check_tree
from whisperbackup.whisper import format, reader

logger = logging.getLogger(__name__)

NEW = 86400.0  # seconds; an older file must have a backup


def run(
    options: Options,
    stats: RunStats,
    is_selected: Callable[[str], bool],
    on_outcome: Callable[[Outcome], None],
) -> int:
    """Compare every selected metric; the exit status.  `on_outcome` is called with each outcome."""
    with open_store(options) as driver:
        check_tree(options.prefix)

        def about() -> int:
            return expected.metrics(options, driver) // options.shares

        with open_pool(options, driver) as pool, reporting(stats, options.quiet, about):
            catalog, pairs = tree_and_store(options, driver, state_of(options))
            pairs = match(pairs, unmatched := Unmatched(options.selection))

            def report(outcome: Outcome) -> None:
                if Count.DIFFER in outcome.counts:
                    _emit(stats, outcome.name, "differs", outcome.stamp)
                on_outcome(outcome)

            seen = _Seen()
            run_jobs(
                pool, _comparable(seen.watch(pairs), is_selected, clock.utc_now().timestamp(), stats), stats, report
            )
            catalog.report_foreign()
        if not seen.stored:
            check_storage_path(options, driver)
    if not seen.any:
        raise CannotRun("no metric matches in the tree or in the store; check -m and --exclude")
    fail_unmatched(unmatched, stats.fail)
    return stats.finish()


class _Seen:
    """Whether any selected metric was seen: in the store, or at all."""

    stored = False
    any = False

    def watch(self, pairs: Iterable[Pair]) -> Iterator[Pair]:
        """Yield `pairs`, and note what they hold."""
        for pair in pairs:
            self.stored |= pair.metric is not None
            self.any |= pair.metric is not None or isinstance(pair.local, LocalFile) or _is_error(pair.local)
            yield pair


def _is_error(local: LocalFile | Skipped | None) -> bool:
    return isinstance(local, Skipped) and local.is_error


def _emit(stats: RunStats, name: str, state: str, stamp: str | None = None) -> None:
    """Report a metric that is no failure, in the debug log and in JSON."""
    logger.debug("%s: %s%s", name, state, f", its newest backup is of {stamp}" if stamp else "")
    stats.emit({"metric": name, "state": state, **({"backup": stamp} if stamp else {})})


def _comparable(
    pairs: Iterator[Pair], is_selected: Callable[[str], bool], now: float, stats: RunStats
) -> Iterator[CompareFile]:
    """Yield a job for each file that has a backup; count the others."""
    for local, metric in pairs:
        if isinstance(local, Skipped) and metric is None:
            _report_skipped(local, stats)
            continue
        name = metric.name if metric else local.name if isinstance(local, LocalFile) else ""
        if not is_selected(name):
            continue
        newest = metric.backups[-1] if metric and metric.backups else None
        if isinstance(local, Skipped):
            stats.count(Count.UNSEEN)
        elif isinstance(local, LocalFile) and newest:
            yield CompareFile(name, local.path, newest)
        elif metric and metric.orphans and not newest:
            stats.count(Count.NOT_BACKED_UP, isinstance(local, LocalFile))
            stats.fail(name, "has no complete backup, only debris of an interrupted run; run backup")
        elif isinstance(local, LocalFile):
            _report_unstored(local, now, stats)
        elif newest:
            stats.count(Count.GONE)
            _emit(stats, name, "gone", newest.stamp)


def _report_skipped(skipped: Skipped, stats: RunStats) -> None:
    path = os.fsdecode(skipped.path)
    if skipped.is_error:
        stats.fail(path, skipped.reason)
    elif skipped.reason:
        logger.warning("%s: not compared: %s", path, skipped.reason)


def _report_unstored(local: LocalFile, now: float, stats: RunStats) -> None:
    if is_new(local.path, now):
        stats.count(Count.NEW)
        _emit(stats, local.name, "new")
    else:
        stats.count(Count.NOT_BACKED_UP)
        stats.fail(local.name, "is in the tree, but has no backup; run backup")


def is_new(path: bytes, now: float) -> bool:
    """Whether the file `path` was certainly created within the day before the Unix time `now`."""
    try:
        born, written = birth_time(path), os.lstat(path).st_mtime
    except FileNotFoundError:
        return True  # created and deleted since the walk
    except OSError:
        return False
    return born is not None and min(born, written) > now - NEW


class CompareFile(NamedTuple):
    """Compare a file with the newest backup of its metric."""

    name: str
    path: bytes
    backup: Backup
    examines: bool = True

    def run(self, context: Context) -> Outcome:
        """Compare the file's content with the backup's mark.  Raises OSError and StorageError."""
        max_size = context.options.max_file_size
        counts, stamp = {Count.EXAMINED: 1}, self.backup.stamp
        try:
            with context.budget.take(min(os.lstat(self.path).st_size, max_size)):
                reading = reader.read(self.path, max_size, context.throttle)
                sha1, size = backups.sha1_of(reading.content), len(reading.content)
        except FileNotFoundError:
            return Outcome(self.name, {Count.VANISHED: 1})
        except (format.CorruptFile, reader.TooNew) as error:  # a short file that has backups was truncated
            return Outcome(self.name, counts, (f"not a whisper file: {error}; its newest backup is of {stamp}",))
        counts[Count.READ_BYTES] = size
        key = keys.metric_key(context.options.storage_path, self.name)
        try:
            is_same = self.backup.mark_md5 == mark_md5(sha1) or sha1 == backups.read_mark(
                context.driver, key, self.backup
            )
        except backups.BadBackup as error:
            return Outcome(self.name, counts, (error.of(stamp),), is_damaged=True, stamp=stamp)
        counts[Count.SAME if is_same else Count.DIFFER] = 1
        return Outcome(self.name, counts, stamp=stamp)
