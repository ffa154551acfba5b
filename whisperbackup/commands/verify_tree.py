"""verify --tree: compare the local tree with the newest backups, of which no more than the marks are read.

On a live node nearly every file differs from last night's backup, and metrics come and go: that is counted, and no
failure.  A failure is what a restore would miss: a metric that has a file and no complete backup (unless the file is
less than a day old, for no backup may have seen it), one whose newest mark is bad, and what cannot be read here.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from whisperbackup.commands import open_driver, open_store
from whisperbackup.commands.known_store import state_of
from whisperbackup.commands.pipeline import tree_and_store, work_through
from whisperbackup.commands.purge import check_tree
from whisperbackup.errors import CannotRun
from whisperbackup.options import Options
from whisperbackup.report.progress import told
from whisperbackup.report.run_stats import Tally
from whisperbackup.repository import backups
from whisperbackup.repository.catalog import Backup, mark_md5
from whisperbackup.repository.join import Pair
from whisperbackup.runtime import clock
from whisperbackup.runtime.budget import Budget
from whisperbackup.runtime.outcome import Outcome
from whisperbackup.runtime.pool import Pool, Work, failure
from whisperbackup.storage.base import Driver, StorageError
from whisperbackup.tree.walk import LocalFile, Skipped
from whisperbackup.whisper import format, reader
from whisperbackup.whisper.throttle import LIBC, Throttle

logger = logging.getLogger(__name__)

NEW = 86400.0  # seconds; every file that is older is expected to have been backed up
# linux/stat.h, linux/fcntl.h
AT_FDCWD, AT_SYMLINK_NOFOLLOW, STATX_BTIME = -100, 0x100, 0x800
STATX_SIZE, BTIME = 256, struct.Struct("=I76xqI")  # stx_mask, stx_btime


class Job(NamedTuple):
    """A file to compare with the newest backup of its metric."""

    name: str
    path: bytes
    backup: Backup


def run(options: Options, tally: Tally, is_meant: Callable[[str], bool], note_bad: Callable[[Outcome], None]) -> int:
    """Compare every metric that is meant; the exit status.  `note_bad` is called with each outcome."""
    with open_store(options) as driver:
        check_tree(options.prefix)
        with (
            Pool(options.processes, options.threads or driver.threads, functools.partial(prepare, options)) as pool,
            told(tally, options.quiet),
        ):
            catalog, pairs = tree_and_store(options, driver, state_of(options))
            now = clock.utc_now().timestamp()

            def take(outcome: Outcome) -> None:
                _name_change(outcome, tally)
                note_bad(outcome)

            work_through(pool, _comparable(pairs, is_meant, now, tally), tally, take)
            catalog.report_foreign()
    if not any(tally.figures.values()) and not tally.failed:
        raise CannotRun("no metric matches, neither in the tree nor in the store; see -m and --exclude")
    return tally.finish()


def _name_change(outcome: Outcome, tally: Tally) -> None:
    if outcome.figures.get("differ"):
        _tell(tally, outcome.metric, "differs", outcome.stamp)


def _tell(tally: Tally, name: str, state: str, stamp: str | None = None) -> None:
    """Name what is no failure: in the debug log, and in JSON."""
    logger.debug("%s: %s%s", name, state, f", its newest backup is of {stamp}" if stamp else "")
    tally.tell({"metric": name, "state": state, **({"backup": stamp} if stamp else {})})


def _comparable(pairs: Iterator[Pair], is_meant: Callable[[str], bool], now: float, tally: Tally) -> Iterator[Job]:
    """A job for each file that has a backup; counts the others."""
    for local, metric in pairs:
        if isinstance(local, Skipped) and metric is None:
            _note_skipped(local, tally)
            continue
        name = metric.name if metric else local.name if isinstance(local, LocalFile) else ""
        if not is_meant(name):
            continue
        newest = metric.backups[-1] if metric and metric.backups else None
        if isinstance(local, Skipped):
            tally.figures["unseen"] += 1
        elif isinstance(local, LocalFile) and newest:
            yield Job(name, local.path, newest)
        elif metric and metric.debris and not newest:
            tally.figures["not backed up"] += isinstance(local, LocalFile)
            tally.fail(name, "has no complete backup, only what an interrupted run left")
        elif isinstance(local, LocalFile):
            _note_unstored(local, now, tally)
        elif newest:
            tally.figures["gone"] += 1
            _tell(tally, name, "gone", newest.stamp)


def _note_skipped(skipped: Skipped, tally: Tally) -> None:
    path = os.fsdecode(skipped.path)
    if skipped.is_error:
        tally.fail(path, skipped.reason)
    elif skipped.reason:
        logger.warning("%s: not compared: %s", path, skipped.reason)


def _note_unstored(local: LocalFile, now: float, tally: Tally) -> None:
    if is_new(local.path, now):
        tally.figures["new"] += 1
        _tell(tally, local.name, "new")
    else:
        tally.figures["not backed up"] += 1
        tally.fail(local.name, "is in the tree, and has no backup")


def is_new(path: bytes, now: float) -> bool:
    """Whether the file `path` was certainly made within the day before the Unix time `now`."""
    try:
        born, written = birth_time(path), os.lstat(path).st_mtime
    except FileNotFoundError:
        return True  # and gone already
    except OSError:
        return False
    return born is not None and min(born, written) > now - NEW


def birth_time(path: bytes) -> float | None:
    """The Unix time when the file was made, where C library, kernel and file system tell it (statx(2))."""
    status = ctypes.create_string_buffer(STATX_SIZE)
    try:
        failed = LIBC.statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BTIME, status)
    except AttributeError:  # a C library older than 2018, or none on Linux
        return None
    mask, seconds, nanoseconds = BTIME.unpack_from(status)
    return seconds + nanoseconds / 1e9 if not failed and mask & STATX_BTIME else None


def prepare(options: Options) -> Work:
    """What a worker does with a job, with a driver of its own."""
    driver = open_driver(options)
    budget = Budget()
    throttle = Throttle(options.bandwidth and options.bandwidth / options.processes, options.nice)

    def work(job: Job) -> Outcome:
        try:
            with budget.take(min(os.lstat(job.path).st_size, options.max_file_size)):
                return compare(job, options, driver, throttle)
        except FileNotFoundError:
            return Outcome(job.name, {"vanished": 1})
        except (OSError, StorageError) as error:
            return failure(job.name, error, examined=1)

    return work


def compare(job: Job, options: Options, driver: Driver, throttle: Throttle) -> Outcome:
    """Compare one file with its backup's mark.  Raises OSError and StorageError."""
    figures = {"examined": 1}
    stamp = job.backup.stamp
    try:
        reading = reader.read(job.path, options.max_file_size, throttle)
    except (format.CorruptFile, reader.TooNew) as error:  # a file that was whole once and is short now is cut off
        return Outcome(job.name, figures, (f"not a whisper file: {error}; its newest backup is of {stamp}",))
    sha1 = backups.sha1_of(reading.content)
    figures["read bytes"] = len(reading.content)
    try:
        is_same = job.backup.mark_md5 == mark_md5(sha1) or sha1 == backups.read_mark(
            driver, f"{options.storage_path}{job.name}/", job.backup
        )
    except backups.BadBackup as error:
        return Outcome(job.name, figures, (f"the backup of {stamp} is bad: {error}",), is_bad=True, stamp=stamp)
    return Outcome(job.name, figures | {"same" if is_same else "differ": 1}, stamp=stamp)
