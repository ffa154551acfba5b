"""The verbs, one a module; each has a `run(options)` that returns the exit status."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from whisperbackup import storage, tree
from whisperbackup.catalog import Backup, Catalog, Metric, newest_at
from whisperbackup.merge import Pair, join
from whisperbackup.options import Options
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.storage import windows
from whisperbackup.storage.base import Driver
from whisperbackup.util import CannotRun
from whisperbackup.workers import Pool, Work


def open_driver(options: Options, create: bool = False) -> Driver:
    """The bucket that the command line names, open; with --noop nothing in it will change."""
    return storage.open_bucket(options.driver, options.bucket, options.storage_arguments, create, options.noop)


def open_store(options: Options, create: bool = False) -> contextlib.closing[Driver]:
    """The same, as a context manager that closes it."""
    return contextlib.closing(open_driver(options, create))


def nothing_matches(options: Options, driver: Driver) -> CannotRun:
    """That the store has no metric that is meant, and why, as far as a look or two can tell.  Raises StorageError."""
    for name in options.selection.exact:
        if next(driver.list(f"{options.storage_path}{name}."), None):
            return CannotRun(
                f"there is no metric '{name}' in {options.bucket}, but there are some below it: {_all(name)}"
            )
    below = f" below the storage path '{options.storage_path}'" if options.storage_path else ""
    return CannotRun(f"no metric in {options.bucket}{below} matches; {_first_object(driver)}")


def _first_object(driver: Driver) -> str:
    first = next(driver.list(""), None)
    if first is None:
        return "it holds no objects at all"
    hint = " (an older whisper-backup wrote that: --storage-path / reaches it)" if first.key.startswith("/") else ""
    return f"the first object there is '{first.key}'{hint}; see -m, --exclude, --storage-path, and what list shows"


def nothing_to_back_up(options: Options) -> CannotRun:
    """That neither tree nor store has a metric that is meant, and why, as far as a look can tell."""
    for name in options.selection.exact:
        folder = os.path.join(options.prefix, tree.metric_path(name).removesuffix(tree.SUFFIX))
        if os.path.isdir(folder):
            return CannotRun(f"there is no metric '{name}', but '{os.fsdecode(folder)}' is a folder: {_all(name)}")
    return CannotRun("no metric matches, neither in the tree nor in the store; see -m and --exclude")


def _all(name: str) -> str:
    return f"say -m '{name}.*'"


def tree_and_store(options: Options, driver: Driver) -> tuple[Catalog, Iterator[Pair]]:
    """The catalog, and its join with the tree, for one pass over both."""
    walk = tree.walk(options.prefix, options.selection)
    milestones: Iterator[str] = iter(())
    if windows.is_ranged(driver) and len(options.selection.heads) == 1:
        # Only where they are asked for: what a walk goes ahead is kept in memory until then.
        walk, milestones = tree.with_milestones(walk)
    catalog = Catalog(driver, options.storage_path, options.selection, milestones)
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
) -> int:
    """Have a pool do `jobs(name, candidates)` for every metric in the store that is meant; the exit status."""
    with open_store(options) as driver:
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog = Catalog(driver, options.storage_path, options.selection)
            found = restorable((metric for metric in catalog if is_meant(metric.name)), options.date, tally)
            work_through(pool, (job for metric, candidates in found for job in jobs(metric.name, candidates)), tally)
            catalog.report_foreign()
        if not any(tally.figures.values()) and not tally.failed:
            raise nothing_matches(options, driver)
    return tally.finish()
