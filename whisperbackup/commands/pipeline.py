"""The way through the store, or through tree and store, and the pool that does the jobs found there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from whisperbackup.runtime.outcome import Outcome
from whisperbackup.runtime.signals import Stopped
from whisperbackup.storage.base import Unavailable

if TYPE_CHECKING:  # what only lists need not load it
    from whisperbackup.runtime.pool import Pool
import functools

from whisperbackup.commands import nothing_matches, open_catalog, open_store
from whisperbackup.options import Options
from whisperbackup.report.progress import tick, told
from whisperbackup.report.run_stats import Tally
from whisperbackup.repository.catalog import Backup, Catalog, Metric, look_up, newest_at
from whisperbackup.repository.join import Pair, join
from whisperbackup.repository.state import State
from whisperbackup.runtime.pool import Pool, Work
from whisperbackup.storage.base import Driver
from whisperbackup.tree import walk

logger = logging.getLogger(__name__)


PATIENCE = 20  # failures of the store in a row, each after the driver's own retries, that end a run
SILENCE = 50.0  # seconds that such failures last, two or more of them and nothing else, after which they do


def work_through(pool: Pool, jobs: Iterable[Any], tally: Tally, take: Callable[[Outcome], None] | None = None) -> None:
    """Have `pool` do `jobs`; adds every outcome to `tally`, then hands it to `take`.

    When a stop signal comes, what is in flight is waited for and counted before the signal goes on its way.
    Raises Unavailable when the store does nothing but fail.  How long it has done so is measured from when the first
    failed job began to when the last one ended, or from a later success: while the parent passes over what is
    unchanged, nothing is asked of the store, so that nothing can succeed.
    """
    in_a_row, failing_since, succeeded = 0, 0.0, 0.0
    try:
        for outcome in pool.run(jobs):
            tally.add(outcome)
            if take is not None:
                take(outcome)
            tick(tally)
            if not outcome.store_failed:
                in_a_row, succeeded = 0, max(succeeded, outcome.ended)
                continue
            in_a_row += 1
            if in_a_row == 1:
                failing_since = max(succeeded, outcome.began)
            if in_a_row == PATIENCE or (in_a_row > 1 and outcome.ended - failing_since > SILENCE):
                raise Unavailable(f"the store failed {in_a_row} times in a row, so this run ends here; start it again")
    except Stopped:
        for outcome in pool.drain():
            tally.add(outcome)
            if take is not None:
                take(outcome)
        raise


logger = logging.getLogger(__name__)

MANY_LINES = 20  # of metrics that fail for one and the same reason; half a million help nobody


def tree_and_store(options: Options, driver: Driver, state: State) -> tuple[Catalog, Iterator[Pair]]:
    """The catalog, and its join with the tree, for one pass over both; `state` knows where to cut a long listing."""
    local = walk.walk(options.prefix, options.selection, walk.Sidecars())
    catalog = Catalog(driver, options.storage_path, options.selection, state.split_keys())
    return catalog, join(local, catalog)


def restorable(
    catalog: Iterable[Metric], date: str | None, tally: Tally, now_of: Callable[[str], Metric]
) -> Iterator[tuple[Metric, list[Backup]]]:
    """The metrics that have a complete backup at or before `date`, with these backups, the newest first.

    One that has none is a failure, and named; of many whose first backup is later, some are, and how many there are.
    `now_of` tells what the store holds of one at this moment.
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
            tally.fail(metric.name, reason, is_logged=too_late <= MANY_LINES)
        elif metric.debris:
            tally.fail(metric.name, "has no complete backup, only what an interrupted run left")
    if too_late > MANY_LINES:
        logger.error(
            "%d metrics have no backup as old as %s, %d of them named above; the earliest of their backups is of %s",
            too_late, date, MANY_LINES, earliest,
        )  # fmt: skip


def work_on_backups(
    options: Options,
    tally: Tally,
    prepare: Callable[[Options], Work],
    jobs: Callable[[Metric, list[Backup]], Iterable[Any]],
    is_meant: Callable[[str], bool] = lambda _: True,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> int:
    """Have a pool do `jobs(metric, candidates)` for every metric in the store that is meant; the exit status."""
    with open_store(options) as driver:
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog = open_catalog(options, driver)
            meant = (metric for metric in catalog if is_meant(metric.name))
            at_this_moment = functools.partial(look_up, driver, options.storage_path)
            found = restorable(meant, options.date, tally, at_this_moment)
            todo = (job for metric, candidates in found for job in jobs(metric, candidates))
            work_through(pool, todo, tally, on_outcome)
            catalog.report_foreign()
        if not any(tally.figures.values()) and not tally.failed:
            raise nothing_matches(options, driver)
    return tally.finish()
