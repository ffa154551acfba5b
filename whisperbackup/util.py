"""What every command shares: the run lock, the stamp file, splay, logging, retention."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import random
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, date, datetime
from typing import NamedTuple

logger = logging.getLogger(__name__)


class CannotRun(Exception):
    """The command could not do its job at all; the text names the thing and the remedy."""


def occupy_standard_streams() -> None:
    """Put /dev/null where stdin, stdout or stderr is closed, lest the next file that is opened become one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (lives as long as the process)


# -- files in folders that others may write to ---------------------------------------------------


def open_plainly(path: str, flags: int) -> int:
    """A descriptor of the file `path`, created when absent, which nobody can have planted.  Raises OSError.

    No symbolic link is followed, and no hard link or FIFO taken; nor, where everybody may write to the folder,
    a file of a user who is neither this one nor the folder's owner.  The kernel's fs.protected_* may be off.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if reason := _why_planted(os.fstat(fd), os.stat(os.path.dirname(os.path.abspath(path)))):
        os.close(fd)
        raise OSError(errno.EPERM, reason, path)
    return fd


def _why_planted(file: os.stat_result, folder: os.stat_result) -> str:
    if stat.S_ISCHR(file.st_mode):
        return ""  # /dev/null
    if not stat.S_ISREG(file.st_mode):
        return "it is not a regular file"
    if file.st_nlink > 1:
        return "it is a hard link"
    if folder.st_mode & stat.S_IWOTH and file.st_uid not in (os.geteuid(), folder.st_uid):
        return f"it belongs to another user (uid {file.st_uid}), and everybody may write to its folder"
    return ""


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


# -- time and logging ---------------------------------------------------------------------------


def utc_now() -> datetime:
    """The time of day, at the edge where it is read."""
    return datetime.now(UTC)


def splay(seconds: float) -> None:
    """Sleep for a random time up to `seconds`, so that a fleet's cron jobs do not start together.

    Not where somebody at a terminal is waiting.
    """
    if seconds > 0:
        if os.isatty(0) or os.isatty(2):
            logger.info("starting at once: --splay is for runs without a terminal")
            return
        pause = random.uniform(0, seconds)
        logger.info("starting in %.0f seconds (--splay %g)", pause, seconds)
        time.sleep(pause)


def configure_logging(
    debug: bool,
    quiet: bool,
    logfile: str | None,
    is_default: bool,
    syslog: bool,
    noop: bool = False,
    needs_logfile: bool = True,
) -> None:
    """Send the run's story to stderr, `logfile` (None: nowhere) and syslog; with `noop` each line says so.

    Raises CannotRun if a log file that was asked for cannot be opened; for the default one that is a warning, or
    nothing if `needs_logfile` is false.
    """
    logging.raiseExceptions = False  # a full disk under the log is no reason for a traceback a line
    root = logging.getLogger()
    root.handlers[:] = []
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    logging.getLogger("filelock").setLevel(logging.INFO)
    console = logging.StreamHandler(sys.stderr)
    console.setLevel(logging.WARNING if quiet else logging.DEBUG)
    story = "noop: %(message)s" if noop else "%(message)s"
    console.setFormatter(_ConsoleFormatter(story))
    root.addHandler(console)
    if syslog:
        from logging.handlers import SysLogHandler

        address = "/dev/log" if os.path.exists("/dev/log") else ("localhost", 514)
        to_syslog = SysLogHandler(address, SysLogHandler.LOG_DAEMON)
        to_syslog.setFormatter(_Formatter(f"whisper-backup[%(process)d]: %(levelname)s {story}"))
        root.addHandler(to_syslog)
    if logfile:
        from whisperbackup.logfile import LogFile

        try:
            to_file = LogFile(logfile)
        except OSError as error:
            if not is_default:
                raise CannotRun(
                    f"cannot open the log file {logfile}: {error.strerror}; name another with --logfile"
                ) from error
            level = logging.WARNING if needs_logfile else logging.DEBUG
            logger.log(level, "cannot open the log file %s: %s; see --logfile", logfile, error.strerror)
        else:
            formatter = _Formatter(f"%(asctime)s %(process)d %(levelname)s {story}", "%Y-%m-%dT%H:%M:%S%z")
            to_file.setFormatter(formatter)
            root.addHandler(to_file)


def printable(text: str) -> str:
    """`text` without what would move a terminal's cursor or forge a line of the log: a store may hold any name."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)


_PASSWORD = re.compile(r"://[^/@\s]+@")


class _Formatter(logging.Formatter):
    """Makes one line of each message; indents a traceback, none of whose lines can look like a message then.

    A traceback shows errors of the services' clients as they are, and these may name a proxy with its password.
    """

    def format(self, record: logging.LogRecord) -> str:
        text = _PASSWORD.sub("://***@", super().format(record))
        message, *traceback = text.split("\n")
        return "\n".join([message, *(f"    {printable(line)}" for line in traceback)])

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


class _ConsoleFormatter(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno == logging.INFO else f"{record.levelname}: {text}"


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
