"""The state file: which files have not been touched since their newest backup was known to hold their content.

Only ever a shortcut, that spares reading them: lost, stale or corrupt, a run is slower and its result the same.

    file   = gzip(header line, one line a metric, ascending by key)
    header = "whisper-backup state 2" TAB identity TAB store               identity: of prefix and store, as a SHA-1
    store  = "empty" | "filled" | "marked"                                 whether backups were in it, and its marker
    line   = key TAB fingerprint TAB sha1 TAB stamp TAB mark_md5           all text; no key holds a tab

"whisper-backup state 1" is the same without the third field.  A tree's walk and the lines have one order, so the
file is read as a third sorted stream beside tree and store.  It is written anew, and put in place whole, every few
minutes and at the end of a run, however that comes.
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
    """What was known of a metric: its file's content had this `sha1`, and its backup `stamp` held the same.

    `mark_md5` is what the listing said of that backup's mark then; empty if nothing.
    """

    key: str  # name + "/"
    fingerprint: str
    sha1: str
    stamp: str
    mark_md5: str

    def is_of(self, newest: Backup) -> bool:
        """Whether the backup `newest` surely holds the content that this record is about.

        Either the listing proves it, or it is the backup that was written or read then, and is listed as it
        was: where listings carry no MD5 (disk, SSE-KMS) that spares a request a metric.
        """
        if newest.mark_md5 == mark_md5(self.sha1):
            return True
        return (self.stamp, self.mark_md5) == (newest.stamp, newest.mark_md5 or "")

    def seen_in(self, newest: Backup) -> Record:
        """The same, now that the mark of `newest` was asked."""
        return self._replace(stamp=newest.stamp, mark_md5=newest.mark_md5 or "")


def fingerprint(status: os.stat_result) -> str:
    """What cannot stay the same when a file is written to, replaced, or swapped for another.

    * inode: another file that took the name, with times to match (`mv`, a renamed folder, `cp -p`);
    * size: costs nothing, and whisper files of another schema differ in it;
    * mtime: every write moves it;
    * ctime: whoever sets mtime back (`touch -r`, `rsync -t`, `tar`) moves it, and cannot set it.

    Not the device: its number may change with every boot.  Not seen: writes through a shared mapping that the
    kernel has not yet told the inode of; no carbon writes like that.
    """
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def is_settled(status: os.stat_result, read_at: int) -> bool:
    """Whether a write after `read_at` (Unix time in nanoseconds) must show in the fingerprint.

    File systems stamp with the clock of their last tick, some with whole seconds: a write soon after another
    may leave the same time.  Nor does a time ahead of the clock tell anything.
    """
    return max(status.st_mtime_ns, status.st_ctime_ns) + SETTLED <= read_at


class State:
    """One run's reading of the old state file and writing of the new one."""

    def __init__(
        self, path: str | None, identity: Sequence[object], selection: Selection, is_readonly: bool = False
    ) -> None:
        """`path` may be None: nothing is recalled, nothing written; empty: the default one.

        `identity` is what tells this prefix and this store from every other.
        """
        self._digest = hashlib.sha1(repr(identity).encode(), usedforsecurity=False).hexdigest()
        self.path = os.path.join(defaults.state_folder(), f"{self._digest}.state") if path == "" else path
        self.store = EMPTY
        """What is known of the store; a command sets it to what the next run is to know."""
        self._is_readonly = is_readonly
        self._selection = selection
        self._old = self._records()
        self._next = next(self._old, None)
        self._lines: list[bytes] = []
        self._runs: list[IO[bytes]] = []
        self._saved = time.monotonic()

    def recall(self, key: str) -> Record | None:
        """What is known of the metric whose keys begin with `key`; must be asked in ascending order."""
        while self._next is not None and self._next.key < key:
            self._pass_on(self._next)
            self._next = next(self._old, None)
        if self._next is None or self._next.key != key:
            return None
        known, self._next = self._next, next(self._old, None)
        return known

    def split_keys(self) -> Iterator[str]:
        """Some keys of metrics that earlier runs knew, evenly spread; read from the file as they are asked for."""
        lines = self._old_lines()
        next(lines, None)
        for line in itertools.islice(lines, STRIDE, None, STRIDE):
            key = line.partition(TAB.encode())[0].decode("utf-8", "replace")
            if key.endswith("/") and is_canonical(key[:-1]):  # a damaged file may hold anything
                yield key

    def note(self, record: Record) -> None:
        """Put a record into the new file; any order."""
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
        """Put in place what is known in the middle of a run: what was noted, and of all other metrics the old lines."""
        if self._lines or self._runs:
            old = self._old_lines()
            next(old, None)
            whole = (line for line in old if line.endswith(b"\n"))  # a damaged file may end anywhere
            self._write(_by_key(heapq.merge(self._noted(), whole, key=_key_of)))
        self._saved = time.monotonic()

    def write(self) -> None:
        """Put the new file in place.  That it cannot be written is a warning: the next run reads every file."""
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
        """Keep what this run did not look for; a metric that it did look for and did not find is gone."""
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
            logger.info("the state file %s cannot be used, files are read instead: %s", self.path, error)

    def _old_lines(self) -> Iterator[bytes]:
        """What the old file's header knows of the store (empty: it does not tell), then the lines that follow it."""
        if self.path is None:
            return
        try:
            with os.fdopen(open_own(self.path), "rb") as file, compression.open_gzip(file, "rb") as lines:
                magic, digest, store = (*lines.readline(MAX_HEADER).rstrip(b"\n").split(TAB.encode()), b"", b"", b"")[
                    :3
                ]
                if magic not in (MAGIC.encode(), OLD_MAGIC.encode()) or digest != self._digest.encode():
                    logger.info("the state file %s is of another prefix or store, and is ignored", self.path)
                    return
                yield store if store in (EMPTY.encode(), FILLED.encode(), MARKED.encode()) else b""
                yield from lines
        except FileNotFoundError:
            return
        except compression.gzip_errors() as error:
            logger.info("the state file %s cannot be used, files are read instead: %s", self.path, error)


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
    """Write `lines` beside `path`, under a name that nobody can foretell, and rename."""
    if os.path.lexists(path) and not (os.path.isfile(path) or os.path.islink(path)):
        raise OSError(errno.EINVAL, "it is not a regular file")  # renaming would do away with /dev/null
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
    """Remove what killed runs left of their writing."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(beginning) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    if time.time() - entry.stat().st_mtime > LEFTOVER_AGE:
                        os.unlink(entry.path)
