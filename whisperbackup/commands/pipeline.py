"""One pass over the store, or over tree and store, and the jobs that it yields for the worker pool."""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator

from whisperbackup.commands import check_excluded, expected, fail_unmatched, nothing_matches, open_catalog, open_store
from whisperbackup.commands.context import MetricJob, WorkerPool, open_pool
from whisperbackup.errors import AccessDenied, StorageError, Unavailable
from whisperbackup.increments.merge import Share
from whisperbackup.increments.overlay import NO_OVERLAY, Overlay, Reading, open_overlay
from whisperbackup.options import Options
from whisperbackup.report.counters import Count, key_of
from whisperbackup.report.progress import reporting, tick
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.catalog import Backup, Catalog, Metric, look_up, newest_at
from whisperbackup.repository.deleter import Deleter
from whisperbackup.repository.join import Pair, join
from whisperbackup.repository.outcome import Outcome
from whisperbackup.repository.purge import Purge
from whisperbackup.repository.stamps import seconds
from whisperbackup.repository.state import State
from whisperbackup.runtime import clock
from whisperbackup.runtime.signals import Stopped
from whisperbackup.storage.base import Driver, on_unreadable
from whisperbackup.tree import walk
from whisperbackup.tree.places import Places
from whisperbackup.tree.selection import Unmatched
from whisperbackup.tree.walk import LocalFile

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 20  # the run ends after so many; the driver has retried each
MAX_SECONDS_WITHOUT_SUCCESS = 50.0  # the run ends after two or more failures over so long
SET_BACK = (
    "%d files were set back: where increments have the points that were removed, a restore would bring them back: "
    "run backup now; if these points were wrong, also delete the backups that have them"
)
IN_PART = (
    "%d files were created or healed with the points of --from and --until alone: if they lack others, too, restore "
    "them without these options before the next backup"
)
MANY_LINES = 20  # of metrics that fail for the same reason; half a million lines would help nobody


def run_jobs(
    pool: WorkerPool,
    jobs: Iterable[MetricJob],
    stats: RunStats,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> None:
    """Run `jobs` in `pool`; add every outcome to `stats`, then call `on_outcome` with it.

    On a stop signal, wait for the jobs in flight and count them, then raise Stopped.  Raises Unavailable if the store
    only fails.  That time runs from the start of the first failed job, or from a later success, to the end of the last
    one.  It does not include the time in which the parent skips unchanged files: no request is sent then, so none
    can succeed.
    """

    def add(outcome: Outcome) -> None:
        stats.add(outcome.name, outcome.counts, outcome.errors, outcome.stamp)
        on_outcome(outcome)

    in_a_row, failing_since, succeeded = 0, 0.0, 0.0
    try:
        for outcome, began, ended in pool.run(jobs):
            add(outcome)
            tick(stats)
            if not outcome.store_failed:
                in_a_row, succeeded = 0, max(succeeded, ended)
                continue
            in_a_row += 1
            if in_a_row == 1:
                failing_since = max(succeeded, began)
            is_silent = in_a_row > 1 and ended - failing_since > MAX_SECONDS_WITHOUT_SUCCESS
            if in_a_row == MAX_CONSECUTIVE_FAILURES or is_silent:
                raise Unavailable(f"the store failed {in_a_row} times in a row, so this run ends here; start it again")
    except (Stopped, StorageError) as error:
        if isinstance(error, Unavailable):
            raise  # jobs in flight would wait for it, too
        for done in pool.drain():
            add(done.result)
        raise


def finish_purge(pool: WorkerPool, purge: Purge, deleter: Deleter, stats: RunStats) -> None:
    """Run the deletions that a finished pass over tree and store has planned, and the rest in `deleter`."""
    run_jobs(pool, purge.jobs(deleter), stats, lambda outcome: deleter.add(*outcome.deletes))
    run_jobs(pool, deleter.flush(), stats)


def tree_and_store(
    options: Options, driver: Driver, state: State, places: Places | None = None
) -> tuple[Catalog, Iterator[Pair]]:
    """The catalog, and its join with the tree, for one pass over both; `state` has keys to split the listing."""
    local = walk.walk(options.prefix, options.selection, walk.Sidecars(), places)
    catalog = Catalog(driver, options.storage_path, options.selection, state.split_keys())
    return catalog, join(local, catalog)


def match(pairs: Iterator[Pair], unmatched: Unmatched) -> Iterator[Pair]:
    """These `pairs`, whose metrics are shown to `unmatched`."""
    return _shown(pairs, unmatched) if unmatched.left else pairs


def _shown(pairs: Iterator[Pair], unmatched: Unmatched) -> Iterator[Pair]:
    for pair in pairs:
        found = pair.metric or pair.local
        if isinstance(found, Metric | LocalFile):
            unmatched.see(found.name)
        yield pair


def restorable(
    catalog: Iterable[Metric],
    date: str | None,
    stats: RunStats,
    now_of: Callable[[str], Metric],
    has_records: Callable[[str], bool] = lambda _: False,
) -> Iterator[tuple[Metric, list[Backup]]]:
    """Yield the metrics with a complete backup at or before `date`, and these backups, the newest first.

    A metric without one is a failure and is named; if many have only later backups, some are named and all are counted.
    `now_of` looks up a metric in the store again; one that `has_records` in increments needs no backup.
    """
    too_late, earliest = 0, ""
    for metric in catalog:
        if metric.orphans and not metric.backups:
            metric = now_of(metric.name)  # it may only look so because another run is rotating its backups
        candidates = newest_at(metric, date)
        if candidates or has_records(metric.name):
            yield metric, candidates
        elif metric.backups:
            first = metric.backups[0].stamp
            too_late, earliest = too_late + 1, min(earliest or first, first)
            reason = f"has no backup as old as {date}; its first is of {first}"
            stats.fail(metric.name, reason, is_logged=too_late <= MANY_LINES)
        elif metric.orphans:
            stats.fail(metric.name, "has no complete backup, only debris of an interrupted run; see list --debris")
    if too_late > MANY_LINES:
        logger.error(
            "%d metrics have no backup as old as %s, %d of them named above; the earliest of their backups is of %s",
            too_late, date, MANY_LINES, earliest,
        )  # fmt: skip


def _warn_of_changes(options: Options, stats: RunStats, may_have_increments: bool) -> None:
    """Say what must follow a restore to a date or of a span, also one that was stopped."""
    counted = stats.whole_numbers()
    replaced, created, healed = (counted.get(key_of(n), 0) for n in (Count.REPLACED, Count.CREATED, Count.HEALED))
    if created + healed and not options.since is options.until is None and not options.noop:
        logger.warning(IN_PART, created + healed)
    if replaced and options.date and not options.noop and may_have_increments:
        logger.warning(SET_BACK, replaced)


def work_on_backups(
    options: Options,
    stats: RunStats,
    jobs: Callable[[Metric, list[Backup], tuple[Share, ...]], Iterable[MetricJob]],
    is_selected: Callable[[str], bool] = lambda _: True,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
    more: Callable[[Overlay], Iterable[MetricJob]] = lambda _: (),
    reads_records: bool = False,
) -> int:
    """Run `jobs(metric, candidates)` for every selected metric in the store; the exit status.

    With `reads_records` the jobs get the metrics' records of increments too; `more` are jobs of the increments' own.
    """
    saw_any, unmatched = False, Unmatched(options.selection)

    def seen(catalog: Iterable[Metric]) -> Iterator[Metric]:
        nonlocal saw_any
        for metric in catalog:
            saw_any = True
            unmatched.see(metric.name)
            if is_selected(metric.name):
                yield metric

    unreadable = 0

    def pass_over(key: str, error: StorageError) -> None:
        nonlocal unreadable
        name = key.removeprefix(options.storage_path)[:-1]
        # All of the storage path, or increments; or the disk is dying, which is no matter of one folder's rights.
        if not name or name.startswith(".") or (unreadable >= MANY_LINES and not isinstance(error, AccessDenied)):
            raise error
        if name in options.selection and "/" not in name:
            unreadable += 1
            unmatched.see(name)
            reason = f"its folder in the store cannot be read: {error}"
            stats.fail(name, reason, is_logged=unreadable <= MANY_LINES)

    with open_store(options) as driver:
        on_unreadable(driver, pass_over)
        check_excluded(options, driver)

        def about() -> int:
            return 0 if options.every_backup else expected.metrics(options, driver) // options.shares

        until = seconds(options.date) if options.date else None
        overlay = NO_OVERLAY
        if not options.no_increments:
            now = int(clock.utc_now().timestamp())
            overlay = open_overlay(driver, options.storage_path, until, options.selection, now, stats.fail)
        with open_pool(options, driver, overlay) as pool, reporting(stats, options.quiet, about):
            catalog = open_catalog(options, driver)
            look_up_now = functools.partial(look_up, driver, options.storage_path)
            used = overlay if reads_records else NO_OVERLAY
            reading = Reading(used, driver, options.storage_path, options.selection, until, stats.fail)
            found = restorable(seen(reading.beside(catalog)), options.date, stats, look_up_now, reading.has_records)
            of_metrics = (
                job for metric, backups in found for job in jobs(metric, backups, reading.take(metric, backups))
            )
            try:
                run_jobs(pool, itertools.chain(of_metrics, more(overlay)), stats, on_outcome)
            finally:
                _warn_of_changes(options, stats, overlay is not NO_OVERLAY or options.no_increments)
            catalog.report_foreign()
            if reading.left_alone:
                logger.warning(
                    "%d metrics are as their backup saw them: not all increments between that and %s are kept",
                    reading.left_alone, options.date,
                )  # fmt: skip
        if unreadable > MANY_LINES:
            logger.error(
                "%d metrics have a folder in the store that cannot be read, %d of them named above; run as a user who "
                "may read them", unreadable, MANY_LINES,
            )  # fmt: skip
        if not saw_any and not unreadable:
            raise nothing_matches(options, driver)
        fail_unmatched(unmatched, stats.fail)
    return stats.finish()
