"""purge: delete the backups of metrics missing for -x days, and the debris of interrupted runs."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator

from whisperbackup.commands import check_excluded, check_storage_path, expected, fail_unmatched
from whisperbackup.commands.context import open_pool
from whisperbackup.commands.known_store import holds_nothing, open_for_purge, purge_rules, state_of
from whisperbackup.commands.pipeline import finish_purge, match, run_jobs, tree_and_store
from whisperbackup.commands.run_record import delete_debris, look_at_clock
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.progress import reporting, tick
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import keys
from whisperbackup.repository.deleter import DeleteObjects, Deleter
from whisperbackup.repository.join import Pair
from whisperbackup.repository.outcome import PendingDelete
from whisperbackup.repository.purge import Purge, log_return
from whisperbackup.tree.selection import Unmatched
from whisperbackup.tree.walk import LocalFile, check_tree


def run(options: Options, stats: RunStats) -> int:
    """Purge without backing up; the exit status."""
    state = state_of(options)
    with contextlib.closing(open_for_purge(options, state)) as driver:
        check_tree(options.prefix)
        check_excluded(options, driver)
        about = functools.partial(expected.metrics, options, driver)
        with open_pool(options, driver) as pool, reporting(stats, options.quiet, about):
            catalog, pairs = tree_and_store(options, driver, state)
            pairs = match(pairs, unmatched := Unmatched(options.selection))
            deleter = Deleter()
            steady = look_at_clock(driver, options)
            purge = Purge(purge_rules(options), stats, steady)
            run_jobs(pool, _remove_void_tombstones(purge.watch(pairs), options, deleter, stats), stats)
            finish_purge(pool, purge, deleter, stats)
            delete_debris(driver, options, steady, stats)
            catalog.report_foreign()
        if not purge.saw_stored and not stats.failed:
            check_storage_path(options, driver)
        fail_unmatched(unmatched, stats.fail)
        if purge.deletes_any and holds_nothing(driver, options):
            state.forget()  # or the next backup would stop, because the store is empty
    return stats.finish()


def _remove_void_tombstones(
    pairs: Iterable[Pair], options: Options, deleter: Deleter, stats: RunStats
) -> Iterator[DeleteObjects]:
    """Yield jobs that delete the tombstones of metrics that came back; keys too few for a request stay in `deleter`."""
    for local, metric in pairs:
        if metric is None:
            continue
        stats.count(Count.EXAMINED)
        tick(stats)
        if metric.tombstones and isinstance(local, LocalFile):
            log_return(metric.name, options.noop)
            key = keys.metric_key(options.storage_path, metric.name)
            tombstones = tuple(keys.tombstone(key, stamp) for stamp in metric.tombstones)
            deleter.add(PendingDelete(Count.CAME_BACK, tombstones))
        yield from deleter.full_jobs()
