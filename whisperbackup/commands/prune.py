"""prune: delete what retention drops, metrics missing for -x days, and debris, from the store alone, without a tree."""

from __future__ import annotations

import functools

from whisperbackup.commands import check_excluded, expected, fail_unmatched, nothing_matches, open_catalog, open_store
from whisperbackup.commands.context import open_pool
from whisperbackup.commands.pipeline import run_jobs
from whisperbackup.commands.run_record import expire_increments, look_at_clock
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.progress import reporting, tick
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.deleter import Deleter, Protected
from whisperbackup.repository.outcome import Outcome
from whisperbackup.repository.prune import Prune, Rules
from whisperbackup.tree.selection import Unmatched

DELETED = (Count.REMOVED, Count.PURGED, Count.CAME_BACK, Count.ORPHANS_REMOVED)


def run(options: Options, stats: RunStats) -> int:
    """Prune the store; the exit status."""
    protected = Protected.IS_FINE if options.protected_ok else Protected.IS_NAMED
    rules = Rules(
        *(options.storage_path, options.keep, options.purge_days),
        *(options.purge_anyway, options.noop, protected),
    )
    deleted = unexplained = 0

    def on_outcome(outcome: Outcome) -> None:
        nonlocal deleted, unexplained
        deleter.add(*outcome.deletes)
        deleted += sum(outcome.counts.get(count, 0) for count in DELETED)
        unexplained += outcome.unexplained

    with open_store(options) as driver:
        check_excluded(options, driver)
        about = functools.partial(expected.metrics, options, driver)
        with open_pool(options, driver) as pool, reporting(stats, options.quiet, about):
            deleter = Deleter(protected=protected)
            steady = look_at_clock(driver, options)
            prune = Prune(rules, stats, steady)
            unmatched = Unmatched(options.selection)
            catalog = open_catalog(options, driver)
            hours: set[str] = set()
            for metric in catalog:
                prune.record(metric)
                unmatched.see(metric.name)
                hours.update(backup.stamp[:13] for backup in metric.backups)
                tick(stats)
            run_jobs(pool, prune.jobs(deleter), stats, on_outcome)
            run_jobs(pool, deleter.flush(), stats, on_outcome)
            if prune.saw_any:
                expire_increments(driver, options, hours, None, steady, stats)
            catalog.report_foreign()
        if not prune.saw_any:
            raise nothing_matches(options, driver)
        fail_unmatched(unmatched, stats.fail)
    if options.protected_ok and unexplained and not deleted:
        stats.fail("prune", "the store refused every deletion: are these credentials allowed to delete?")
    return stats.finish()
