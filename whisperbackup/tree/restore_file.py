"""Write a backup into the tree: create the file where it is missing, heal it in place where it exists.

No step follows a symbolic link below the prefix, so nothing outside of it is ever written.  Temporary files and
folders are named `.whisper-restore-<16 hex digits>`; a lock is held on each, or on its parent, while its run lives.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from whisperbackup.tree.walk import HIDDEN_SIDECAR, SIDECAR
from whisperbackup.whisper import cwhisper, format, reader
from whisperbackup.whisper.checked_writes import write_at, write_checked
from whisperbackup.whisper.healing import END_OF_TIME, EVER, Healing, Span, Write, heal
from whisperbackup.whisper.span import cut

TEMPORARY = re.compile(rb"\.whisper-restore-[0-9a-f]{16}")
SETTLING = 5.0  # seconds; a broken file touched more recently is examined again, carbon may be creating it
ATTEMPTS = 20  # how often a file that carbon changes without locking is computed again
READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
ACL, DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
KEPT_ATTRIBUTES = ("user.", "system.", "security.selinux")  # not those that vouch for the old content
BRIEF = 0.2  # seconds: longer than other workers need a folder's lock
MAX_NAME = 255  # bytes that a file's name may have
NOT_REGULAR = "there is something that is not a regular file in its place"


class CannotPlace(Exception):
    """The file could not be restored; the text says why."""


class Differs(CannotPlace):
    """The live file or the backup is compressed, and they differ: healing cannot tell what the live file lacks."""


class Placed(NamedTuple):
    """What became of a file (`created`, `healed`, `already whole`, `replaced`), and points filled in.

    `skipped`: a dry run found one that could not be filled.  `planned` are the writes that a dry run left out; the
    first is at 0, and has the whole content, if that is all that the file will hold.
    `unheld` counts points of the backup for which the file's layout has no slot of their precision, `blocked` those
    whose slot holds a stamp far ahead of the clock, `ahead` those that are far ahead of it themselves.
    `is_resampled` and `coarser` as in `Healing`.
    """

    how: str
    points: int = 0
    warning: str = ""
    planned: tuple[Write, ...] = ()
    unheld: int = 0
    blocked: int = 0
    ahead: int = 0
    is_resampled: bool = False
    coarser: frozenset[int] = frozenset()


class _Vanished(Exception):
    """The live file was deleted or replaced while it was examined."""


class Placer:
    """Restores files below `prefix`; may be used by threads.

    With `overwrite` existing files are replaced by whole ones instead of healed; with `noop` nothing is changed, only
    reported.  A live file of more than `max_file_size` bytes is an error.  Of backups, only the points of
    `span` are used.
    """

    def __init__(self, prefix: bytes, overwrite: bool, noop: bool, max_file_size: int, span: Span = EVER) -> None:
        self.prefix = prefix
        self.overwrite = overwrite
        self.noop = noop
        self.max_file_size = max_file_size
        self.span = span
        self._tidied: set[tuple[int, int]] = set()
        self._locked: set[tuple[int, int]] = set()  # folders whose lock another process does not give up
        self._mounted: dict[bytes, int] = {}  # the device of each folder that is on another one than that above it
        self._root = os.stat(prefix)

    def is_occupied(self, path: bytes) -> bool:
        """Whether there is something at `path` now."""
        return os.path.lexists(os.path.join(self.prefix, path))

    def place(self, path: bytes, content: bytes, is_whole: bool = True, coarsest: int = END_OF_TIME) -> Placed:
        """Restore `content`, a checked whisper file, to `path`; an existing file keeps every point that it holds.

        With `overwrite` it is replaced, but by nothing that is not `is_whole`.  `coarsest` as for `heal`.  Raises
        CannotPlace and OSError.
        """

        def place(folder: int, name: bytes) -> Placed:
            placed = self._place(folder, name, content, is_whole, coarsest)
            if placed.how in ("created", "replaced") and cwhisper.is_compressed(content):
                sidecar = _warn_of_sidecar(folder, name)
                return placed._replace(warning="; ".join(filter(None, (placed.warning, sidecar))))
            return placed

        placed = self._attempt(path, Placed("created"), place)
        if self.noop and placed.how in ("created", "replaced"):
            return placed._replace(planned=((0, self._cut(content)),))
        return placed

    def fill(self, path: bytes, content: bytes, planned: tuple[Write, ...] = (), coarsest: int = END_OF_TIME) -> Placed:
        """Fill the file at `path`, just placed, from the older backup `content`; it is never created from that.

        `planned` are the writes that a dry run left out before.  Raises CannotPlace and OSError.
        """
        unmade = Placed("skipped" if cwhisper.is_compressed(content) else "healed")
        if planned and not planned[0][0]:
            return _fill_unmade(planned, content, self.span, coarsest)

        def fill(folder: int, name: bytes) -> Placed:
            if _exists(folder, name):
                return self._heal(folder, name, content, coarsest, planned)
            if self.noop:
                return unmade  # it would have been created before
            raise CannotPlace("it was deleted while it was restored; run restore again")

        return self._attempt(path, unmade, fill)

    def _attempt(self, path: bytes, unmade: Placed, work: Callable[[int, bytes], Placed]) -> Placed:
        """What `work(folder, name)` makes of a path, however often the file vanishes; `unmade` without a folder."""
        *folders, name = path.split(b"/")
        with self._folder(folders) as folder:
            if folder is None:
                return unmade
            warning = ""
            for _ in range(ATTEMPTS):
                try:
                    placed = work(folder, name)
                    return placed._replace(warning="; ".join(filter(None, (warning, placed.warning))))
                except _MovedAside as moved:
                    warning = str(moved)
                except _Vanished:
                    continue
            raise CannotPlace("another process keeps replacing it")

    @contextlib.contextmanager
    def _folder(self, names: list[bytes]) -> Iterator[int | None]:
        """A descriptor of the folder, made if it is missing (None if `noop` forbids); only the prefix may be a link."""
        fd = os.open(self.prefix, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
        try:
            if not os.path.samestat(os.fstat(fd), self._root):
                where = os.fsdecode(self.prefix)
                raise CannotPlace(f"{where} became another folder during this run; was its disk unmounted?")
            device = self._root.st_dev
            for number, name in enumerate(names):
                self._tidy(fd)
                try:
                    inner = os.open(name, READ | os.O_DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    if self.noop:
                        yield None
                        return
                    inner = self._make_folder(fd, name)
                except NotADirectoryError:
                    where = os.fsdecode(b"/".join(names[: number + 1]))
                    raise CannotPlace(
                        f"{where} is a symbolic link or no folder; nothing is restored below it"
                    ) from None
                os.close(fd)
                fd = inner
                device = self._enter(fd, b"/".join(names[: number + 1]), device)
            self._tidy(fd)
            yield fd
        finally:
            os.close(fd)

    def _enter(self, folder: int, path: bytes, above: int) -> int:
        """The device of a folder below one on the device `above`.  Raises CannotPlace if a mounted one is gone."""
        device = os.fstat(folder).st_dev
        if device != above:
            self._mounted.setdefault(path, device)
        if self._mounted.get(path, device) != device:
            raise CannotPlace(f"{os.fsdecode(path)} became another folder during this run; was its disk unmounted?")
        return device

    def _make_folder(self, parent: int, name: bytes) -> int:
        """Make a folder.  Raises CannotPlace if another process keeps the one above it locked; waits for that once."""
        status = os.fstat(parent)
        identity = status.st_dev, status.st_ino
        try:
            return _make_folder(parent, name, BRIEF if identity in self._locked else reader.LOCK_TIMEOUT)
        except reader.Locked as error:
            self._locked.add(identity)
            raise CannotPlace("no folder can be made for it: another process has locked the one above it") from error

    def _tidy(self, folder: int) -> None:
        """Remove what a killed run left in a folder on the way, once."""
        if self.noop:
            return
        identity = os.fstat(folder)
        if (identity.st_dev, identity.st_ino) not in self._tidied:
            self._tidied.add((identity.st_dev, identity.st_ino))
            remove_leftovers(folder)

    def _place(self, folder: int, name: bytes, content: bytes, is_whole: bool, coarsest: int) -> Placed:
        if self.overwrite and is_whole:
            return _replace(folder, name, content, self.noop)
        if not _exists(folder, name):
            if self.noop:
                return Placed("created")
            if _create(folder, name, self._cut(content)):
                return Placed("created")
        return self._heal(folder, name, content, coarsest)

    def _cut(self, content: bytes) -> bytes:
        """What a file is created with."""
        return content if self.span == EVER else cut(content, self.span, int(time.time()))

    def _heal(self, folder: int, name: bytes, content: bytes, coarsest: int, planned: tuple[Write, ...] = ()) -> Placed:
        with _live_file(folder, name) as fd:
            if os.fstat(fd).st_size > self.max_file_size:
                raise CannotPlace(f"the file has {os.fstat(fd).st_size} bytes, more than --max-file-size")
            work_out = functools.partial(
                _work_out,
                content=content,
                max_size=self.max_file_size,
                span=self.span,
                coarsest=coarsest,
                planned=planned,
            )
            return _heal(fd, folder, name, work_out, self.noop, self.span)


def _warn_of_sidecar(folder: int, name: bytes) -> str:
    """A warning that go-carbon will apply late points to a restored compressed file; empty if there are none.

    Where the sidecar's name would be too long it is hidden behind a hash, and so may be any such file in the folder.
    """
    sidecar: bytes | None = name + SIDECAR
    if len(name + SIDECAR) > MAX_NAME:
        with os.scandir(folder) as scan:
            names = (os.fsencode(entry.name) for entry in scan)
            sidecar = next((other for other in names if HIDDEN_SIDECAR.fullmatch(other)), None)
    if sidecar is None or not _exists(folder, sidecar):
        return ""
    return (
        f"go-carbon keeps late points of this metric in {os.fsdecode(sidecar)} beside it, and applies them to what was "
        "restored; delete that file if they are not wanted"
    )


# -- folders -----------------------------------------------------------------------------------------


def _make_folder(parent: int, name: bytes, timeout: float) -> int:
    """Make a folder that belongs to its parent's owner from the moment that it can be seen.  Raises Locked."""
    reader.acquire(parent, fcntl.LOCK_EX, timeout)  # other workers may want the same folder
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(name, READ | os.O_DIRECTORY, dir_fd=parent)
        temporary = _temporary_name()
        os.mkdir(temporary, 0o777, dir_fd=parent)
        try:
            fd = os.open(temporary, READ | os.O_DIRECTORY, dir_fd=parent)
            try:
                _inherit(fd, parent, 0o777)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)  # takes the place of an empty one only
        except OSError as error:
            os.rmdir(temporary, dir_fd=parent)
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        os.fsync(parent)
        return os.open(name, READ | os.O_DIRECTORY, dir_fd=parent)
    finally:
        fcntl.flock(parent, fcntl.LOCK_UN)


def _inherit(fd: int, folder: int, bits: int) -> None:
    """Give a new file or folder its parent's owner, if root made it, and those of its permissions that are in `bits`.

    The umask does not limit them: carbon and the web application must be able to use what a root with umask 077
    restores.  Where the folder has a default ACL, the kernel has set both mode and ACL by that, without the umask.
    """
    model = os.fstat(folder)
    if os.geteuid() == 0:
        os.fchown(fd, model.st_uid, model.st_gid)
    if DEFAULT_ACL not in _attributes(folder):
        mode = model.st_mode & bits
        if model.st_mode & stat.S_ISVTX:  # anyone may create files there, and nobody may touch another's
            mode &= ~0o022
        os.fchmod(fd, mode | os.fstat(fd).st_mode & (stat.S_ISGID if bits & 0o111 else 0))


def _exists(folder: int, name: bytes) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


# -- creating ----------------------------------------------------------------------------------------


def _create(folder: int, name: bytes, content: bytes) -> bool:
    """Make the file appear whole; False if there is one already, or if carbon has emptied it in that very instant."""
    with _temporary(folder, content) as (temporary, fd):
        before = os.fstat(fd)
        try:
            os.link(temporary, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
        except FileExistsError:
            return False
        os.fsync(folder)
        # whisper.create checks whether a file exists, then truncates it: our link may come in between
        after = os.fstat(fd)
        return (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def _replace(folder: int, name: bytes, content: bytes, noop: bool) -> Placed:
    """Put `content` in the place of whatever file is there, atomically; owner, permissions and attributes stay."""
    with _open_existing(folder, name) as old:
        if not noop:
            with _temporary(folder, content, old) as (temporary, _):
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        return Placed("created" if old is None else "replaced")


@contextlib.contextmanager
def _open_existing(folder: int, name: bytes) -> Iterator[int | None]:
    """A descriptor of the file to be replaced, None if there is none.  Raises CannotPlace for what is no file."""
    try:
        is_regular = stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        fd = os.open(name, READ, dir_fd=folder) if is_regular else None
    except FileNotFoundError:
        yield None
        return
    if fd is None:
        raise CannotPlace(NOT_REGULAR)
    try:
        yield fd
    finally:
        os.close(fd)


def _imitate(fd: int, old: int) -> None:
    """Give a new file the owner, mode, ACL and attributes of the old one, but no special bits and no capabilities."""
    status = os.fstat(old)
    os.fchmod(fd, stat.S_IMODE(status.st_mode) & 0o666)
    if os.geteuid() == 0:
        os.fchown(fd, status.st_uid, status.st_gid)
    kept = [name for name in _attributes(old) if name.startswith(KEPT_ATTRIBUTES)]
    if ACL in _attributes(fd) and ACL not in kept:  # from the folder's default
        os.removexattr(fd, ACL)
        os.fchmod(fd, stat.S_IMODE(status.st_mode) & 0o666)
    for name in kept:
        try:
            os.setxattr(fd, name, os.getxattr(old, name))
        except OSError as error:
            raise OSError(error.errno, f"cannot keep its attribute {name}: {error.strerror}") from error


def _attributes(fd: int) -> list[str]:
    """The names of extended attributes and ACLs; none where the file system has none."""
    try:
        return os.listxattr(fd)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        return []


@contextlib.contextmanager
def _temporary(folder: int, content: bytes, like: int | None = None) -> Iterator[tuple[bytes, int]]:
    """Name and descriptor of a file beside its final place that holds `content`, on the disk; removed in the end.

    Its lock is held meanwhile: a temporary file that can be locked is one that a killed run left behind.
    """
    name, fd = _open_temporary(folder)
    try:
        if like is None:
            _inherit(fd, folder, 0o666)
        else:
            _imitate(fd, like)
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
        yield name, fd
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)
        os.close(fd)


def _open_temporary(folder: int) -> tuple[bytes, int]:
    while True:
        name = _temporary_name()
        fd = os.open(name, CREATE, 0o666, dir_fd=folder)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return name, fd
        os.close(fd)  # another worker removed it as a leftover before it was locked


def _temporary_name() -> bytes:
    return b".whisper-restore-" + secrets.token_hex(8).encode()


def remove_leftovers(folder: int) -> None:
    """Remove the temporary files and folders that a killed restore left in `folder`, a descriptor."""
    with os.scandir(folder) as scan:
        leftovers = [os.fsencode(entry.name) for entry in scan if TEMPORARY.fullmatch(os.fsencode(entry.name))]
    for name in leftovers:
        with contextlib.suppress(OSError):  # another worker was faster, or its run is alive
            fd = os.open(name, READ, dir_fd=folder)
            try:
                if stat.S_ISDIR(os.fstat(fd).st_mode):
                    fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    try:
                        os.rmdir(name, dir_fd=folder)
                    finally:
                        fcntl.flock(folder, fcntl.LOCK_UN)
                else:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(name, dir_fd=folder)
            finally:
                os.close(fd)


# -- healing -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _live_file(folder: int, name: bytes) -> Iterator[int]:
    """The live file, open for writing.  Raises _Vanished, and CannotPlace for what is no regular file."""
    try:
        fd = os.open(name, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        raise _Vanished from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise CannotPlace(NOT_REGULAR) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CannotPlace(NOT_REGULAR)
        yield fd
    finally:
        os.close(fd)  # and with it the lock


class Plan(NamedTuple):
    """What to do with a live file: what to write (None: it cannot be healed), or why it is `broken`.

    With `may_be_new` it holds nothing but a beginning that a daemon may be about to complete.  With `header` and fewer
    bytes than that declares, it was cut off, and is extended first.
    """

    healing: Healing | None = None
    broken: str = ""
    may_be_new: bool = False
    header: format.Header | None = None
    is_same: bool = False  # a compressed file that equals the backup


def _heal(fd: int, folder: int, name: bytes, work_out: Callable[[bytes], Plan], noop: bool, span: Span) -> Placed:
    """Fill the gaps of the live file, under the exclusive lock that carbon takes; carbon waits as briefly as possible.

    So the first attempt reads and computes without the lock, and uses the result if under it the file is the
    same to the byte.  Where it is not, because carbon wrote, it is computed again, under the lock.  carbon's default
    is not to lock: also then the file is compared just before writing, and each part of it once more.
    """
    live = _read_whole(fd)
    plan = work_out(live)
    points, warning = 0, ""
    reader.acquire(fd, fcntl.LOCK_SH if noop else fcntl.LOCK_EX)
    for _ in range(ATTEMPTS):
        if not _is_still(fd, folder, name):
            raise _Vanished
        now = _read_whole(fd)
        if now != live:
            live = now
            plan = work_out(live)
            continue
        if plan.may_be_new and _is_settling(fd):
            fcntl.flock(fd, fcntl.LOCK_UN)
            time.sleep(0.5)
            reader.acquire(fd, fcntl.LOCK_SH if noop else fcntl.LOCK_EX)
            continue
        if plan.broken:
            return _move_aside(folder, name, plan.broken, noop)
        if plan.is_same:
            return Placed("already whole")
        if plan.healing is None or plan.header is None:
            raise Differs(
                "the file there differs from the backup, and compressed whisper files cannot be healed: "
                "it is left as it is; --overwrite replaces it"
            )
        size = plan.header.file_size
        if len(live) < size:
            if span != EVER:
                raise CannotPlace(
                    "it was cut off, and has lost more than that time: restore it without --from and --until"
                )
            how = "would be" if noop else "was"
            warning = f"the file was cut off, {len(live)} of {size} bytes; it {how} extended and keeps what it held"
        elif not plan.healing.writes and not points and not warning:
            return Placed("already whole", 0, "", (), *plan.healing[2:])
        points = max(points, plan.healing.points)  # those of an attempt that carbon interrupted are not planned again
        if not noop:
            if len(live) < size:
                live = _extend(fd, live, plan.header)
            if not write_checked(fd, live, plan.healing.writes, plan.header.archives):
                continue
            if not _is_still(fd, folder, name):
                raise _Vanished
            fcntl.flock(fd, fcntl.LOCK_UN)  # carbon need not wait for the disk
            os.fsync(fd)
        planned = tuple(plan.healing.writes) if noop else ()
        return Placed("healed", points, warning, planned, *plan.healing[2:])
    raise CannotPlace("it changes faster than it can be healed; switch on WHISPER_LOCK_WRITES in carbon.conf")


def _work_out(
    live: bytes, content: bytes, max_size: int, span: Span, coarsest: int, planned: tuple[Write, ...]
) -> Plan:
    """What to do about a live file; `planned` are the writes that a dry run left out before."""
    try:
        if cwhisper.is_compressed(live):
            format.check(live)
            return Plan(is_same=live == content)
        header = format.parse_header(live)
        size = header.file_size
        if len(live) < size:
            format.declared_size(live, max_size)
    except format.CorruptFile as error:
        # go-carbon locks no file by default: a compressed one may be read in the middle of a write to its header.
        may_be_new = isinstance(error, format.ShortFile) or cwhisper.is_compressed(live)
        return Plan(broken=str(error), may_be_new=may_be_new)
    if cwhisper.is_compressed(content):
        return Plan()
    may_be_new = len(live) < size and not format.is_cut_off(live)
    if len(live) < size and header.archives != format.parse_header(content).archives:
        # One flipped bit in its last archive's length would make gigabytes of it, and a layout that nobody wanted.
        return Plan(
            broken=f"{len(live)} bytes, its header declares {size} and is not its backup's", may_be_new=may_be_new
        )
    whole = _extended(live, header)[:size]
    healing = heal(_written(whole, planned), content, int(time.time()), span, coarsest)
    return Plan(healing, "", may_be_new, header)


def _fill_unmade(planned: tuple[Write, ...], content: bytes, span: Span, coarsest: int) -> Placed:
    """Fill a file that a dry run did not create or replace; the first of the `planned` writes is all of it."""
    live = _written(b"", planned)
    if cwhisper.is_compressed(live) or cwhisper.is_compressed(content):
        return Placed("skipped")
    healing = heal(live, content, int(time.time()), span, coarsest)
    how = "healed" if healing.writes else "already whole"
    return Placed(how, healing.points, "", tuple(healing.writes), *healing[2:])


def _written(live: bytes, writes: tuple[Write, ...]) -> bytes:
    """`live` as these writes would make it."""
    if not writes:
        return live
    content = bytearray(live)
    for offset, record in writes:
        content[offset : offset + len(record)] = record
    return bytes(content)


def _extended(live: bytes, header: format.Header) -> bytes:
    """`live` with zeros up to its declared size; half a record at the cut is none, or it would become a point."""
    if len(live) >= header.file_size:
        return live
    return live[: _last_whole(live, header)].ljust(header.file_size, b"\0")


def _last_whole(live: bytes, header: format.Header) -> int:
    """Where the last whole record of a file that was cut off ends."""
    return len(live) - (len(live) - header.archives[0].offset) % format.POINT_SIZE


def _extend(fd: int, live: bytes, header: format.Header) -> bytes:
    """Give a file that was cut off its declared size; its content then.  On a full disk its size stays as it is."""
    extended = _extended(live, header)
    cut = _last_whole(live, header)
    write_at(fd, cut, extended[cut : len(live)])
    try:
        os.posix_fallocate(fd, len(live), len(extended) - len(live))
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):  # of a file system that cannot allocate
            raise
        os.ftruncate(fd, len(extended))
    return extended


class _MovedAside(_Vanished):
    """A broken file was renamed; the text says to what."""


def _move_aside(folder: int, name: bytes, reason: str, noop: bool) -> Placed:
    """Give a broken file another name.  Raises _MovedAside, so that what is missing now is created; not if `noop`."""
    ending = b".broken-" + datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()
    aside = name[: 255 - len(ending)] + ending
    if noop:
        return Placed("created", 0, f"the file there is no whisper file ({reason}); it would be moved aside")
    os.rename(name, aside, src_dir_fd=folder, dst_dir_fd=folder)
    raise _MovedAside(f"the file there was no whisper file ({reason}); moved aside as {os.fsdecode(aside)}")


def _is_settling(fd: int) -> bool:
    return abs(time.time() - os.fstat(fd).st_mtime) < SETTLING


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
