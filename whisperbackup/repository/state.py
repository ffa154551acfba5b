"""The state file: which files have not been modified since their newest backup was known to hold their content.

It only saves reading these files.  Without it, or if it is stale or corrupt, a run is slower and its result the same.

    file   = gzip(header line, one line a metric, ascending by key)
    header = "whisper-backup state 2" TAB identity TAB store               identity: of prefix and store, as a SHA-1
    store  = "empty" | "filled" | "marked"                                 whether it held backups, and had its marker
    line   = key TAB fingerprint TAB sha1 TAB stamp TAB mark_md5           all text; no key holds a tab

"whisper-backup state 1" is the same without the third field.  The lines have the order of the tree's walk, so the
file is read as a third sorted stream beside tree and store.  It is rewritten beside the old file and renamed, every
ten minutes and at the end of every run, even one that is stopped or fails.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import heapq
import io
import itertools
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, NamedTuple

from whisperbackup.repository import compression
from whisperbackup.repository.catalog import Backup, mark_md5
from whisperbackup.runtime import defaults
from whisperbackup.runtime.files import open_own
from whisperbackup.tree.names import is_canonical
from whisperbackup.tree.selection import Selection

logger = logging.getLogger(__name__)

MAGIC, OLD_MAGIC = "whisper-backup state 2", "whisper-backup state 1"
EMPTY, FILLED, MARKED = "empty", "filled", "marked"
MAX_HEADER = 200  # bytes
STRIDE = 50  # lines from one split key to the next
SAVE_INTERVAL = 600.0  # seconds
SETTLED = 2_000_000_000  # nanoseconds
LINES_IN_MEMORY = 50_000
LEFTOVER_AGE = 86400  # seconds
TAB = "\t"


class Record(NamedTuple):
    """What a run found out about a metric: its file's content had this `sha1`, and its backup `stamp` held the same.

    `mark_md5` is the MD5 of that backup's mark in the listing at that time; empty if the listing had none.
    """

    key: str  # name + "/"
    fingerprint: str
    sha1: str
    stamp: str
    mark_md5: str

    def is_of(self, newest: Backup) -> bool:
        """Whether the backup `newest` surely holds the content that this record is about.

        Either the listing proves it, or `newest` is the backup that was written or read then, and its entry in the
        listing is unchanged.  Where listings have no MD5 (disk, SSE-KMS), this saves a request for each metric.
        """
        if newest.mark_md5 == mark_md5(self.sha1):
            return True
        return (self.stamp, self.mark_md5) == (newest.stamp, newest.mark_md5 or "")

    def seen_in(self, newest: Backup) -> Record:
        """The same record, after the mark of `newest` was read and holds this SHA-1."""
        return self._replace(stamp=newest.stamp, mark_md5=newest.mark_md5 or "")


def fingerprint(status: os.stat_result) -> str:
    """A text that changes when a file is written to, replaced, or exchanged for another one.

    * inode: changes if another file took the name, even with equal times (`mv`, a renamed folder, `cp -p`);
    * size: costs nothing, and whisper files of another schema differ in it;
    * mtime: every write changes it;
    * ctime: setting mtime back (`touch -r`, `rsync -t`, `tar`) changes it, and it cannot be set.

    The device is left out, since its number may change with every boot.  A write through a shared mapping is missed
    until the kernel updates the file's times; no carbon writes like that.
    """
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def is_settled(status: os.stat_result, read_at: int) -> bool:
    """Whether any write after `read_at` (Unix time in nanoseconds) surely changes the fingerprint.

    File systems record the time of the kernel's last tick, some in whole seconds, so a write soon after another one
    may leave the same time.  A time ahead of the clock proves nothing either.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns) + SETTLED <= read_at


class State:
    """One run's reading of the old state file and writing of the new one."""

    def __init__(
        self, path: str | None, identity: Sequence[object], selection: Selection, is_readonly: bool = False
    ) -> None:
        """`path` may be None (nothing is read or written) or empty (the default path).

        `identity` distinguishes this prefix and this store from every other.
        """
        self._digest = hashlib.sha1(repr(identity).encode(), usedforsecurity=False).hexdigest()
        self.path = os.path.join(defaults.state_folder(), f"{self._digest}.state") if path == "" else path
        self.store = EMPTY
        """What is known about the store; a command sets it to what the next run needs to know."""
        self.is_foreign = False
        """The file is that of another prefix or store."""
        self._is_readonly = is_readonly
        self._selection = selection
        self._old = self._records()
        self._next = next(self._old, None)
        self._lines: list[bytes] = []
        self._runs: list[IO[bytes]] = []
        self._saved = time.monotonic()

    def recall(self, key: str) -> Record | None:
        """The record of the metric whose keys begin with `key`; to be called in ascending order of keys."""
        while self._next is not None and self._next.key < key:
            self._pass_on(self._next)
            self._next = next(self._old, None)
        if self._next is None or self._next.key != key:
            return None
        known, self._next = self._next, next(self._old, None)
        return known

    def split_keys(self) -> Iterator[str]:
        """Some keys of metrics that earlier runs saw, evenly spread; read from the file one by one."""
        lines = self._old_lines()
        next(lines, None)
        for line in itertools.islice(lines, STRIDE, None, STRIDE):
            key = line.partition(TAB.encode())[0].decode("utf-8", "replace")
            if key.endswith("/") and is_canonical(key[:-1]):  # a damaged file may hold anything
                yield key

    def count(self) -> int:
        """The number of selected metrics that earlier runs knew; 0 if it is unknown."""
        lines = self._old_lines()
        next(lines, None)
        return sum(_key_of(line)[:-1].decode("utf-8", "replace") in self._selection for line in lines)

    def note(self, record: Record) -> None:
        """Add a record to the new file, in any order."""
        if self.path is None or self._is_readonly:
            return
        self._lines.append((TAB.join(record) + "\n").encode())
        if len(self._lines) >= LINES_IN_MEMORY:
            try:
                self._runs.append(_spill(self._lines))
            except OSError as error:
                self._give_up(f"{error.strerror} in {tempfile.gettempdir()}")
            self._lines = []
        if time.monotonic() - self._saved >= SAVE_INTERVAL:
            self.save()

    def save(self) -> None:
        """Write the file in the middle of a run: the new records, and the old lines of all other metrics."""
        if self._lines or self._runs:
            old = self._old_lines()
            next(old, None)
            whole = (line for line in old if line.endswith(b"\n"))  # a damaged file may end anywhere
            self._write(_by_key(heapq.merge(self._noted(), whole, key=_key_of)))
        self._saved = time.monotonic()

    def write(self) -> None:
        """Write the new file.  A file that cannot be written is a warning: the next run then reads every file."""
        while self._next is not None:
            self._pass_on(self._next)
            self._next = next(self._old, None)
        self._write(self._noted())

    def forget(self) -> None:
        """Remove the file of a store that has become empty."""
        if self.path is not None and self.store != EMPTY and not self._is_readonly:
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _noted(self) -> Iterator[bytes]:
        self._lines.sort()
        return heapq.merge(*(_unspill(run) for run in self._runs), self._lines)

    def _write(self, lines: Iterator[bytes]) -> None:
        if self.path is None or self._is_readonly:
            return
        header = f"{TAB.join((MAGIC, self._digest, self.store))}\n".encode()
        try:
            _replace(self.path, itertools.chain([header], lines))
        except OSError as error:
            self._give_up(error.strerror)

    def _give_up(self, reason: str | None) -> None:
        logger.warning(
            "cannot write the state file %s: %s; name another with --statefile, or use --nostate "
            "(this run is unaffected, the next one reads every file)", self.path, reason,
        )  # fmt: skip
        self.path = None
        self._runs = []

    def _pass_on(self, record: Record) -> None:
        """Keep the record of a metric that this run did not select; a selected one that was not found is gone."""
        if record.key[:-1] not in self._selection:
            self.note(record)

    def _records(self) -> Iterator[Record]:
        """The old file's records, as far as it can be read; `store` is known when the first of them is."""
        lines = self._old_lines()
        store = next(lines, b"").decode()
        if store:
            self.store = store
        try:
            for line in lines:
                record = Record(*line.decode().rstrip("\n").split(TAB))
                if not store:
                    self.store = store = FILLED  # written by an older version
                yield record
        except (UnicodeDecodeError, TypeError) as error:
            logger.info("the state file %s cannot be used, so this run reads all files: %s", self.path, error)

    def _old_lines(self) -> Iterator[bytes]:
        """The old file's third header field (empty if it has none), then the lines after the header."""
        if self.path is None:
            return
        try:
            with os.fdopen(open_own(self.path), "rb") as file, compression.open_gzip(file, "rb") as lines:
                magic, digest, store = (*lines.readline(MAX_HEADER).rstrip(b"\n").split(TAB.encode()), b"", b"", b"")[
                    :3
                ]
                if magic not in (MAGIC.encode(), OLD_MAGIC.encode()) or digest != self._digest.encode():
                    self.is_foreign = True
                    logger.info("the state file %s is of another prefix or store, and is ignored", self.path)
                    return
                yield store if store in (EMPTY.encode(), FILLED.encode(), MARKED.encode()) else b""
                yield from lines
        except FileNotFoundError:
            return
        except compression.gzip_errors() as error:
            logger.info("the state file %s cannot be used, so this run reads all files: %s", self.path, error)


def _key_of(line: bytes) -> bytes:
    return line.partition(TAB.encode())[0]


def _by_key(lines: Iterator[bytes]) -> Iterator[bytes]:
    """The first of the lines of each key."""
    for _, same in itertools.groupby(lines, _key_of):
        yield next(same)


def _spill(lines: list[bytes]) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115  (lives until the state is written)
    _write_lines(file, sorted(lines))
    return file


def _unspill(file: IO[bytes]) -> Iterator[bytes]:
    file.seek(0)
    with compression.open_gzip(file, "rb") as lines:
        yield from lines


def _write_lines(file: IO[bytes], lines: Iterable[bytes]) -> None:
    with compression.open_gzip(file, "wb") as compressed, io.BufferedWriter(compressed, 1 << 16) as buffered:
        buffered.writelines(lines)


def _replace(path: str, lines: Iterable[bytes]) -> None:
    """Write `lines` beside `path`, under a random name, and rename."""
    if os.path.lexists(path) and not (os.path.isfile(path) or os.path.islink(path)):
        raise OSError(errno.EINVAL, "it is not a regular file")  # renaming would replace /dev/null
    folder, name = os.path.split(os.path.abspath(path))
    os.makedirs(folder, mode=0o755, exist_ok=True)
    _sweep(folder, f".{name}.")
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=folder)
    try:
        with os.fdopen(fd, "wb") as file:
            _write_lines(file, lines)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _sweep(folder: str, beginning: str) -> None:
    """Remove the temporary files of killed runs."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(beginning) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > LEFTOVER_AGE:
                        os.unlink(entry.path)
