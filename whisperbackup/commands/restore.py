"""restore: create missing files, and fill the gaps in existing ones."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
from datetime import timedelta
from typing import NamedTuple

from whisperbackup.commands.context import Context
from whisperbackup.commands.pipeline import work_on_backups
from whisperbackup.increments import image
from whisperbackup.increments.image import Image
from whisperbackup.increments.manifest import Manifest
from whisperbackup.increments.merge import Share
from whisperbackup.increments.order import Order, Sorted, orders
from whisperbackup.increments.overlay import Overlay
from whisperbackup.increments.record import CorruptIncrement, Record, decode, moment_of, parse
from whisperbackup.options import Options
from whisperbackup.report.counters import IN_A_DRY_RUN, Count
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import backups, keys
from whisperbackup.repository.catalog import Backup, Metric, newest_at
from whisperbackup.repository.choice import Choice
from whisperbackup.repository.outcome import Outcome, failed
from whisperbackup.repository.stamps import seconds, stamp_at, stamp_of
from whisperbackup.runtime import clock
from whisperbackup.storage.base import StorageError
from whisperbackup.tree import names, walk
from whisperbackup.tree.restore_file import CannotPlace, Differs, Placed
from whisperbackup.whisper import cwhisper, span
from whisperbackup.whisper.format import parse_header
from whisperbackup.whisper.healing import EVER, Write

logger = logging.getLogger(__name__)

CLOCKS_DIFFER = timedelta(minutes=5)
CREATING_COPIES, HEALING_COPIES = 3, 20  # of a file in memory at most
CANNOT_FILL = (
    "its backup of {stamp} is much larger than newer ones, but a compressed whisper file cannot be filled from it; "
    "to restore that backup instead, use -c {stamp} --overwrite"
)
AHEAD = (
    "{points} points of {source} could not be filled in: they are more than a day ahead of this machine's clock; "
    "check the clock (NTP), then restore again; if it is right, --overwrite replaces the file"
)
BEHIND = (
    "%s was backed up at a time that this machine's clock has not reached: points that are later than the clock are "
    "filled into no file that is there; check the clock (NTP), then restore again"
)
UNHELD = (
    "{points} points of {source} do not fit into the file there, which has fewer or shorter archives; "
    "enlarge it with whisper-resize.py, so that it has {layout} too, then restore again"
)
BLOCKED = (
    "{points} points of {source} could not be filled in: what the file there holds in their slots has stamps more than "
    "a day ahead of this machine's clock; check the clock (NTP); if it is right, that file is damaged: --overwrite "
    "with -m replaces it with its backup"
)
NOT_LAID = (
    "increments have later points of it, but its backup of {stamp} is a compressed whisper file, which cannot take "
    "them; the backup is restored; contrib/read-increment.py can print the increments' points for carbon"
)
UNREAD = "its older backup of {stamp}, which is much larger than newer ones, could not be read: {reason}"
COARSER = "the coarser points of its backup of {stamp} could not be filled in: {reason}"
OTHER = "another layout"
BARE = "the backup as it was stored"
PART = "it is restored from what there is, which replaces no file"
LEFT_OUT = (
    "its backup of {stamp} is a compressed whisper file, which the ordinary file there cannot be filled from; "
    "only the points of increments are filled in; --overwrite restores the backup instead"
)


def run(options: Options, stats: RunStats) -> int:
    """Restore every selected metric; the exit status."""
    walk.check_prefix(options.prefix)
    limit = clock.utc_now() + CLOCKS_DIFFER
    moment, stamp = limit.timestamp(), stamp_of(limit)
    is_behind = False

    def jobs(metric: Metric, candidates: list[Backup], shares: tuple[Share, ...]) -> list[RestoreMetric]:
        nonlocal is_behind
        later = (candidates and candidates[0].stamp > stamp) or (shares and moment_of(shares[-1].content) > moment)
        if later and not is_behind:
            is_behind = True
            logger.warning(BEHIND, metric.name)
        is_newest = bool(candidates) and candidates[0].stamp == metric.backups[-1].stamp
        return [RestoreMetric(metric.name, tuple(candidates), shares, is_newest)]

    return work_on_backups(options, stats, jobs, reads_records=True)


Images = list[tuple[bytes, str]]
"""Whole whisper files, and what each is, for messages; nothing is named of BARE and of what has no name."""


class Deferred(NamedTuple):
    """A backup of which coarser points are to be filled in; these records were laid over newer ones."""

    backup: Backup
    laid: frozenset[int]


class RestoreMetric(NamedTuple):
    """Restore one metric from `candidates`, the newest first, and `shares`, its records of increments.

    `is_newest`: the store has no later backup of it than the first candidate.
    """

    name: str
    candidates: tuple[Backup, ...]
    shares: tuple[Share, ...] = ()
    is_newest: bool = False
    examines: bool = True

    def run(self, context: Context) -> Outcome:
        """Restore from the newest good candidate, then fill from older ones that may have what it lacks (`Choice`).

        With --overwrite only the newest good one is used.  A bad candidate is an error, and the next older one that is
        no smaller replaces it.  A candidate that a concurrent run deleted is no error: the backups that exist now
        replace it.  Raises OSError, StorageError.
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
        used: list[str] = []
        restored: Placed | None = None
        refusal: Outcome | None = None
        is_substitute = needed_older = False
        laid: set[int] = set()  # the shares that were laid over a backup
        has_nothing_there = False  # in the span of --from and --until
        deferred: list[Deferred] = []
        has_span = options.since is not None or options.until is not None
        choice = Choice(self.candidates, stamp_at(options.since or 0) if has_span else None)
        for backup in choice:
            copies = HEALING_COPIES if restored or placer.is_occupied(path) else CREATING_COPIES
            is_last = not deferred and not choice.has_more(backup)
            laid_before = set(laid)
            use = functools.partial(self._restore_backup, context, path, restored, backup, laid, errors, is_last)
            try:
                placed = backups.load(context.driver, key, backup, options.max_file_size, context.budget, copies, use)
            except backups.BadBackup as error:
                if isinstance(error, backups.GoneBackup) and (
                    metric := backups.look_again(context.driver, options.storage_path, self.name, backup)
                ):
                    candidates = newest_at(metric, options.date)
                    choice.replace(backup, candidates)
                    if candidates and candidates[0].stamp < self.candidates[0].stamp:
                        self._leave_alone_later(candidates[0], context, laid, errors)
                else:
                    errors.append(error.of(backup.stamp))
                    is_substitute = True
                    choice.replace(backup)
                continue
            except Differs as error:
                if restored:
                    errors.append(CANNOT_FILL.format(stamp=backup.stamp))
                    continue
                counts = {Count.EXAMINED: 1, Count.SKIPPED: 1, Count.COMPRESSED_DIFFERING: 1}
                return Outcome(self.name, counts, (*errors, f"{error} (the backup is of {backup.stamp})"))
            except CannotPlace as error:
                errors.append(str(error))
                break
            except StorageError as error:
                if not restored:
                    raise
                refusal = failed(self, error)  # what was written so far is counted all the same
                errors.append(UNREAD.format(stamp=backup.stamp, reason=refusal.errors[0]))
                break
            if placed is None:
                has_nothing_there = True
                is_substitute = False
                continue
            if restored and placed.how == "skipped":
                errors.append(CANNOT_FILL.format(stamp=backup.stamp))
                continue
            used.append(backup.stamp)
            logger.debug("%s: %s from %s", self.name, placed.how, backup.stamp)
            if placed.warning:
                logger.warning("%s: %s", self.name, placed.warning)
            needed_older |= (restored is not None or is_substitute) and placed.how != "already whole"
            if is_substitute:
                errors.append(f"{placed.how} from the older backup of {backup.stamp} instead")
            is_substitute = False
            if placed.coarser:
                deferred.append(Deferred(backup, frozenset(laid_before)))
            restored = _combined(restored, placed)
            if options.overwrite or placed.how == "skipped":
                break
        else:
            if self.shares and not choice.saw_good:
                placed = self._restore_from_records(context, path, laid, errors)
                has_nothing_there |= placed is None
                if placed and placed.how:
                    used.append("increments")
                    restored = placed
        if restored and not refusal:
            restored, refusal = self._fill_coarser(context, path, restored, deferred, errors)
        counts = {Count.EXAMINED: 1}
        if restored and options.noop and Count(restored.how) in IN_A_DRY_RUN:
            points = f", {restored.points} points" if restored.how == "healed" else ""
            if laid and used != ["increments"]:
                used.append(f"{len(laid)} increments")
            logger.info("%s: %s%s, from %s", self.name, IN_A_DRY_RUN[Count(restored.how)], points, ", ".join(used))
        if restored:
            counts |= {Count(restored.how): 1, Count.POINTS_FILLED: restored.points}
        elif has_nothing_there:
            counts[Count.SKIPPED] = 1
        elif is_substitute:
            errors.append("no good backup is left")
        elif not errors:
            errors.append("all its backups were deleted during this run")
        if needed_older:
            counts[Count.NEEDED_OLDER] = 1
        return Outcome(self.name, counts, tuple(errors), store_failed=refusal is not None and refusal.store_failed)

    def _leave_alone_later(self, backup: Backup, context: Context, laid: set[int], errors: list[str]) -> None:
        """Leave out the records after an older backup, which replaces a deleted one, if some between are not kept."""
        overlay = context.overlay
        later = {number for number, _ in self.shares if overlay.increments[number].stamp > backup.stamp} - laid
        if later and overlay.has_gap(backup.stamp):
            laid |= later
            errors.append(
                f"its backup of {self.candidates[0].stamp} was deleted during this run, and not all increments since "
                f"that of {backup.stamp} are kept: what they have is not restored; run it again"
            )

    def _fill_coarser(
        self, context: Context, path: bytes, restored: Placed, deferred: list[Deferred], errors: list[str]
    ) -> tuple[Placed, Outcome | None]:
        """Fill once more from backups of another layout, by ascending steps of their coarser points.

        So no coarser point is put in the place of a finer one, of which any of them has the value.  Also returns the
        failure of the store or the disk that ended it: what was written so far is counted all the same.
        """
        options = context.options
        key = keys.metric_key(options.storage_path, self.name)
        bad: set[str] = set()
        while restored.coarser:
            step = min(restored.coarser)
            restored = restored._replace(coarser=frozenset())
            for backup, laid in deferred:
                if backup.stamp in bad:
                    continue
                use = functools.partial(self._fill_from, context, path, restored, backup, laid, step)
                try:
                    filled = backups.load(
                        context.driver, key, backup, options.max_file_size, context.budget, HEALING_COPIES, use
                    )
                except backups.BadBackup as error:
                    bad.add(backup.stamp)
                    errors.append(COARSER.format(stamp=backup.stamp, reason=error))
                except (CannotPlace, StorageError, OSError) as error:
                    refusal = failed(self, error)
                    errors.append(COARSER.format(stamp=backup.stamp, reason=refusal.errors[0]))
                    return restored, refusal
                else:
                    restored = _combined(restored, filled)
        return restored, None

    def _fill_from(
        self,
        context: Context,
        path: bytes,
        restored: Placed,
        backup: Backup,
        laid: frozenset[int],
        step: int,
        content: bytes,
    ) -> Placed:
        """Fill the restored file from a backup with its records, points of up to `step` seconds also in finer slots."""
        images, _ = self._images(context, backup, set(laid), [], content)
        return self._filled(context, path, Placed("already whole"), images, [], restored.planned, step)

    def _restore_backup(
        self,
        context: Context,
        path: bytes,
        restored: Placed | None,
        backup: Backup,
        laid: set[int],
        errors: list[str],
        is_last: bool,
        content: bytes,
    ) -> Placed | None:
        """Place the first good backup of a metric with its records, fill from the others; one is in memory at a time.

        An older one gets the records that are not later than a newer one: a disk may have died hours after its last
        backup.  None: there is nothing in the span of --from and --until, and no file there.
        """
        if cwhisper.is_compressed(content) and not restored:
            return self._place_compressed(context, path, backup, laid, errors, content)
        images, is_based = self._images(context, backup, laid, errors, content)
        return self._placed(context, path, restored, images, is_based, errors, is_last)

    def _images(
        self, context: Context, backup: Backup, laid: set[int], errors: list[str], content: bytes
    ) -> tuple[Images, bool]:
        """A backup with its records, to be used in this order; whether all that the file had is among it.

        Records can push points out of an archive for which the file there, if its archives are longer, has room: so the
        backup as it was stored follows.
        """
        source = f"its backup of {backup.stamp}"
        found = self._records(context, backup.stamp, laid, errors) if self.shares else Sorted()
        made = None
        if found != Sorted() and not cwhisper.is_compressed(content):
            made = self._laid(content, found, context, errors)
        if made is None:
            return [(content, source)], True
        return [*_images_of(made, source), (content, BARE)], made.is_based

    def _place_compressed(
        self, context: Context, path: bytes, backup: Backup, laid: set[int], errors: list[str], content: bytes
    ) -> Placed | None:
        """Place a compressed backup, which cannot take records; they alone can be filled into an ordinary file."""
        found = self._records(context, backup.stamp, laid, errors) if self.shares else Sorted()
        has_records = bool(found.later or found.unsure)
        try:
            placed = self._placed(context, path, None, [(content, "")], True, errors)
            if has_records:
                errors.append(NOT_LAID.format(stamp=backup.stamp))
        except Differs:
            made = self._laid(None, found, context, errors) if has_records else None
            if made is None:
                raise
            placed = self._placed(context, path, None, _images_of(made, "its increments"), made.is_based, errors)
            errors.append(LEFT_OUT.format(stamp=backup.stamp))
        return placed

    def _restore_from_records(self, context: Context, path: bytes, laid: set[int], errors: list[str]) -> Placed | None:
        """Restore a metric without a good backup from its records alone.  `how` is empty if none can be read."""
        made = self._laid(None, self._records(context, "", laid, errors), context, errors)
        if made is None:
            return Placed("")
        if made.is_based and self._has_gap(context.overlay):
            errors.append(
                "increments have all of it as it was once, but some of those that followed are not kept: " + PART
            )
            made = made._replace(is_based=False)
        try:
            return self._placed(context, path, None, _images_of(made, "its increments"), made.is_based, errors)
        except CannotPlace as error:
            errors.append(str(error))
            return Placed("")

    def _has_gap(self, overlay: Overlay) -> bool:
        """Whether increments are missing after the last one that has the whole file."""
        for number, content in reversed(self.shares):
            with contextlib.suppress(CorruptIncrement):
                if decode(content).is_whole:
                    return overlay.has_gap_after(overlay.increments[number])
        return False

    def _placed(
        self,
        context: Context,
        path: bytes,
        restored: Placed | None,
        images: Images,
        is_based: bool,
        errors: list[str],
        is_last: bool = True,
    ) -> Placed | None:
        """Place the first of the images that has something of the span, fill the file from the others.

        All are filled into one that was `restored` from a newer backup.  Only of the metric's last backup are coarser
        points put in finer slots, by ascending steps: what others have for them comes before.  `is_based`: the images
        have all of the file.
        """
        placer = context.placer
        if restored:
            placed, planned, others = Placed("already whole"), restored.planned, images
        else:
            placeable = [image for image in images if image[1] != BARE and _has_points_in_span(image[0], context)]
            if not placeable:
                return Placed("already whole") if placer.is_occupied(path) else None
            (content, source), planned = placeable[0], ()
            placed = placer.place(path, content, is_based, 0)
            _name_missing(placed, source, content, errors)
            others = images[images.index(placeable[0]) + 1 :]
        placed = self._filled(context, path, placed, others, errors, planned)
        while is_last and placed.coarser:
            step = min(placed.coarser)
            placed = self._filled(context, path, placed._replace(coarser=frozenset()), images, [], planned, step)
        return placed

    def _filled(
        self,
        context: Context,
        path: bytes,
        placed: Placed,
        images: Images,
        errors: list[str],
        planned: tuple[Write, ...] = (),
        coarsest: int = 0,
    ) -> Placed:
        """Fill the file that was just placed from images; the result of all that.

        `planned` are the writes that a dry run left out before it was `placed`; `coarsest` as for `heal`.
        """
        for content, source in images:
            is_needed = source != BARE or placed.is_resampled
            if is_needed and _has_points_in_span(content, context):
                filled = context.placer.fill(path, content, planned + placed.planned, coarsest)
                _name_missing(filled, source, content, errors)
                placed = _combined(placed, filled)
        return placed

    def _records(self, context: Context, stamp: str, laid: set[int], errors: list[str]) -> Sorted:
        """The records beside the backup `stamp` (empty: there is none); `laid` ones are left out.

        Those that are or may be later are laid now; an older backup can need those that are earlier, too.
        """
        overlay = context.overlay
        numbers: list[int] = []
        records: list[tuple[Record, Manifest]] = []
        too_large: list[tuple[str, int]] = []
        for number, content in self.shares:
            if number in laid:
                continue
            increment = overlay.increments[number]
            try:
                record = decode(content)
                size = parse(record.header, record.key).file_size
                if size > context.options.max_file_size:
                    too_large.append((increment.stamp, size))
                    laid.add(number)
                    continue
                records.append((record, increment))
                numbers.append(number)
            except CorruptIncrement as error:
                errors.append(f"its record in the increment of {increment.stamp} is damaged: {error}")
                laid.add(number)
        if too_large:
            (first, size), *_ = too_large
            errors.append(
                f"{len(too_large)} records of increments are left out, the first is in that of {first}: they are of a "
                f"file of {size} bytes, more than --max-file-size"
            )
        newest_until = -1.0
        if self.is_newest and stamp == self.candidates[0].stamp:
            newest_until = seconds(context.options.date) if context.options.date else math.inf
        found = orders(records, stamp, overlay.runs, newest_until)
        laid.update(number for number, order in zip(numbers, found, strict=True) if order is not Order.EARLIER)
        ordered = Sorted.by(found, [record for record, _ in records])
        return ordered._replace(earlier=()) if context.options.overwrite else ordered

    def _laid(self, content: bytes | None, found: Sorted, context: Context, errors: list[str]) -> Image | None:
        try:
            made = image.lay(content, found, context.options.max_file_size)
        except CorruptIncrement as error:
            errors.append(f"a record of an increment cannot be used: {error}")
            return None
        if made is None:
            return None
        if not made.is_based:
            errors.append("increments have points of it, but neither they nor a backup have the whole file: " + PART)
        return made


def _images_of(made: Image, source: str) -> Images:
    """An image, those of its other layouts, and those of earlier records, of which nothing is named."""
    return [(made.content, source), *((other, OTHER) for other in made.others), *((each, "") for each in made.earlier)]


def _name_missing(placed: Placed, source: str, content: bytes, errors: list[str]) -> None:
    """Name the points of `content` that could not be filled in."""
    if source in ("", BARE):
        return
    if placed.blocked:
        errors.append(BLOCKED.format(points=placed.blocked, source=source))
    if placed.ahead:
        errors.append(AHEAD.format(points=placed.ahead, source=source))
    if placed.unheld:
        layout = " ".join(f"{archive.step}:{archive.points}" for archive in parse_header(content).archives)
        if source != OTHER or not any(f" {layout} too" in error for error in errors):  # the remedy is named already
            errors.append(UNHELD.format(points=placed.unheld, source=source, layout=layout))


def _has_points_in_span(content: bytes, context: Context) -> bool:
    """Whether the content has points of --from and --until; any does without these.  Raises CannotPlace."""
    chosen = context.placer.span
    if chosen == EVER:
        return True
    if cwhisper.is_compressed(content):
        raise CannotPlace("its backup is a compressed whisper file, of which --from and --until can choose no points")
    return span.has_points(content, chosen, int(time.time()))


def _combined(before: Placed | None, after: Placed) -> Placed:
    """The result for a file restored from two backups; points count only in a file that existed before."""
    if before is None:
        return after
    planned, is_resampled = before.planned + after.planned, before.is_resampled or after.is_resampled
    coarser = before.coarser | after.coarser
    if before.how in ("created", "replaced"):
        return before._replace(planned=planned, is_resampled=is_resampled, coarser=coarser)
    how = before.how if after.how == "already whole" or before.how == "healed" else after.how
    warning = "; ".join(filter(None, (before.warning, after.warning)))
    points = before.points + after.points
    return Placed(how, points, warning, planned, is_resampled=is_resampled, coarser=coarser)
