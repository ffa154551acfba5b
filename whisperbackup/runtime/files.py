"""Safe opening: standard streams that are closed, and files in folders that others may write to."""

from __future__ import annotations

import errno
import os
import stat
import sys


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
        return f"it belongs to another user (uid {file.st_uid}), and everybody may write to its folder"
    return ""
