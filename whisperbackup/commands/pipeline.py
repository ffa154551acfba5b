"""The way through the store, or through tree and store, and the pool that does the jobs found there."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator

from whisperbackup.commands import nothing_matches, open_catalog, open_store
from whisperbackup.commands.context import MetricJob, WorkerPool, open_pool
from whisperbackup.errors import Unavailable
from whisperbackup.options import Options
from whisperbackup.report.progress import reporting, tick
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.catalog import Backup, Catalog, Metric, look_up, newest_at
from whisperbackup.repository.deleter import Deleter
from whisperbackup.repository.join import Pair, join
from whisperbackup.repository.outcome import Outcome
from whisperbackup.repository.purge import Purge
from whisperbackup.repository.state import State
from whisperbackup.runtime.signals import Stopped
from whisperbackup.storage.base import Driver
from whisperbackup.tree import walk

logger = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 20  # of the store, each after the driver's own retries, that end a run
MAX_SECONDS_WITHOUT_SUCCESS = 50.0  # that such failures last, two or more of them and nothing else, before they do
MANY_LINES = 20  # of metrics that fail for one and the same reason; half a million help nobody


def run_jobs(
    pool: WorkerPool,
    jobs: Iterable[MetricJob],
    stats: RunStats,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> None:
    """Have `pool` do `jobs`; adds every outcome to `stats`, then calls `on_outcome` with it.

    When a stop signal comes, jobs in flight are waited for and counted before it is raised.  Raises Unavailable when
    the store does nothing but fail.  How long it has done so is measured from when the first failed job began to when
    the last one ended, or from a later success: while the parent passes over what is unchanged, nothing is asked of
    the store, so nothing can succeed.
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
    except Stopped:
        for done in pool.drain():
            add(done.result)
        raise


def finish_purge(pool: WorkerPool, purge: Purge, deleter: Deleter, stats: RunStats) -> None:
    """Do what a finished pass over tree and store has planned, and delete what is left in `deleter`."""
    run_jobs(pool, purge.jobs(deleter), stats, lambda outcome: deleter.add(*outcome.deletes))
    run_jobs(pool, deleter.flush(), stats)


def tree_and_store(options: Options, driver: Driver, state: State) -> tuple[Catalog, Iterator[Pair]]:
    """The catalog, and its join with the tree, for one pass over both; `state` knows where to cut a long listing."""
    local = walk.walk(options.prefix, options.selection, walk.Sidecars())
    catalog = Catalog(driver, options.storage_path, options.selection, state.split_keys())
    return catalog, join(local, catalog)


def restorable(
    catalog: Iterable[Metric], date: str | None, stats: RunStats, now_of: Callable[[str], Metric]
) -> Iterator[tuple[Metric, list[Backup]]]:
    """The metrics that have a complete backup at or before `date`, with these backups, the newest first.

    A metric without one is a named failure; if many have only later backups, some are named and all are counted.
    `now_of` looks up what the store holds of a metric at this moment.
    """
    too_late, earliest = 0, ""
    for metric in catalog:
        if metric.debris and not metric.backups:
            metric = now_of(metric.name)  # a run that rotates its backups at this moment looks so, too
        candidates = newest_at(metric, date)
        if candidates:
            yield metric, candidates
        elif metric.backups:
            first = metric.backups[0].stamp
            too_late, earliest = too_late + 1, min(earliest or first, first)
            reason = f"has no backup as old as {date}; its first is of {first}"
            stats.fail(metric.name, reason, is_logged=too_late <= MANY_LINES)
        elif metric.debris:
            stats.fail(metric.name, "has no complete backup, only what an interrupted run left")
    if too_late > MANY_LINES:
        logger.error(
            "%d metrics have no backup as old as %s, %d of them named above; the earliest of their backups is of %s",
            too_late, date, MANY_LINES, earliest,
        )  # fmt: skip


def work_on_backups(
    options: Options,
    stats: RunStats,
    jobs: Callable[[Metric, list[Backup]], Iterable[MetricJob]],
    is_selected: Callable[[str], bool] = lambda _: True,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> int:
    """Have a pool do `jobs(metric, candidates)` for every selected metric in the store; the exit status."""
    saw_any = False

    def seen(catalog: Iterable[Metric]) -> Iterator[Metric]:
        nonlocal saw_any
        for metric in catalog:
            saw_any = True
            if is_selected(metric.name):
                yield metric

    with open_store(options) as driver:
        with open_pool(options, driver) as pool, reporting(stats, options.quiet):
            catalog = open_catalog(options, driver)
            look_up_now = functools.partial(look_up, driver, options.storage_path)
            found = restorable(seen(catalog), options.date, stats, look_up_now)
            run_jobs(pool, (job for metric, backups in found for job in jobs(metric, backups)), stats, on_outcome)
            catalog.report_foreign()
        if not saw_any:
            raise nothing_matches(options, driver)
    return stats.finish()
