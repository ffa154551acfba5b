"""The new points of a batch's files, read in a worker and packed into frames."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator

from whisperbackup.increments import fresh, part, record
from whisperbackup.increments.batch import LATENESS_STEP, Batch, Taken
from whisperbackup.increments.quick import Quick
from whisperbackup.increments.slots import encode
from whisperbackup.report.counters import Count
from whisperbackup.tree.birth import SECOND, Looker
from whisperbackup.whisper.format import CorruptFile, ShortFile
from whisperbackup.whisper.reader import may_be_new
from whisperbackup.whisper.throttle import Throttle

FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
HELD = 1024 * 1024  # bytes of slots
MAX_WHOLE_BYTES = 32 * 1024 * 1024  # of records: after so many no more files of a batch are taken whole


def take(batch: Batch, throttle: Throttle) -> Taken:
    """Read the files of a batch; one that cannot be read is a part of the result."""
    return _Reading(batch, throttle).taken


class _Reading:
    """One batch being read."""

    def __init__(self, batch: Batch, throttle: Throttle) -> None:
        self.limits, self.whole, self.throttle = batch.limits, batch.whole, throttle
        self.whole_bytes = 0
        self.taken = Taken(batch.number)
        self.look = Looker().look
        self.quick = Quick(self.limits.since, self.limits.lag)
        self.taken.counts[Count.EXAMINED] = len(batch.files)
        self.taken.frames = list(part.frames_of(self._records(batch.files)))
        counts = self.taken.counts
        counts[Count.RECORDS] = sum(frame.records for frame in self.taken.frames)
        counts[Count.POINTS] = sum(frame.points for frame in self.taken.frames)

    def _records(self, files: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, int, bytes]]:
        """The records, encoded; what was read waits until it is some HELD bytes, since many are decoded faster."""
        waiting: list[tuple[str, fresh.Raw]] = []
        held = 0
        for key, path in files:
            raw = self._try(key, path)
            if raw is not None:
                waiting.append((key, raw))
                held += len(raw.content)
                if held >= HELD:
                    yield from self._encoded(waiting)
                    waiting, held = [], 0
        yield from self._encoded(waiting)

    def _encoded(self, waiting: list[tuple[str, fresh.Raw]]) -> Iterator[tuple[str, int, bytes]]:
        taken, lateness, since_of = self.taken, self.taken.lateness, self.limits.since_of
        for (key, raw), (_, layout, content) in zip(waiting, encode(waiting), strict=True):
            if content is None:
                taken.failed.append((key[:-1], "its record would be too large to be read again"))
                taken.owed.append(key)
                continue
            self.whole_bytes += len(content) if raw.is_whole else 0
            written, since = raw.written, since_of(key)
            if written >= since and not raw.is_whole:
                lateness[_lateness(layout.end, written, since) // LATENESS_STEP] += 1
            yield key, layout.points, content

    def _try(self, key: str, path: bytes) -> fresh.Raw | None:
        """What was read of a file; None for one without a record, which is counted."""
        counts, failed, owed = self.taken.counts, self.taken.failed, self.taken.owed
        try:
            mode, size, written, changed, born = self.look(path)
            since = self.limits.since_of(key)
            if written < since * SECOND and changed < since * SECOND:
                counts[Count.NOT_WRITTEN] += 1
                return None
            if not stat.S_ISREG(mode):
                raise OSError("it is not a regular file")
            fd = os.open(path, FLAGS)
            try:
                is_whole = born is not None and born >= self.limits.new_from(key) * SECOND and self._may_be_whole(size)
                if self.throttle.is_nice:
                    with self.throttle.normal_priority():
                        return self._read(fd, since, size, written, is_whole)
                return self._read(fd, since, size, written, is_whole)
            except ShortFile:
                owed.append(key)  # when a restore has mended it, it has what it held
                if not may_be_new(fd):
                    raise
                counts[Count.TOO_NEW] += 1
            finally:
                os.close(fd)
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
        return None

    def _may_be_whole(self, size: int) -> bool:
        """Whether one more file that was born in the window may be taken whole."""
        if self.whole <= 0 or size > record.MAX_RECORD:
            self.taken.new_left += 1
            return False
        if self.whole_bytes >= MAX_WHOLE_BYTES:
            self.taken.large_left += 1
            return False
        self.whole -= 1
        return True

    def _read(self, fd: int, since: int, size: int, written: int, is_whole: bool) -> fresh.Raw:
        absent: list[int] = []
        if is_whole:
            raw = fresh.read_whole(fd)
            self.taken.counts[Count.WHOLE] += 1
        else:
            quick = self.quick.read(fd, size, written, absent) if since == self.quick.since else None
            if quick is not None:
                return quick
            raw = fresh.read_fresh(fd, since, int(time.time()) + self.limits.lag, absent=absent)
        if raw.is_torn:
            self.taken.counts[Count.TORN] += 1
        return raw


def _lateness(end: int, written: int, since: int) -> int:
    """How long after its time the newest point was written, in seconds; what has none in the window came later.

    `end` is where the newest point of the finest archive ends, 0 without.
    """
    return max(written - end, 0) if end else written - since
