"""One pass over the store, or over tree and store, and the pool that does what it finds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whisperbackup import tree
from whisperbackup.catalog import Backup, Catalog, Metric, newest_at
from whisperbackup.commands import nothing_matches, open_store
from whisperbackup.merge import Pair, join
from whisperbackup.options import Options
from whisperbackup.outcome import Outcome
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.state import State
from whisperbackup.storage.base import Driver
from whisperbackup.workers import Pool, Work


def tree_and_store(options: Options, driver: Driver, state: State) -> tuple[Catalog, Iterator[Pair]]:
    """The catalog, and its join with the tree, for one pass over both; `state` knows where to cut a long listing."""
    walk = tree.walk(options.prefix, options.selection)
    catalog = Catalog(driver, options.storage_path, options.selection, state.split_keys())
    return catalog, join(walk, catalog)


def restorable(catalog: Iterable[Metric], date: str | None, tally: Tally) -> Iterator[tuple[Metric, list[Backup]]]:
    """The metrics that have a complete backup at or before `date`, with these backups, the newest first.

    One that has none is a failure, and named.
    """
    for metric in catalog:
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
    jobs: Callable[[str, list[Backup]], Iterable[Any]],
    is_meant: Callable[[str], bool] = lambda _: True,
    on_outcome: Callable[[Outcome], None] | None = None,
) -> int:
    """Have a pool do `jobs(name, candidates)` for every metric in the store that is meant; the exit status."""
    with open_store(options) as driver:
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog = Catalog(driver, options.storage_path, options.selection)
            found = restorable((metric for metric in catalog if is_meant(metric.name)), options.date, tally)
            todo = (job for metric, candidates in found for job in jobs(metric.name, candidates))
            work_through(pool, todo, tally, on_outcome)
            catalog.report_foreign()
        if not any(tally.figures.values()) and not tally.failed:
            raise nothing_matches(options, driver)
    return tally.finish()
