"""restore: bring metrics back from the store, creating what is missing and healing what lives."""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple

from whisperbackup import util
from whisperbackup.commands import open_driver
from whisperbackup.commands.pipeline import work_on_backups
from whisperbackup.options import Options
from whisperbackup.report.counters import IN_A_DRY_RUN
from whisperbackup.report.run_stats import Tally
from whisperbackup.repository import backups
from whisperbackup.repository.catalog import Backup, newest_at
from whisperbackup.runtime.budget import Budget
from whisperbackup.runtime.outcome import Outcome
from whisperbackup.runtime.pool import Work, failure
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.tree import names, walk
from whisperbackup.tree.restore_file import CannotPlace, Differs, Placed, Placer
from whisperbackup.util import Generation

logger = logging.getLogger(__name__)

CREATING_COPIES, HEALING_COPIES = 3, 20  # of a file that are in memory at the worst moment
CANNOT_FILL = (
    "its backup of {stamp} is much larger than all newer ones, but a compressed whisper file cannot be filled from it; "
    "-c {stamp} --overwrite restores that one instead"
)


class Job(NamedTuple):
    """A metric to restore from `candidates`, the newest first."""

    name: str
    candidates: list[Backup]


def run(options: Options, tally: Tally) -> int:
    """Restore every metric that is meant; the exit status."""
    walk.check_prefix(options.prefix)
    return work_on_backups(options, tally, prepare, lambda metric, candidates: [Job(metric.name, candidates)])


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
                options.prefix, names.metric_path(job.name)
            )  # whole, not as seen from a folder
            return failure(job.name, error, examined=1)
        except StorageError as error:
            return failure(job.name, error, examined=1)

    return work


def restore_metric(job: Job, options: Options, driver: Driver, budget: Budget, placer: Placer) -> Outcome:
    """Restore one metric from its newest good candidate, then fill it from older ones that are much larger.

    That is how retention tells a history from what came after it (`util.dwarfs`): after a disk was replaced the newest
    backup may be one of an empty file.  With --overwrite the newest good one is all.  A bad candidate is an error, and
    the next older one that is no smaller takes its place.  One that a run beside this one deleted is no error: what
    there is now takes its place.  Raises OSError, StorageError.
    """
    key = f"{options.storage_path}{job.name}/"
    path = names.metric_path(job.name)
    errors: list[str] = []
    newer: list[Generation] = []  # what a candidate must dwarf; those that turned out to be bad are not among them
    used: list[str] = []
    restored: Placed | None = None
    is_substitute = needed_older = False
    candidates, tried = job.candidates, set[str]()
    while candidates:
        backup, *candidates = candidates
        tried.add(backup.stamp)
        generation = backups.generation_of(backup)
        if not util.dwarfs(generation, newer):
            newer.append(generation)
            continue
        copies = HEALING_COPIES if placer.is_occupied(path) else CREATING_COPIES
        use = functools.partial(_place_or_fill, placer, path, restored)
        try:
            placed = backups.load(driver, key, backup, options.max_file_size, budget, copies, use)
        except backups.BadBackup as error:
            if isinstance(error, backups.GoneBackup) and (
                metric := backups.look_again(driver, options.storage_path, job.name, backup)
            ):
                candidates = [now for now in newest_at(metric, options.date) if now.stamp not in tried]
            else:
                errors.append(f"the backup of {backup.stamp} is bad: {error}")
                is_substitute = True
            continue
        except Differs as error:
            if restored:
                errors.append(CANNOT_FILL.format(stamp=backup.stamp))
                break
            figures = {"examined": 1, "skipped": 1, "compressed, differing": 1}
            return Outcome(job.name, figures, (*errors, f"{error} (the backup is of {backup.stamp})"))
        except CannotPlace as error:
            errors.append(str(error))
            break
        newer.append(generation)
        used.append(backup.stamp)
        logger.debug("%s: %s from %s", job.name, placed.how, backup.stamp)
        if restored and placed.how == "skipped":
            errors.append(CANNOT_FILL.format(stamp=backup.stamp))
            break
        if placed.warning:
            logger.warning("%s: %s", job.name, placed.warning)
        needed_older |= (restored is not None or is_substitute) and placed.how != "already whole"
        if is_substitute:
            errors.append(f"{placed.how} from the older backup of {backup.stamp} instead")
        is_substitute = False
        restored = _combined(restored, placed)
        if options.overwrite or placed.how == "skipped":
            break
    figures = {"examined": 1}
    if restored and options.noop and restored.how in IN_A_DRY_RUN:
        points = f", {restored.points} points" if restored.how == "healed" else ""
        logger.info("%s: %s%s, from %s", job.name, IN_A_DRY_RUN[restored.how], points, ", ".join(used))
    if restored:
        figures |= {restored.how: 1, "points filled": restored.points}
    elif is_substitute:
        errors.append("no good backup is left")
    elif not errors:
        errors.append("all its backups were deleted while this run was at work")
    if needed_older:
        figures["needed an older backup"] = 1
    return Outcome(job.name, figures, tuple(errors))


def _place_or_fill(placer: Placer, path: bytes, restored: Placed | None, content: bytes) -> Placed:
    """Place the first good backup of a metric, fill from the others; only one of them is in memory at a time."""
    return placer.fill(path, content, restored.planned) if restored else placer.place(path, content)


def _combined(before: Placed | None, after: Placed) -> Placed:
    """What became of a file that was restored from two backups; points count where a file was there before."""
    if before is None or before.how == "created":
        return before or after
    how = "healed" if "healed" in (before.how, after.how) else before.how
    return Placed(how, before.points + after.points, planned=before.planned + after.planned)
