"""A whisper file's way back into the tree: created whole where it is missing, healed in place where it lives.

No step follows a symbolic link below the prefix, so nothing outside of it is ever written.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from whisperbackup import wsp
from whisperbackup.fill import heal

logger = logging.getLogger(__name__)

TEMPORARY = b".whisper-backup-"
SETTLING = 5.0  # seconds; a broken file touched more recently is looked at again, carbon may be creating it
ATTEMPTS = 20  # how often a file that carbon changes without locking is worked out anew
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


class CannotPlace(Exception):
    """The file could not be brought back; the text says why."""


class Placed(NamedTuple):
    """What became of a file (`created`, `healed`, `already whole`, `replaced`, `skipped`), and points filled in."""

    how: str
    points: int


class _Vanished(Exception):
    """The live file went, or another took its place, while it was looked at."""


def place(prefix: bytes, path: bytes, content: bytes, overwrite: bool, noop: bool) -> Placed:
    """Bring `content`, a checked whisper file, to `path` below `prefix`; with `noop` only tell what would be done.

    An existing file keeps every point that it holds, unless `overwrite` says to replace it.
    Raises CannotPlace and OSError.
    """
    *folders, name = path.split(b"/")
    with _folder(prefix, folders, noop) as folder:
        if folder is None:
            return Placed("created", 0)
        for _ in range(ATTEMPTS):
            try:
                if overwrite:
                    return _replace(folder, name, content, noop)
                if noop and not _exists(folder, name):
                    return Placed("created", 0)
                if not noop and _create(folder, name, content):
                    return Placed("created", 0)
                return _heal(folder, name, content, noop)
            except _Vanished:
                continue
        raise CannotPlace("another process keeps replacing it")


# -- folders -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(prefix: bytes, names: list[bytes], noop: bool) -> Iterator[int | None]:
    """A descriptor of the folder, made if it is missing (None if `noop` forbids); only `prefix` may be a link."""
    fd = os.open(prefix, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        for number, name in enumerate(names):
            try:
                inner = os.open(name, READ | os.O_DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                if noop:
                    yield None
                    return
                inner = _make_folder(fd, name)
            except NotADirectoryError:
                where = os.fsdecode(b"/".join(names[: number + 1]))
                raise CannotPlace(f"{where} is a symbolic link or no folder; nothing is restored below it") from None
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _make_folder(parent: int, name: bytes) -> int:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, 0o777, dir_fd=parent)
    fd = os.open(name, READ | os.O_DIRECTORY, dir_fd=parent)
    try:
        _inherit_owner(fd, parent)
        os.fsync(parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _inherit_owner(fd: int, folder: int) -> None:
    """Give what root made to the owner of the folder, so that carbon can write to it."""
    if os.geteuid() == 0:
        owner = os.fstat(folder)
        os.fchown(fd, owner.st_uid, owner.st_gid)


def _exists(folder: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


# -- creating ----------------------------------------------------------------------------------------


def _create(folder: int, name: bytes, content: bytes) -> bool:
    """Make the file appear whole; False if there is one already."""
    if _exists(folder, name):
        return False
    with _temporary(folder, content, 0o666) as temporary:
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            return False
    os.fsync(folder)
    return True


def _replace(folder: int, name: bytes, content: bytes, noop: bool) -> Placed:
    """Put `content` in the place of whatever file is there, atomically."""
    try:
        old = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        old = None
    if old and not stat.S_ISREG(old.st_mode):
        raise CannotPlace("there is something that is not a regular file in its place")
    if not noop:
        with _temporary(folder, content, stat.S_IMODE(old.st_mode) & 0o666 if old else 0o666, old) as temporary:
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        os.fsync(folder)
    return Placed("replaced" if old else "created", 0)


@contextlib.contextmanager
def _temporary(folder: int, content: bytes, mode: int, like: os.stat_result | None = None) -> Iterator[bytes]:
    """The name of a file beside its final place that holds `content`, on the disk; removed in the end.

    Its lock is held meanwhile: a temporary file that can be locked is one that a killed run left behind.
    """
    name, fd = _open_temporary(folder, mode)
    try:
        if like is None:
            _inherit_owner(fd, folder)
        else:
            os.fchmod(fd, mode)
            if os.geteuid() == 0:
                os.fchown(fd, like.st_uid, like.st_gid)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        os.close(fd)


def _open_temporary(folder: int, mode: int) -> tuple[bytes, int]:
    while True:
        name = TEMPORARY + secrets.token_hex(8).encode()
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode, dir_fd=folder)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return name, fd
        os.close(fd)  # another worker took it for a leftover before it was locked


def remove_leftovers(folder: bytes) -> None:
    """Remove temporary files that a killed restore left in `folder`."""
    with contextlib.suppress(OSError), os.scandir(folder) as scan:
        for entry in scan:
            if entry.name.startswith(TEMPORARY) and entry.is_file(follow_symlinks=False):
                fd = os.open(entry.path, READ)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(entry.path)
                except BlockingIOError:
                    pass  # its run is alive
                finally:
                    os.close(fd)


# -- healing -----------------------------------------------------------------------------------------


def _heal(folder: int, name: bytes, content: bytes, noop: bool) -> Placed:
    """Fill the gaps of the live file, under the exclusive lock that carbon takes.  Raises _Vanished."""
    try:
        fd = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        raise _Vanished from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise CannotPlace("there is something that is not a regular file in its place") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CannotPlace("there is something that is not a regular file in its place")
        _read_whole(fd)  # so that the disk is waited for before carbon may have to wait for us
        wsp.acquire(fd, fcntl.LOCK_SH if noop else fcntl.LOCK_EX)
        if not _is_still(fd, folder, name):
            raise _Vanished
        return _heal_locked(fd, folder, name, content, noop)
    finally:
        os.close(fd)  # and with it the lock


def _heal_locked(fd: int, folder: int, name: bytes, content: bytes, noop: bool) -> Placed:
    looked_again = False
    for _ in range(ATTEMPTS):
        touched = os.fstat(fd).st_mtime_ns
        live = _read_whole(fd)
        if wsp.is_compressed(live) or wsp.is_compressed(content):
            logger.warning("%s: a compressed whisper file cannot be healed; --overwrite replaces it", os.fsdecode(name))
            return Placed("skipped", 0)
        try:
            size = wsp.parse_header(live).file_size
            if len(live) < size:
                raise wsp.ShortFile(f"{len(live)} bytes, its header says {size}")
        except wsp.CorruptFile as error:
            if not looked_again and abs(time.time() - touched / 1e9) < SETTLING:
                looked_again = True
                fcntl.flock(fd, fcntl.LOCK_UN)
                time.sleep(1)
                wsp.acquire(fd, fcntl.LOCK_SH if noop else fcntl.LOCK_EX)
                continue
            _move_aside(folder, name, str(error), noop)
            if not noop and not _create(folder, name, content):
                raise _Vanished from None
            return Placed("created", 0)
        healing = heal(live[:size], content, int(time.time()))
        if not healing.writes:
            return Placed("already whole", 0)
        if noop:
            return Placed("healed", healing.points)
        # carbon's default is not to lock: what moved while we worked is worked out anew
        if _read_whole(fd) != live or os.fstat(fd).st_mtime_ns != touched:
            continue
        for offset, record in healing.writes:
            _write_at(fd, offset, record)
        os.fsync(fd)
        return Placed("healed", healing.points)
    raise CannotPlace("it changes faster than it can be healed; switch on WHISPER_LOCK_WRITES in carbon.conf")


def _move_aside(folder: int, name: bytes, reason: str, noop: bool) -> None:
    aside = name + b".broken-" + datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
    logger.warning("%s: not a whisper file (%s), moved aside as %s", os.fsdecode(name), reason, os.fsdecode(aside))
    if not noop:
        os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)


def _is_still(fd: int, folder: int, name: bytes) -> bool:
    """Whether `name` is the file that `fd` is open on, not one that took its place while we waited."""
    try:
        there = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))


def _read_whole(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    pieces: list[bytes] = []
    length = 0
    while length < size and (piece := os.pread(fd, size - length, length)):
        pieces.append(piece)
        length += len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _write_at(fd: int, offset: int, record: bytes) -> None:
    while record:
        written = os.pwrite(fd, record, offset)
        offset, record = offset + written, record[written:]
