"""restore: bring metrics back from the store, creating what is missing and healing what lives."""

from __future__ import annotations

import logging
import os
from typing import NamedTuple

from whisperbackup import backups, tree
from whisperbackup.catalog import Backup
from whisperbackup.commands import open_driver
from whisperbackup.commands.passes import work_on_backups
from whisperbackup.options import Options
from whisperbackup.outcome import Outcome
from whisperbackup.place import CannotPlace, Differs, Placer
from whisperbackup.progress import Tally
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.workers import Budget, Work, failure

logger = logging.getLogger(__name__)

CREATING_COPIES, HEALING_COPIES = 3, 20  # of a file that are in memory at the worst moment


class Job(NamedTuple):
    """A metric to restore from the first of `candidates` that is good."""

    name: str
    candidates: list[Backup]


def run(options: Options, tally: Tally) -> int:
    """Restore every metric that is meant; the exit status."""
    tree.check_prefix(options.prefix)
    return work_on_backups(options, tally, prepare, lambda name, candidates: [Job(name, candidates)])


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    driver = open_driver(options)
    placer = Placer(options.prefix, options.overwrite, options.noop, options.max_file_size)
    budget = Budget()

    def work(job: Job) -> Outcome:
        try:
            return restore_metric(job, options, driver, budget, placer)
        except OSError as error:
            error.filename = os.path.join(
                options.prefix, tree.metric_path(job.name)
            )  # whole, not as seen from a folder
            return failure(job.name, error, examined=1)
        except StorageError as error:
            return failure(job.name, error, examined=1)

    return work


def restore_metric(job: Job, options: Options, driver: Driver, budget: Budget, placer: Placer) -> Outcome:
    """Restore one metric from its newest good candidate; each bad one on the way is an error."""
    key = f"{options.storage_path}{job.name}/"
    path = tree.metric_path(job.name)
    copies = HEALING_COPIES if placer.is_occupied(path) else CREATING_COPIES
    errors: list[str] = []
    for backup in job.candidates:
        try:
            placed = backups.load(
                driver, key, backup, options.max_file_size, budget, copies, lambda content: placer.place(path, content)
            )
        except backups.BadBackup as error:
            errors.append(f"the backup of {backup.stamp} is bad: {error}")
        except Differs as error:
            figures = {"examined": 1, "skipped": 1, "compressed, differing": 1}
            return Outcome(job.name, figures, (*errors, f"{error} (the backup is of {backup.stamp})"))
        except CannotPlace as error:
            return Outcome(job.name, {"examined": 1}, (*errors, str(error)))
        else:
            logger.debug("%s: %s from %s", job.name, placed.how, backup.stamp)
            if placed.warning:
                logger.warning("%s: %s", job.name, placed.warning)
            if errors:
                errors.append(f"{placed.how} from the older backup of {backup.stamp} instead")
            return Outcome(job.name, {"examined": 1, placed.how: 1, "points filled": placed.points}, tuple(errors))
    return Outcome(job.name, {"examined": 1}, (*errors, "no good backup is left"))
