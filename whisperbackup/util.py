"""What every command shares: lock file, stamp file and retention."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import NamedTuple

from whisperbackup.errors import CannotRun
from whisperbackup.runtime.clock import utc_now
from whisperbackup.runtime.files import open_plainly

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def run_lock(path: str, timeout: float) -> Iterator[None]:
    """Hold the kernel's lock on the file `path`; wait for it at most `timeout` seconds.  Raises CannotRun.

    A forked worker does not hold it too: filelock closes the descriptor in the child.
    """
    import filelock

    if not os.path.isdir(os.path.dirname(path) or "."):  # which filelock would make
        raise CannotRun(f"cannot lock {path}: its folder does not exist; name another file with --lockfile")
    # Readable to this user alone: whoever can open it can hold it, and keep every run waiting.
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
        fd = open_plainly(path, os.O_WRONLY)
        with os.fdopen(fd, "w") as file:
            file.truncate()
            file.write(f"process {os.getpid()} since {utc_now():%Y-%m-%dT%H:%M:%SZ}\n")
    except OSError as error:  # the lock is the kernel's; this is only what a waiting run says of its holder
        logger.debug("cannot note the holder in %s: %s", path, error)


def _holder(path: str) -> str:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)  # it may be anything by now
        try:
            text = os.read(fd, 200).decode(errors="replace").strip()
        finally:
            os.close(fd)
    except OSError:
        text = ""
    return text if text.isprintable() and text else "by an unknown process"


def touch_stamp(path: str) -> None:
    """Give the stamp file the present time.  Raises CannotRun."""
    try:
        fd = open_plainly(path, os.O_WRONLY)
        try:
            os.utime(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise CannotRun(
            f"cannot touch the stamp file {path}: {error.strerror}; name another with --stampfile"
        ) from error


# -- retention -------------------------------------------------------------------------------------


class Generation(NamedTuple):
    """What retention has to know of a complete backup; `size` in bytes as stored.

    `content` is any string that is equal exactly for backups of equal content.
    """

    stamp: str
    codec: str
    size: int
    content: str


class Keep(NamedTuple):
    """How many backups of a metric to keep: the newest, and the newest of each day, ISO week and month (UTC)."""

    last: int
    daily: int = 0
    weekly: int = 0
    monthly: int = 0


class Retention(NamedTuple):
    """Stamps to drop, and stamps kept for no other reason than that everything newer is suspiciously small."""

    dropped: list[str]
    guarded: list[str]


def retain(generations: Sequence[Generation], keep: Keep) -> Retention:
    """What a metric's complete backups, the oldest first, come down to; one is kept if any rule of `keep` keeps it.

    Neighbours of equal content count once among the newest.  One that dwarfs everything newer is kept: after
    a disk was replaced and carbon made its files anew, it is the history.
    """
    result = Retention([], [])
    kept = _newest(generations, keep.last)
    kept |= _newest_of_each(generations, keep.daily, lambda day: day.toordinal())
    kept |= _newest_of_each(generations, keep.weekly, lambda day: day.isocalendar()[:2])
    kept |= _newest_of_each(generations, keep.monthly, lambda day: (day.year, day.month))
    for index, generation in enumerate(generations):
        if generation.stamp not in kept:
            is_guarded = dwarfs(generation, generations[index + 1 :])
            (result.guarded if is_guarded else result.dropped).append(generation.stamp)
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

    Where there is none of the same codec, all newer ones must have less than an eighth: codecs differ by
    less than that on whisper files, and history must not go because the codec was changed that very week.
    """
    same = [other for other in newer if other.codec == generation.codec]
    if same:
        return all(other.size * 2 < generation.size for other in same)
    return all(other.size * 8 < generation.size for other in newer)
