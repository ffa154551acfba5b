"""One pass over the store, or over tree and store, and the pool that does what it finds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whisperbackup import tree
from whisperbackup.catalog import Backup, Catalog, Metric, look_up, newest_at
from whisperbackup.commands import nothing_matches, open_catalog, open_store
from whisperbackup.merge import Pair, join
from whisperbackup.options import Options
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.storage import windows
from whisperbackup.storage.base import Driver
from whisperbackup.workers import Pool, Work


def tree_and_store(options: Options, driver: Driver) -> tuple[Catalog, Iterator[Pair]]:
    """The catalog, and its join with the tree, for one pass over both."""
    walk = tree.walk(options.prefix, options.selection)
    milestones: Iterator[str] = iter(())
    if windows.is_ranged(driver) and len(options.selection.heads) == 1:
        # Only where they are asked for: what a walk goes ahead is kept in memory until then.
        walk, milestones = tree.with_milestones(walk)
    catalog = Catalog(driver, options.storage_path, options.selection, milestones)
    return catalog, join(walk, catalog)


def restorable(
    catalog: Iterable[Metric], date: str | None, tally: Tally, now_of: Callable[[str], Metric]
) -> Iterator[tuple[Metric, list[Backup]]]:
    """The metrics that have a complete backup at or before `date`, with these backups, the newest first.

    One that has none is a failure, and named.  `now_of` tells what the store holds of one at this moment.
    """
    for metric in catalog:
        if metric.debris and not metric.backups:
            metric = now_of(metric.name)  # a run that rotates its backups at this moment looks so, too
        candidates = newest_at(metric, date)
        if candidates:
            yield metric, candidates
        elif metric.backups:
            tally.fail(metric.name, f"has no backup as old as {date}; its first is of {metric.backups[0].stamp}")
        elif metric.debris:
            tally.fail(metric.name, "has no complete backup, only what an interrupted run left")


def work_on_backups(
    options: Options,
    tally: Tally,
    prepare: Callable[[Options], Work],
    jobs: Callable[[Metric, list[Backup]], Iterable[Any]],
    is_meant: Callable[[str], bool] = lambda _: True,
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
            work_through(pool, (job for metric, candidates in found for job in jobs(metric, candidates)), tally)
            catalog.report_foreign()
        if not any(tally.figures.values()) and not tally.failed:
            raise nothing_matches(options, driver)
    return tally.finish()
