"""restore: bring metrics back from the store, creating what is missing and healing what lives."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from typing import NamedTuple

from whisperbackup import backups, place, tree
from whisperbackup.catalog import Backup, Catalog, newest_at
from whisperbackup.commands import NOTHING_MATCHES, open_store
from whisperbackup.options import Options
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.util import CannotRun
from whisperbackup.workers import Budget, Outcome, Pool, Work, failure

logger = logging.getLogger(__name__)

FIGURES = ("examined", "created", "healed", "points filled", "already whole", "skipped")


class Job(NamedTuple):
    """A metric to restore from the first of `candidates` that is good."""

    name: str
    candidates: list[Backup]


def run(options: Options) -> int:
    """Restore every metric that is meant; the exit status."""
    tree.check_prefix(options.prefix)
    tally = Tally("restore", FIGURES)
    with (
        open_store(options) as driver,
        Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
        told(tally, options.quiet),
    ):
        catalog = Catalog(driver, options.storage_path, options.selection)
        for _ in work_through(pool, _jobs(catalog, options.date, tally), tally):
            pass
        catalog.report_foreign()
    if not tally.figures["examined"] and not tally.failed:
        raise CannotRun(NOTHING_MATCHES.format(bucket=options.bucket))
    return tally.finish()


def _jobs(catalog: Catalog, date: str | None, tally: Tally) -> Iterator[Job]:
    for metric in catalog:
        candidates = newest_at(metric, date)
        if candidates:
            yield Job(metric.name, candidates)
        elif metric.backups:
            tally.fail(metric.name, f"has no backup as old as {date}; its first is of {metric.backups[0].stamp}")
        elif metric.debris:
            tally.fail(metric.name, "has no complete backup, only what an interrupted run left")


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    driver = open_store(options).__enter__()  # for as long as the worker lives
    budget = Budget()
    tidied: set[bytes] = set()

    def work(job: Job) -> Outcome:
        folder = os.path.dirname(os.path.join(options.prefix, tree.metric_path(job.name)))
        if folder not in tidied and not options.noop:
            tidied.add(folder)
            place.remove_leftovers(folder)
        try:
            return restore_metric(job, options, driver, budget)
        except (OSError, StorageError) as error:
            return failure(job.name, error, examined=1)

    return work


def restore_metric(job: Job, options: Options, driver: Driver, budget: Budget) -> Outcome:
    """Restore one metric from its newest good candidate; each bad one on the way is an error."""
    key = f"{options.storage_path}{job.name}/"
    errors: list[str] = []
    for backup in job.candidates:
        try:
            with budget.take(2 * max(payload.size for payload in backup.payloads)):
                content = backups.load(driver, key, backup, options.max_file_size)
                placed = place.place(
                    options.prefix, tree.metric_path(job.name), content, options.overwrite, options.noop
                )
        except backups.BadBackup as error:
            errors.append(f"the backup of {backup.stamp} is bad: {error}")
        except place.CannotPlace as error:
            return Outcome(job.name, {"examined": 1}, (*errors, str(error)))
        else:
            logger.debug("%s: %s from %s", job.name, placed.how, backup.stamp)
            if errors:
                errors.append(f"{placed.how} from the older backup of {backup.stamp} instead")
            return Outcome(job.name, {"examined": 1, placed.how: 1, "points filled": placed.points}, tuple(errors))
    return Outcome(job.name, {"examined": 1}, (*errors, "no good backup is left"))
