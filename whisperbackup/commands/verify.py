"""verify: read backups back and check them, without writing anything."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from whisperbackup import backups
from whisperbackup.catalog import Backup, Catalog
from whisperbackup.commands import NOTHING_MATCHES, open_driver, open_store, restorable
from whisperbackup.options import Options
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.storage.base import StorageError
from whisperbackup.util import CannotRun
from whisperbackup.workers import Budget, Outcome, Pool, Work, failure

COPIES = 2  # of a file that checking it holds in memory


class Job(NamedTuple):
    """A metric whose backup is to be checked."""

    name: str
    backup: Backup


def run(options: Options) -> int:
    """Check the newest backup, or the one as of -c, of every metric that is meant; the exit status."""
    tally = Tally("verify", ("examined", "good", "read bytes"))
    with (
        open_store(options) as driver,
        Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
        told(tally, options.quiet),
    ):
        catalog = Catalog(driver, options.storage_path, options.selection)
        work_through(pool, _jobs(catalog, options.date, tally), tally)
        catalog.report_foreign()
    if not tally.figures["examined"] and not tally.failed:
        raise CannotRun(NOTHING_MATCHES.format(bucket=options.bucket))
    return tally.finish()


def _jobs(catalog: Catalog, date: str | None, tally: Tally) -> Iterator[Job]:
    for metric, candidates in restorable(catalog, date, tally):
        yield Job(metric.name, candidates[0])


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    driver = open_driver(options)
    budget = Budget()

    def work(job: Job) -> Outcome:
        size = max(payload.size for payload in job.backup.payloads)
        try:
            backups.load(
                driver, f"{options.storage_path}{job.name}/", job.backup, options.max_file_size, budget, COPIES, len
            )
        except backups.BadBackup as error:
            return Outcome(job.name, {"examined": 1}, (f"the backup of {job.backup.stamp} is bad: {error}",))
        except StorageError as error:
            return failure(job.name, error, examined=1)
        return Outcome(job.name, {"examined": 1, "good": 1, "read bytes": size})

    return work
