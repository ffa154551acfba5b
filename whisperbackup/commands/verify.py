"""verify: read backups back and check them, without writing anything."""

from __future__ import annotations

from typing import NamedTuple

from whisperbackup import backups
from whisperbackup.catalog import Backup
from whisperbackup.commands import open_driver, work_on_backups
from whisperbackup.options import Options
from whisperbackup.progress import Tally
from whisperbackup.storage.base import StorageError
from whisperbackup.workers import Budget, Outcome, Work, failure

COPIES = 2  # of a file that are in memory while it is checked


class Job(NamedTuple):
    """A metric whose backup is to be checked."""

    name: str
    backup: Backup


def run(options: Options) -> int:
    """Check the newest backup, or the one as of -c, of every metric that is meant; the exit status."""
    tally = Tally("verify", ("examined", "good", "read bytes"))
    return work_on_backups(options, tally, prepare, lambda name, candidates: Job(name, candidates[0]))


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
