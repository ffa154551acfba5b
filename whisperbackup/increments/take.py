"""The new points of a batch's files, read in a worker and packed into frames."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator

from whisperbackup.increments import fresh, part, record
from whisperbackup.increments.batch import LATENESS_STEP, Batch, Taken
from whisperbackup.report.counters import Count
from whisperbackup.tree.birth import birth_time
from whisperbackup.whisper.format import ARCHIVE_INFO, METADATA, CorruptFile, ShortFile
from whisperbackup.whisper.reader import is_young
from whisperbackup.whisper.throttle import Throttle

FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def take(batch: Batch, throttle: Throttle) -> Taken:
    """Read the files of a batch; one that cannot be read is a part of the result."""
    return _Reading(batch, throttle).taken


class _Reading:
    """One batch being read."""

    def __init__(self, batch: Batch, throttle: Throttle) -> None:
        self.limits, self.whole, self.throttle = batch.limits, batch.whole, throttle
        self.taken = Taken(batch.number)
        self.taken.counts[Count.EXAMINED] = len(batch.files)
        self.taken.frames = list(part.frames_of(self._records(batch.files)))
        counts = self.taken.counts
        counts[Count.RECORDS] = sum(frame.records for frame in self.taken.frames)
        counts[Count.POINTS] = sum(frame.points for frame in self.taken.frames)

    def _records(self, files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, int, bytes]]:
        counts, failed, owed = self.taken.counts, self.taken.failed, self.taken.owed
        is_nice = self.throttle.is_nice
        for key, path in files:
            try:
                status = os.lstat(path)
                since = self.limits.since_of(key)
                if max(status.st_mtime_ns, status.st_ctime_ns) < since * 1_000_000_000:
                    counts[Count.NOT_WRITTEN] += 1
                    continue
                if not stat.S_ISREG(status.st_mode):
                    raise OSError("it is not a regular file")
                fd = os.open(path, FLAGS)
                try:
                    if is_nice:
                        with self.throttle.normal_priority():
                            found = self._read(fd, key, path, since, status)
                    else:
                        found = self._read(fd, key, path, since, status)
                except ShortFile:
                    if not is_young(fd):
                        raise
                    counts[Count.TOO_NEW] += 1
                    owed.append(key)
                    continue
                finally:
                    os.close(fd)
                yield key, found.points, record.encode(found)
            except FileNotFoundError:
                counts[Count.VANISHED] += 1
                owed.append(key)
            except fresh.Compressed:
                counts[Count.COMPRESSED] += 1
            except CorruptFile as error:
                failed.append((key[:-1], f"not a whisper file: {error}"))
            except OSError as error:
                failed.append((key[:-1], error.strerror or str(error)))
                owed.append(key)
            except ValueError as error:  # more points than a record may have
                failed.append((key[:-1], str(error)))
                owed.append(key)

    def _read(self, fd: int, key: str, path: bytes, since: int, status: os.stat_result) -> record.Record:
        limits = self.limits
        is_whole = False
        if status.st_ctime >= since + limits.lag:  # no file is older than its last change
            born = birth_time(path)
            if born is not None and born >= since + limits.lag:
                is_whole = self.whole > 0 and status.st_size <= record.MAX_RECORD
                self.whole -= is_whole
                self.taken.new_left += not is_whole
        if is_whole:
            found = fresh.read_whole(fd)
            self.taken.counts[Count.WHOLE] += 1
        else:
            found = fresh.read_fresh(fd, since, int(time.time()) + limits.lag)
        if found.is_torn:
            self.taken.counts[Count.TORN] += 1
        written = found.status.st_mtime
        if written >= since and not is_whole:
            self.taken.lateness[_lateness(found, written, since) // LATENESS_STEP] += 1
        return fresh.record_of(key, found, is_whole)


def _lateness(found: fresh.Fresh, written: float, since: int) -> int:
    """How long after its time the newest point was written, in seconds; what has none in the window came later."""
    runs = found.rings[0].runs
    if not runs:
        return int(written) - since
    step = ARCHIVE_INFO.unpack_from(found.header, METADATA.size)[1]
    first, count = runs[0] if len(runs) == 1 else max(runs)  # runs of one archive do not overlap
    late = int(written) - (first + count * step)
    return late if late > 0 else 0
