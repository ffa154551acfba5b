"""verify: read backups back and check them, without writing anything."""

from __future__ import annotations

import functools
from typing import NamedTuple

from whisperbackup import backups
from whisperbackup.catalog import Backup, Catalog, newest_at
from whisperbackup.commands import NOTHING_MATCHES, open_store
from whisperbackup.options import Options
from whisperbackup.progress import Tally, told, work_through
from whisperbackup.storage.base import StorageError
from whisperbackup.util import CannotRun
from whisperbackup.workers import Budget, Outcome, Pool, Work, failure


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
        jobs = (Job(metric.name, newest_at(metric, options.date)[0])
                for metric in catalog if newest_at(metric, options.date))  # fmt: skip
        for _ in work_through(pool, jobs, tally):
            pass
        catalog.report_foreign()
    if not tally.figures["examined"]:
        raise CannotRun(NOTHING_MATCHES.format(bucket=options.bucket))
    return tally.finish()


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    driver = open_store(options).__enter__()  # for as long as the worker lives
    budget = Budget()

    def work(job: Job) -> Outcome:
        size = max(payload.size for payload in job.backup.payloads)
        try:
            with budget.take(2 * size):
                backups.load(driver, f"{options.storage_path}{job.name}/", job.backup, options.max_file_size)
        except backups.BadBackup as error:
            return Outcome(job.name, {"examined": 1}, (f"the backup of {job.backup.stamp} is bad: {error}",))
        except StorageError as error:
            return failure(job.name, error, examined=1)
        return Outcome(job.name, {"examined": 1, "good": 1, "read bytes": size})

    return work
