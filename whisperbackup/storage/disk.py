"""A directory as a store: objects are files, keys are paths below it.

A component of a key with up to 254 bytes is used unchanged as the name of a file or folder.  A longer one is
split: its first 254 bytes and a `+` name a folder (255 bytes), which holds a `+` and the rest of the component,
split by the same rule.  So a name of exactly 255 bytes always continues in the folder below it.

A file `.whisper-backup-store` at the top marks the directory as a store.  It distinguishes the store from the empty
folder that remains when its disk is not mounted.  The marker is not an object.

An object is first written to a file `.whisper-backup-<time>-<hex>` in its final folder.  If a killed run leaves
such a file, it is listed under that name, so that it can be deleted.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime

from whisperbackup.storage.base import (
    AccessDenied,
    Driver,
    Exists,
    NotDeleted,
    NotFound,
    OnUnreadable,
    StorageError,
    StoredObject,
    Unavailable,
    Unreadable,
    holds,
    keyword_arguments,
)

logger = logging.getLogger(__name__)

PIECE = 254
CONTINUED = b"+"
TEMPORARY = b".whisper-backup-"  # no metric's name begins with a dot
MARKER = ".whisper-backup-store"
LOST_AND_FOUND = "lost+found/"  # of the file system, where the store is its root
MARKER_TEXT = b"whisper-backup: this directory is a store of backups; do not delete this file\n"
NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK)
"""The errors of link() on a file system without hard links."""
DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Disk:
    """One directory."""

    is_ranged = False  # it can list a range, but listing several at once is no faster
    threads = 4  # threads wait for the disk, and one write of the file system's journal serves several of them

    def __init__(self, directory: bytes) -> None:
        self._directory = directory
        self._first_link, self._links = b"", 0
        self._has_named_links = False
        self._report_unreadable: OnUnreadable | None = None
        self._status = os.stat(directory)

    def list(self, prefix: str) -> Iterator[StoredObject]:
        """Yield the files in the order of their keys; memory holds the names of one folder for each level."""
        return self.list_range(prefix, "", "")

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[StoredObject]:
        """Like `list`, without reading folders that hold none of these keys."""
        if not os.path.isdir(self._directory):
            raise _missing_directory(self._directory)
        folder, slash, beginning = prefix.rpartition("/")
        above = (folder + slash).encode()
        place = self._place(above)
        try:
            stack = [(above, beginning.encode(), place, self._names(place, beginning.encode()))]
        except StorageError as error:
            if self._report_unreadable is None or not above:
                raise
            self._report_unreadable(above.decode(), error)
            return
        while stack:
            above, start, place, names = stack[-1]
            for name in names:
                try:
                    key = (above + name).decode()
                except UnicodeDecodeError:
                    continue  # not a file of this tool: keys are UTF-8
                if key <= after and not (key.endswith("/") and after.startswith(key)):
                    continue
                if until and key > until:
                    return
                if key.endswith("/"):
                    if key == LOST_AND_FOUND:
                        continue
                    place = self._place(above + name)
                    try:
                        stack.append((above + name, b"", place, self._names(place, b"")))
                    except StorageError as error:
                        if self._report_unreadable is None:
                            raise
                        self._report_unreadable(key, error)
                        continue
                    break
                if key == MARKER:
                    continue
                try:
                    path = place + name if len(name) <= PIECE else self._path(key)
                    yield StoredObject(key, os.stat(path).st_size, None)
                except FileNotFoundError:
                    # Another run deleted it after this folder was read.  That run may have stored a newer backup
                    # too: read the folder again, or the metric would seem to have no backup.
                    stack[-1] = (above, start, place, self._names(place, start, name))
                    break
                except OSError as error:
                    raise _storage_error(error, key) from error
            else:
                stack.pop()
        self._check_place()  # deleted files look the same as those of an unmounted disk
        if self._links and not self._has_named_links:
            self._has_named_links = True
            logger.warning(
                "%s is a symbolic link, which is not followed in a store (%d links in all): backups behind it count as "
                "absent; replace it with the folder itself",
                os.fsdecode(self._first_link), self._links,
            )  # fmt: skip

    def on_unreadable(self, report: OnUnreadable) -> None:
        """Leave folders that cannot be read out of listings."""
        self._report_unreadable = report

    def _note_link(self, path: bytes) -> None:
        self._first_link = self._first_link or path
        self._links += 1

    def _check_place(self) -> None:
        """Raise Unavailable if the path now leads to another directory: the disk was unmounted during this run.

        Another directory that has the marker is accepted: its disk was mounted again.
        """
        try:
            status = os.stat(self._directory)
        except FileNotFoundError:
            raise _missing_directory(self._directory) from None
        except OSError as error:
            raise _storage_error(error, os.fsdecode(self._directory)) from error
        if os.path.samestat(status, self._status):
            return
        if not self.is_marked():
            raise Unavailable(
                f"the directory {os.fsdecode(self._directory)} became another one during this run; "
                "was its disk unmounted?"
            )
        self._status = status

    def _place(self, above: bytes) -> bytes:
        """The folder of the keys that begin with `above` (empty, or ending in a slash), with a slash behind it."""
        return (self._path(above[:-1].decode()) if above else self._directory) + b"/"

    def _names(self, folder: bytes, beginning: bytes, after: bytes = b"") -> Iterator[bytes]:
        names = _names(folder, beginning, self._note_link)
        return iter(names) if not after else (name for name in names if name > after)

    def get(self, key: str) -> bytes:
        """Return the file's content."""
        return self._read(key, 0, -1)

    def get_range(self, key: str, offset: int, length: int) -> bytes:
        """Return a part of the file's content."""
        return self._read(key, offset, length)

    def _read(self, key: str, offset: int, length: int) -> bytes:
        try:
            with os.fdopen(os.open(self._path(key), os.O_RDONLY | os.O_CLOEXEC), "rb") as file:
                file.seek(offset)
                return file.read(length)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"'{key}' is not in {os.fsdecode(self._directory)}") from None
        except OSError as error:
            if error.errno in (errno.EIO, errno.EUCLEAN):  # a bad block, and not all of the disk
                raise Unreadable(f"'{key}': {error.strerror}") from error
            raise _storage_error(error, key) from error

    def put(self, key: str, body: bytes) -> None:
        """Write a temporary file in the same folder, sync it, rename it, and sync the folder."""
        self._store([(key, body)], os.rename)

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        """Like `put`, but with link() instead of rename(), and with one fsync of each folder after all its objects.

        Journaling file systems keep the order of the links.  On others a power failure may leave a later object
        without an earlier one; the catalog treats that as an orphan.  On a file system without hard links the
        temporary file is renamed, if its final name does not exist immediately before.
        """
        is_sure = True

        def enter(temporary: bytes, path: bytes) -> None:
            nonlocal is_sure
            try:
                os.link(temporary, path)
                os.unlink(temporary)
            except FileExistsError:
                raise
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                is_sure = False
                if os.path.lexists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path) from None
                os.rename(temporary, path)

        self._store(objects, enter)
        return is_sure

    def _store(self, objects: Sequence[tuple[str, bytes]], enter: Callable[[bytes, bytes], None]) -> None:
        self._check_place()
        entered: dict[bytes, None] = {}  # folders with new entries, in order
        for key, body in objects:
            try:
                self._write(self._path(key), body, entered, enter)
            except FileExistsError:
                if not holds(self, key, body):
                    raise Exists(key) from None
            except OSError as error:
                raise _storage_error(error, key) from error
        try:
            for folder in reversed(entered):
                _fsync_folder(folder)
        except OSError as error:
            raise _storage_error(error, objects[-1][0]) from error
        self._check_place()  # what went to the folder below an unmounted disk is not stored

    def _write(
        self, path: bytes, body: bytes, entered: dict[bytes, None], enter: Callable[[bytes, bytes], None]
    ) -> None:
        """Write `body` to a temporary file, then call `enter` to move that file to `path`."""
        folder = os.path.dirname(path)
        _refuse_link(folder)
        temporary = os.path.join(folder, _temporary_name())
        fd = self._create(temporary, entered)
        entered[folder] = None
        try:
            with os.fdopen(fd, "wb", buffering=0) as file:
                view = memoryview(body)
                while view:
                    view = view[file.write(view) :]
                os.fdatasync(file.fileno())
                # The file is not read again soon; carbon's files need the page cache more.
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            enter(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def delete(self, keys: Iterable[str]) -> None:
        """Delete the files, and the folders that become empty."""
        stayed: dict[str, OSError] = {}
        self._check_place()
        for key in keys:
            path = self._path(key)
            try:
                os.unlink(path)
                self._remove_empty_folders(os.path.dirname(path))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                stayed[key] = error
        self._check_place()  # on an unmounted disk every file is missing
        if stayed:
            key, first = next(iter(stayed.items()))
            more = f", and {len(stayed) - 1} more" if len(stayed) > 1 else ""
            raise NotDeleted(
                f"cannot delete '{key}': {first.strerror}{more}; give this user write access to the directory",
                {key: str(error.strerror) for key, error in stayed.items() if error.errno in DENIED},
                {key: str(error.strerror) for key, error in stayed.items() if error.errno not in DENIED},
            )

    def modified(self, key: str) -> float | None:
        """The mtime of the file: a file server has a clock of its own."""
        try:
            return os.stat(self._path(key)).st_mtime
        except OSError as error:
            raise _storage_error(error, key) from error

    def is_marked(self) -> bool:
        """Whether the marker exists."""
        return os.path.lexists(self._path(MARKER))

    def mark(self) -> None:
        """Write the marker if it does not exist.  Raises AccessDenied if this user cannot write to the directory."""
        if not os.access(self._directory, os.W_OK | os.X_OK):
            shown = os.fsdecode(self._directory)
            raise AccessDenied(
                f"this user cannot write to the directory {shown}; give it write access, or name another one with -b"
            )
        if self.is_marked():
            return
        try:
            with contextlib.suppress(FileExistsError):  # another run was faster
                fd = os.open(self._path(MARKER), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                with os.fdopen(fd, "wb") as file:
                    file.write(MARKER_TEXT)
                    file.flush()
                    os.fsync(fd)
            _fsync_folder(self._directory)
        except OSError as error:
            raise _storage_error(error, MARKER) from error

    def close(self) -> None:
        """Do nothing: no file stays open."""

    def _path(self, key: str) -> bytes:
        pieces: list[bytes] = []
        for component in key.encode().split(b"/"):
            if component in (b"", b".", b"..") or b"\0" in component:
                raise StorageError(f"'{key}' cannot be a path in a directory; check --storage-path")
            while len(component) > PIECE:
                pieces.append(component[:PIECE] + CONTINUED)
                component = CONTINUED + component[PIECE:]
            pieces.append(component)
        return b"/".join([self._directory, *pieces])

    def _create(self, path: bytes, entered: dict[bytes, None]) -> int:
        """Create a file and open it for writing.  Retries, since another run may remove the folder while empty."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(10):
            try:
                return os.open(path, flags, 0o666)
            except FileNotFoundError:
                self._make_folders(os.path.dirname(path), entered)
        return os.open(path, flags, 0o666)

    def _make_folders(self, folder: bytes, entered: dict[bytes, None]) -> None:
        """Like `mkdir -p`, but not for the store's own directory.  Adds the folders with new entries to `entered`."""
        if not os.path.isdir(self._directory):
            raise _missing_directory(self._directory)
        missing = []
        while folder != self._directory and not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for path in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(path)
            entered[os.path.dirname(path)] = None

    def _remove_empty_folders(self, folder: bytes) -> None:
        while folder != self._directory:
            try:
                os.rmdir(folder)
            except OSError:
                return  # not empty, or another run was faster
            folder = os.path.dirname(folder)


def open(bucket: str, create: bool, arguments: list[str]) -> Driver:
    """Open the directory `bucket`; this driver has no arguments."""
    keyword_arguments(arguments, None, ())
    directory = os.path.abspath(os.fsencode(bucket))
    try:
        if create and not os.path.isdir(directory):
            os.makedirs(directory, exist_ok=True)
            _fsync_folder(os.path.dirname(directory))
        if not stat.S_ISDIR(os.stat(directory).st_mode):
            raise NotADirectoryError
    except (FileExistsError, NotADirectoryError):
        raise Unavailable(f"{bucket} is not a directory; name a directory with -b") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not create:
            raise _missing_directory(directory) from None
        doing = "create" if create else "open"
        raise AccessDenied(f"cannot {doing} the directory {bucket}: {error.strerror}; name another with -b") from error
    return Disk(directory)


def _names(folder: bytes, beginning: bytes, note_link: Callable[[bytes], None], component: bytes = b"") -> list[bytes]:
    """The key components in `folder` that may begin with `beginning`, sorted; those of folders end in `/`.

    `component` is the beginning of these components, if a name too long for one folder continues in this one.
    """
    names: list[bytes] = []
    try:
        with os.scandir(folder) as scan:
            for entry in scan:
                if not component and len(entry.name) <= PIECE:  # nearly always
                    if not entry.name.startswith(beginning):
                        continue
                    if entry.is_file(follow_symlinks=False):
                        names.append(entry.name)
                    elif entry.is_dir(follow_symlinks=False):
                        names.append(entry.name + b"/")
                    elif entry.is_symlink():
                        note_link(entry.path)
                    continue
                is_folder = entry.is_dir(follow_symlinks=False)
                if component and not entry.name.startswith(CONTINUED):
                    continue
                name = component + entry.name[len(CONTINUED) if component else 0 :]
                if len(entry.name) > PIECE:
                    name = name[:-1]
                    if is_folder and (name.startswith(beginning) or beginning.startswith(name)):
                        names += _names(entry.path, beginning, note_link, name)
                elif not name.startswith(beginning):
                    continue
                elif is_folder or entry.is_file(follow_symlinks=False):
                    names.append(name + b"/" if is_folder else name)
                elif entry.is_symlink():
                    note_link(entry.path)
    except (FileNotFoundError, NotADirectoryError):
        return []  # no keys have this prefix, or another run deleted them during the listing
    except OSError as error:
        raise _storage_error(error, os.fsdecode(folder)) from error
    if not component:
        names.sort()
    return names


def _temporary_name() -> bytes:
    return TEMPORARY + f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S+00:00}-{os.urandom(8).hex()}".encode()


def _refuse_link(folder: bytes) -> None:
    """Raise StorageError if an object's folder is a link: no listing would ever show what is behind it."""
    if os.path.islink(folder):
        raise StorageError(
            f"{os.fsdecode(folder)} is a symbolic link, which is not followed in a store; replace it with the folder "
            "itself"
        )
    above = os.path.dirname(folder)
    if len(os.path.basename(above)) > PIECE:  # of a long name
        _refuse_link(above)


def _fsync_folder(folder: bytes) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _missing_directory(directory: bytes) -> NotFound:
    shown = os.fsdecode(directory)
    return NotFound(f"the directory {shown} does not exist; mount its disk, name another with -b, or run backup once")


def _storage_error(error: OSError, name: str) -> StorageError:
    """Convert an OSError to a StorageError that names the remedy."""
    if isinstance(error, FileNotFoundError):
        return NotFound(f"'{name}' does not exist")
    if error.errno in DENIED:
        return AccessDenied(f"'{name}': {error.strerror}; give this user access to the directory")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(f"'{name}': {error.strerror}; make room on the disk of the store")
    return Unavailable(f"'{name}': {error.strerror}")
