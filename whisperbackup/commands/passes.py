"""One pass over the store, or over tree and store, and the pool that does what it finds."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whisperbackup import tree
from whisperbackup.catalog import Backup, Catalog, Metric, look_up, newest_at
from whisperbackup.commands import nothing_matches, open_catalog, open_store
from whisperbackup.merge import Pair, join
from whisperbackup.options import Options
from whisperbackup.outcome import Outcome
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.state import State
from whisperbackup.storage.base import Driver
from whisperbackup.workers import Pool, Work

logger = logging.getLogger(__name__)

MANY_LINES = 20  # of metrics that fail for one and the same reason; half a million help nobody


def tree_and_store(options: Options, driver: Driver, state: State) -> tuple[Catalog, Iterator[Pair]]:
    """The catalog, and its join with the tree, for one pass over both; `state` knows where to cut a long listing."""
    walk = tree.walk(options.prefix, options.selection, tree.Sidecars())
    catalog = Catalog(driver, options.storage_path, options.selection, state.split_keys())
    return catalog, join(walk, catalog)


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
