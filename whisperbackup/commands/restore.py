"""restore: create missing files, and fill the gaps of existing ones."""

from __future__ import annotations

import functools
import logging
import os
from typing import NamedTuple

from whisperbackup import util
from whisperbackup.commands.context import Context
from whisperbackup.commands.pipeline import work_on_backups
from whisperbackup.options import Options
from whisperbackup.report.counters import IN_A_DRY_RUN, Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import backups, keys
from whisperbackup.repository.catalog import Backup, newest_at
from whisperbackup.repository.outcome import Outcome
from whisperbackup.tree import names, walk
from whisperbackup.tree.restore_file import CannotPlace, Differs, Placed, Placer
from whisperbackup.util import Generation

logger = logging.getLogger(__name__)

CREATING_COPIES, HEALING_COPIES = 3, 20  # of a file that are in memory at the worst moment
CANNOT_FILL = (
    "its backup of {stamp} is much larger than all newer ones, but a compressed whisper file cannot be filled from it; "
    "-c {stamp} --overwrite restores that one instead"
)


def run(options: Options, stats: RunStats) -> int:
    """Restore every selected metric; the exit status."""
    walk.check_prefix(options.prefix)
    return work_on_backups(options, stats, lambda metric, candidates: [RestoreMetric(metric.name, tuple(candidates))])


class RestoreMetric(NamedTuple):
    """Restore one metric from `candidates`, the newest first."""

    name: str
    candidates: tuple[Backup, ...]
    examines: bool = True

    def run(self, context: Context) -> Outcome:
        """Restore from the newest good candidate, then fill from older ones that are much larger.

        That is how retention tells a history from what followed it (`util.dwarfs`): after a disk was replaced the
        newest backup may be that of an empty file.  With --overwrite only the newest good one is used.  A bad
        candidate is an error, and the next older one that is no smaller takes its place.  One that a concurrent run
        deleted is no error: what there is now takes its place.  Raises OSError, StorageError.
        """
        try:
            return self._restore(context)
        except OSError as error:
            error.filename = os.path.join(context.options.prefix, names.metric_path(self.name))  # the whole path
            raise

    def _restore(self, context: Context) -> Outcome:
        options, placer = context.options, context.placer
        key = keys.metric_key(options.storage_path, self.name)
        path = names.metric_path(self.name)
        errors: list[str] = []
        newer: list[Generation] = []  # what a candidate must dwarf; those that turned out to be bad are not among them
        used: list[str] = []
        restored: Placed | None = None
        is_substitute = needed_older = False
        candidates, tried = list(self.candidates), set[str]()
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
                placed = backups.load(context.driver, key, backup, options.max_file_size, context.budget, copies, use)
            except backups.BadBackup as error:
                if isinstance(error, backups.GoneBackup) and (
                    metric := backups.look_again(context.driver, options.storage_path, self.name, backup)
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
                counts = {Count.EXAMINED: 1, Count.SKIPPED: 1, Count.COMPRESSED_DIFFERING: 1}
                return Outcome(self.name, counts, (*errors, f"{error} (the backup is of {backup.stamp})"))
            except CannotPlace as error:
                errors.append(str(error))
                break
            newer.append(generation)
            used.append(backup.stamp)
            logger.debug("%s: %s from %s", self.name, placed.how, backup.stamp)
            if restored and placed.how == "skipped":
                errors.append(CANNOT_FILL.format(stamp=backup.stamp))
                break
            if placed.warning:
                logger.warning("%s: %s", self.name, placed.warning)
            needed_older |= (restored is not None or is_substitute) and placed.how != "already whole"
            if is_substitute:
                errors.append(f"{placed.how} from the older backup of {backup.stamp} instead")
            is_substitute = False
            restored = _combined(restored, placed)
            if options.overwrite or placed.how == "skipped":
                break
        counts = {Count.EXAMINED: 1}
        if restored and options.noop and Count(restored.how) in IN_A_DRY_RUN:
            points = f", {restored.points} points" if restored.how == "healed" else ""
            logger.info("%s: %s%s, from %s", self.name, IN_A_DRY_RUN[Count(restored.how)], points, ", ".join(used))
        if restored:
            counts |= {Count(restored.how): 1, Count.POINTS_FILLED: restored.points}
        elif is_substitute:
            errors.append("no good backup is left")
        elif not errors:
            errors.append("all its backups were deleted while this run was at work")
        if needed_older:
            counts[Count.NEEDED_OLDER] = 1
        return Outcome(self.name, counts, tuple(errors))


def _place_or_fill(placer: Placer, path: bytes, restored: Placed | None, content: bytes) -> Placed:
    """Place the first good backup of a metric, fill from the others; only one of them is in memory at a time."""
    return placer.fill(path, content, restored.planned) if restored else placer.place(path, content)


def _combined(before: Placed | None, after: Placed) -> Placed:
    """What became of a file that was restored from two backups; points count where a file was there before."""
    if before is None or before.how == "created":
        return before or after
    how = "healed" if "healed" in (before.how, after.how) else before.how
    return Placed(how, before.points + after.points, planned=before.planned + after.planned)
