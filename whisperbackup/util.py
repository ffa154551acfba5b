"""Shared by several commands: lock file, stamp file and retention."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from typing import NamedTuple

from whisperbackup.errors import CannotRun
from whisperbackup.runtime.clock import utc_now
from whisperbackup.runtime.files import open_untampered

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def run_lock(path: str, timeout: float) -> Iterator[None]:
    """Hold a kernel lock on the file `path`; wait for it at most `timeout` seconds.  Raises CannotRun.

    A forked worker does not hold the lock: filelock closes the descriptor in the child.
    """
    import filelock

    if not os.path.isdir(os.path.dirname(path) or "."):  # filelock would create it
        raise CannotRun(f"cannot lock {path}: its directory does not exist; name another file with --lockfile")
    # Readable by this user only: a user who can open the file can hold the lock and block every run.
    lock = filelock.FileLock(path, timeout=timeout, mode=0o600, fallback_to_soft=False)
    try:
        lock.acquire(poll_interval=0.1)
    except filelock.Timeout:
        raise CannotRun(
            f"another run holds the lock {path}: {_holder(path)}; waited {timeout:g} seconds (--locktimeout)"
        ) from None
    except OSError as error:
        raise CannotRun(f"cannot lock {path}: {error.strerror}; name another file with --lockfile") from error
    try:
        _write_holder(path)
        yield
    finally:
        lock.release()


def _write_holder(path: str) -> None:
    try:
        fd = open_untampered(path, os.O_WRONLY)
        with os.fdopen(fd, "w") as file:
            file.truncate()
            file.write(f"process {os.getpid()} since {utc_now():%Y-%m-%dT%H:%M:%SZ}\n")
    except OSError as error:  # the lock is the kernel's; this text is only for the message of a waiting run
        logger.debug("cannot write the lock holder to %s: %s", path, error)


def _holder(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # it may be a FIFO by now
        try:
            text = os.read(fd, 200).decode(errors="replace").strip()
        finally:
            os.close(fd)
    except OSError:
        text = ""
    return text if text.isprintable() and text else "by an unknown process"


def touch_stamp(path: str) -> None:
    """Set the time of the stamp file to now.  Raises CannotRun."""
    try:
        fd = open_untampered(path, os.O_WRONLY)
        try:
            os.utime(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise CannotRun(
            f"cannot touch the stamp file {path}: {error.strerror}; name another with --stampfile"
        ) from error


# -- retention -------------------------------------------------------------------------------------


MOST_FALLS = 4
"""So many falls of a metric count, each of two backups."""
YEAR = timedelta(days=366)
"""For so long the last backup of a file that was recreated is kept."""


class Generation(NamedTuple):
    """A complete backup as retention sees it; `size` is in bytes as stored.

    Two backups have equal `content` strings if, and only if, their content is equal.  `is_recreated`: the file has no
    point from before the backup before it, although its layout would have room for them.
    """

    stamp: str
    codec: str
    size: int
    content: str
    is_recreated: bool = False


class Keep(NamedTuple):
    """How many backups of a metric to keep: the newest, and the newest of each day, ISO week and month (UTC).

    `can_tell_year`: the clock has not leapt for a year, so the last backup of an old file may be let go.
    """

    last: int
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    can_tell_year: bool = True


class Retention(NamedTuple):
    """Stamps to drop, and stamps kept only because all newer backups are suspiciously small."""

    dropped: list[str]
    guarded: list[str]


def retain(generations: Sequence[Generation], keep: Keep) -> Retention:
    """Apply retention to a metric's complete backups, the oldest first; one is kept if any rule of `keep` keeps it.

    Consecutive backups of equal content count once among the newest.  After a disk was replaced and carbon created its
    files again, the last backup of the old file holds the history.  It is kept while it dwarfs all newer ones; and for
    a year, whatever the new file grows to, together with the next backup, which shows that it was the last.
    """
    result = Retention([], [])
    kept = _newest(generations, keep.last)
    kept |= _newest_of_each(generations, keep.daily, lambda day: day.toordinal())
    kept |= _newest_of_each(generations, keep.weekly, lambda day: day.isocalendar()[:2])
    kept |= _newest_of_each(generations, keep.monthly, lambda day: (day.year, day.month))
    fallen = {
        generation
        for can_tell_year in {True, keep.can_tell_year}
        for before, after in falls(generations, can_tell_year)
        if not (keep.can_tell_year and _is_over(after, generations[-1]))
        for generation in (before, after)
    }
    for index, generation in enumerate(generations):
        if generation.stamp not in kept:
            if dwarfs(generation, generations[index + 1 :]):
                result.guarded.append(generation.stamp)
            elif generation not in fallen:
                result.dropped.append(generation.stamp)
    return result


def _newest(generations: Sequence[Generation], count: int) -> set[str]:
    kept: set[str] = set()
    distinct = 0
    content = None
    for generation in reversed(generations):
        distinct += generation.content != content
        if distinct > count:
            break
        content = generation.content
        kept.add(generation.stamp)
    return kept


def _newest_of_each(generations: Sequence[Generation], count: int, period: Callable[[date], object]) -> set[str]:
    newest: dict[object, str] = {}
    for generation in reversed(generations):
        newest.setdefault(period(date.fromisoformat(generation.stamp[:10])), generation.stamp)
    return set(list(newest.values())[:count])


def dwarfs(generation: Generation, newer: Sequence[Generation]) -> bool:
    """Whether every newer one of the same codec is stored in less than half the size.

    If no newer backup has the same codec, all of them must be smaller than an eighth: codecs differ by less
    than that on whisper files, and a change of codec must not cause the history to be deleted.
    """
    same = [other for other in newer if other.codec == generation.codec]
    if same:
        return all(other.size * 2 < generation.size for other in same)
    return all(other.size * 8 < generation.size for other in newer)


def falls(generations: Sequence[Generation], can_tell_year: bool = True) -> list[tuple[Generation, Generation]]:
    """What may be the last backups of a file before it was recreated, each with the next backup.

    `generations`: the oldest first.  The next backup is known to be of a recreated file, or such a backup dwarfs it.
    Sizes also fall where a metric becomes quiet, or its layout smaller, so four falls count, at most: the newest two
    before a recreated file, the one that lost the most bytes (of those that lost nearly as much, the newest), the one
    that left the smallest share, the newest, the newest with a change of codec, which may be no loss, and then those
    that lost the most.  Those of the past year go before older ones, if the clock can tell.
    """
    stored = [generation for generation in generations if generation.size]
    pairs = itertools.pairwise(stored)
    found = [(before, after) for before, after in pairs if after.is_recreated or dwarfs(before, [after])]
    if can_tell_year:
        found = [fall for fall in found if not _is_over(fall[1], generations[-1])] or found
    found.reverse()
    recreated = [fall for fall in found if fall[1].is_recreated]
    smaller = [fall for fall in found if dwarfs(fall[0], fall[1:])]
    chosen = recreated[:2]
    same = [fall for fall in smaller if fall[0].codec == fall[1].codec]
    largest = sorted(same, key=lambda fall: fall[1].size - fall[0].size)
    if same:
        most = largest[0][0].size - largest[0][1].size
        chosen += [
            next((before, after) for before, after in same if (before.size - after.size) * 8 >= most * 7),
            min(same, key=lambda fall: fall[1].size / fall[0].size),
            same[0],
        ]
    chosen += [fall for fall in smaller if fall[0].codec != fall[1].codec][:1]
    chosen += largest
    return list(dict.fromkeys([*chosen, *recreated]))[:MOST_FALLS]


def _is_over(after: Generation, newest: Generation) -> bool:
    """Whether `after` is more than a year older than `newest`."""
    return date.fromisoformat(newest.stamp[:10]) - date.fromisoformat(after.stamp[:10]) > YEAR
