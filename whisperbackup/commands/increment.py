"""increment: store the points that carbon wrote since the newest increment, or backup run, in a few large objects."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator

from whisperbackup import __version__
from whisperbackup.commands.known_store import check_store, open_for_increment, state_of
from whisperbackup.errors import CannotRun
from whisperbackup.increments import history
from whisperbackup.increments.batch import LATENESS_STEP, Batch, Limits, Taken, all_failed
from whisperbackup.increments.manifest import MANIFEST, Manifest, Part, Run, increment_key
from whisperbackup.increments.names import ancestors
from whisperbackup.increments.part import PART_NUMBERS, PackedFrame, parts_of
from whisperbackup.increments.shelf import Shelf
from whisperbackup.increments.window import Looked, Now, Window, look_at_places, still_owed
from whisperbackup.options import Options
from whisperbackup.report.counters import Count
from whisperbackup.report.progress import reporting, tick
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.stamps import stamp_at
from whisperbackup.runtime import clock
from whisperbackup.runtime.pool import Pool
from whisperbackup.storage.base import Driver
from whisperbackup.tree.places import Places, there
from whisperbackup.tree.walk import LocalFile, check_tree, walk
from whisperbackup.whisper.throttle import Throttle

logger = logging.getLogger(__name__)

FILES_IN_BATCH = 256
BATCHES_IN_ROUND = 6  # for each process; a round ends before the next one begins, so that no result waits for long
MAX_WHOLE = 1000  # files taken whole, if one percent is not more
MISSED = (
    "the folder with these metrics is gone, or another is in its place: is a disk not mounted? If it is back within a "
    "week, the next increment has its points; if this is meant, run backup"
)
RETURNED = "no new backup is of this folder, which was not there or is new: run backup"
MAX_RUNS = 100  # records of backup runs that are read; more without a backup of the whole tree are not looked at
HOUR = 3600

ReaderPool = Pool[Throttle, Taken]


def run(options: Options, stats: RunStats) -> int:
    """Store one increment; the exit status."""
    now = Now(int(time.time()), clock.boot_id(), clock.uptime())
    state = state_of(options)
    with contextlib.closing(open_for_increment(options, state)) as driver:
        check_tree(options.prefix)
        whose = history.Origins(os.uname().nodename, os.fsdecode(options.prefix), options.exclude)
        found = history.look(driver, options.storage_path, now.time)
        if found.newest_run >= stamp_at(now.time):  # a window begins at an earlier second
            time.sleep(1)
            now = Now(int(time.time()), clock.boot_id(), clock.uptime())
        window, found = history.find_window(driver, options.storage_path, found, now, whose, options.lag)
        if options.driver == "noop":
            window = Window(now.time - HOUR, "", 0, options.lag)
        if not found.complete:
            check_store(driver, options, state)
        if window is None:
            raise CannotRun(
                f"no backup run of {whose.prefix} on {whose.node} is recorded in {options.bucket} below "
                f"'{options.storage_path}' that covers all of this tree: run backup first, without -m and without "
                "other --exclude"
            )
        stamp = found.next_stamp()
        later = [run for run in reversed(found.runs) if run > window.known_run][:MAX_RUNS]
        runs = list(history.runs_of(driver, options.storage_path, later))
        # A run in progress may read a file after this one does.
        last = next((run.stamp for run in runs if run.is_complete), window.known_run)
        window = window.after(runs, *whose).within(options.selection)
        logger.info(
            "points since %s (the start of %s, less %d seconds)",
            stamp_at(window.since), window.reference or "an hour", window.lag,
        )  # fmt: skip
        work = _Work(options, stats, driver, stamp, window, now.time)
        files = window.reference_files
        with reporting(stats, options.quiet, lambda: files or state.count()):
            parts = work.store_parts()
            check_clock(now, options.lag, stats)
            looked = work.look_at_places(runs)
            made = Manifest(
                stamp=stamp,
                node=whose.node,
                prefix=whose.prefix,
                exclude=whose.exclude,
                version=__version__,
                begin=now.time,
                boot=now.boot,
                uptime=now.uptime,
                end=int(time.time()) + 1,
                files=work.files,
                since=window.since,
                lag=options.lag,
                reference=window.reference,
                reference_files=window.reference_files,
                after_run=last,
                known_run=window.known_run,
                places=tuple(sorted(looked.places)),
                away=tuple(sorted(looked.away)),
                waiting=tuple(sorted(looked.waiting.items())),
                records=work.count(Count.RECORDS),
                all_records=work.count(Count.RECORDS),
                points=work.count(Count.POINTS),
                owed=work.owed(),
                counters=stats.whole_numbers(),
                parts=parts,
            )
            work.complete(made)
    return stats.finish()


def check_clock(began: Now, lag: int, stats: RunStats) -> None:
    """Fail if the clock was set since the run `began`: it may have passed over files that have both clocks' times."""
    moved = (int(time.time()) - began.time) - (clock.uptime() - began.uptime)
    if abs(moved) > max(lag // 4, 1):
        stats.fail(
            "increment",
            f"the clock was set by {moved:+d} seconds during this run: points that were written since may not be in "
            "it; the next increment has them",
        )


class _Work:
    """The increment that this run makes."""

    def __init__(
        self, options: Options, stats: RunStats, driver: Driver, stamp: str, window: Window, begin: int
    ) -> None:
        self.options, self.stats, self.driver, self.stamp, self.window = options, stats, driver, stamp, window
        self.begin = begin
        self.files = 0
        self._places = Places()
        self._failed: list[str] = []
        self._unseen: list[str] = []
        self._served: set[str] = set()  # of what earlier runs owe
        self._lateness: Counter[int] = Counter()
        self._counts: Counter[Count] = Counter()
        self._whole = max(MAX_WHOLE, window.reference_files // 100)

    def count(self, name: Count) -> int:
        """How often something was counted."""
        return self._counts[name]

    def store_parts(self) -> tuple[Part, ...]:
        """Read the tree and store what is new in it.  Raises StorageError, Stopped, CannotRun."""
        options = self.options
        parts = []
        # Two runs that began in the same second must not replace each other's parts.
        number = random.randrange(PART_NUMBERS) + 1
        prepare = functools.partial(Throttle, None, options.nice)
        with Pool(options.processes, options.threads or 1, prepare, all_failed, 1) as pool:
            for part, content in parts_of(self._frames(pool), number):
                self.driver.put(self._key(part.name), content)
                del content  # or it would stay in memory while the next one is made
                self.stats.count(Count.STORED_BYTES, part.size)
                self.stats.count(Count.PARTS)
                parts.append(part)
        self._report_lateness()
        return tuple(parts)

    def look_at_places(self, runs: Iterable[Run]) -> Looked:
        """Whether the files were where they should be, after the walk; `runs` are the backup runs since `known_run`."""
        still = there(self.options.prefix, self._places.used)
        looked = look_at_places(self.window, self._places, still, self._unseen, runs, self.begin)
        for keys, reason in ((looked.missed, MISSED), (looked.returned, RETURNED)):
            for key in sorted(keys):
                self.stats.fail(f"{key}*", reason)
        return looked

    def _key(self, name: str) -> str:
        return self.options.storage_path + increment_key(self.stamp, name)

    def _frames(self, pool: ReaderPool) -> Iterator[PackedFrame]:
        """All frames, in order."""
        files = self._local_files()
        shelf = Shelf()
        next_number = 0
        numbers = itertools.count()
        size = BATCHES_IN_ROUND * self.options.processes
        while True:
            batches = list(itertools.islice(self._batches(files, numbers, size), size))
            if not batches:
                return
            again = {}
            by_number = {batch.number: batch for batch in batches}
            for done in pool.run(iter(batches)):
                taken = done.result
                if taken.new_left and self._whole > by_number[taken.number].whole:
                    again[taken.number] = by_number[taken.number]
                    continue
                self._add(taken)
                shelf.put(taken.number, taken.frames)
                while next_number in shelf:
                    yield from shelf.take(next_number)
                    next_number += 1
            for number in sorted(again):
                (done,) = pool.run(iter([again[number]._replace(whole=self._whole)]))
                self._add(done.result)
                shelf.put(number, done.result.frames)
            while next_number in shelf:
                yield from shelf.take(next_number)
                next_number += 1

    def _batches(self, files: Iterator[LocalFile], numbers: Iterator[int], size: int) -> Iterator[Batch]:
        """Batches of neighbouring files; each may take its share whole of what one round of `size` batches may."""
        window = self.window
        places = 0
        while chunk := tuple([(key, path) for key, path in itertools.islice(files, FILES_IN_BATCH)]):
            owed: dict[str, tuple[int, int]] = {}
            if self.window.waiting and len(self._places.found) > places:
                places = len(self._places.found)
                window = self.window.where(self._places.found)
            if window.owed:
                self._served.update(name for key, _ in chunk for name in (key, *ancestors(key)) if name in window.owed)
                usual = window.since, window.begin
                all_owed = {key: (window.since_of(key), window.begin_of(key)) for key, _ in chunk}
                owed = {key: limits for key, limits in all_owed.items() if limits != usual}
            limits = Limits(window.since, window.lag, owed)
            yield Batch(next(numbers), chunk, limits, self._whole // size)

    def _local_files(self) -> Iterator[LocalFile]:
        """The tree's files; what the walk could not see is noted, and named."""
        for item in walk(self.options.prefix, self.options.selection, places=self._places):
            if isinstance(item, LocalFile):
                self.files += 1
                yield item
            elif item.is_unseen:
                self._unseen.append(item.key)
                if item.is_error:
                    self.stats.fail(os.fsdecode(item.path), item.reason)

    def _add(self, taken: Taken) -> None:
        self.stats.add("", taken.counts)
        for name, reason in taken.failed:
            self.stats.fail(name, reason)
        if left := taken.new_left + taken.large_left:
            self.stats.count(Count.NEW_LEFT, left)
        self._counts += taken.counts
        self._whole -= taken.counts[Count.WHOLE]
        self._failed += taken.owed
        self._lateness += taken.lateness
        tick(self.stats)

    def _report_lateness(self) -> None:
        """Warn if many points come so late that an increment soon will not have them."""
        total = self._lateness.total()
        rest = total - total // 100
        for step in sorted(self._lateness):
            rest -= self._lateness[step]
            if rest <= 0:
                late = step * LATENESS_STEP
                self.stats.count(Count.LATENESS, late)
                if late > self.options.lag / 2:
                    logger.warning(
                        "one in a hundred metrics was written more than %d seconds after its newest point's time: "
                        "points later than %d seconds (--lag) are in no increment; use a larger --lag",
                        late, self.options.lag,
                    )  # fmt: skip
                return

    def owed(self) -> dict[str, int] | None:
        """What the next increment has to begin earlier for."""
        window = self.window.where(self._places.found)
        owed, forgotten = still_owed(window, self._failed, self._unseen, self._served, self.begin)
        if forgotten:
            logger.warning(
                "more than 10,000 metrics could not be read or are not in the tree: if one of the %d that are not "
                "returns, what was written to it before this run comes with the next backup", forgotten,
            )  # fmt: skip
        if owed is None:
            logger.warning(
                "more than 10,000 metrics could not be read: the next increment has the points since the same time"
            )
        else:
            self.stats.count(Count.OWED, len(owed))
        return owed

    def complete(self, made: Manifest) -> None:
        """Store the manifest, which makes the increment complete.  Raises StorageError, CannotRun."""
        if 2 * made.files < made.reference_files:
            self.stats.fail(
                "increment",
                f"there are {made.files} files, the last run saw {made.reference_files}: is a disk not mounted? "
                "The next increment does not build on this one; if this is meant, run backup",
            )
        if self.options.noop or self.options.driver == "noop":
            return
        # Another run may have begun in the same second, or have taken this one's parts for those of a killed run.
        found = history.look_from(self.driver, self.options.storage_path, self.stamp)
        sizes = dict(found.objects)
        lost = [part.name for part in made.parts if sizes.get(increment_key(self.stamp, part.name)) != part.size]
        if lost:
            raise CannotRun(
                f"part {lost[0]} of the increment {self.stamp} is no longer in the store, or not yet: start it again"
            )
        if self.stamp in found.complete:
            raise CannotRun(f"another increment began in the same second, {self.stamp}: start this one again")
        if found.newest > self.stamp:
            raise CannotRun(
                f"an increment that began after this one, {found.newest}, is complete, so this one is dropped: "
                "let all runs of a tree have the same --lockfile"
            )
        self.driver.put(self._key(MANIFEST), made.to_json())
