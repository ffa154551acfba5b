"""Open files safely: closed standard streams, and files in directories that other users can write to."""

from __future__ import annotations

import errno
import os
import stat
import sys


def occupy_standard_streams() -> None:
    """Open /dev/null in place of a closed stdin, stdout or stderr, so that no other file gets its descriptor."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (lives as long as the process)


# -- files in directories that other users can write to ------------------------------------------


def open_untampered(path: str, flags: int) -> int:
    """Open the file `path`, or create it; refuse a file that another user can have planted.  Raises OSError.

    Symbolic links, hard links and FIFOs are refused.  In a world-writable directory, so is a file that belongs neither
    to this user nor to the directory's owner.  The kernel's own protection (fs.protected_*) may be off.
    """
    fd = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    if reason := _why_planted(os.fstat(fd), os.stat(os.path.dirname(os.path.abspath(path)))):
        os.close(fd)
        raise OSError(errno.EPERM, reason, path)
    return fd


def open_own(path: str) -> int:
    """A descriptor to read what this user, or root, has written to `path`.  Raises OSError for anything else.

    Another user might have it say that nothing has changed.  A FIFO that somebody holds open has no end to read to.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(fd)
    reason = "it is not a regular file" if not stat.S_ISREG(status.st_mode) else ""
    if status.st_uid not in (0, os.geteuid()):
        reason = "it belongs to another user"
    if reason:
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
        return f"it belongs to another user (uid {file.st_uid}), and its directory is world-writable"
    return ""
