"""What is new in one live whisper file: its header, slot 0's stamps, and the slots of a window, read and no more.

A window begins at `since` and ends at `until` (seconds, included).  Of each archive it has the slots [t, t + step) with
t + step > since and t <= until.  What is read of a file, for an archive of which the window has less than a lap:

    header  slot 0 | stamp of slot 0 ... fresh slots ... | stamp of slot 0 ... fresh slots ... |
    archive 0      ^                                     ^ archive 1

A point counts if its slot is in place (it is where whisper looks for this t, on whatever lap) and t is in the window.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from mmap import PAGESIZE as PAGE
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whisperbackup.increments.record import END_OF_TIME, VALUE_SIZE, Record, Ring, Run, assemble, pack_runs
from whisperbackup.whisper.cwhisper import is_compressed
from whisperbackup.whisper.format import (
    ARCHIVE_INFO,
    METADATA,
    POINT_SIZE,
    Archive,
    CorruptFile,
    ShortFile,
    header_size,
    parse_header,
)
from whisperbackup.whisper.reader import READINGS, TICK, acquire

SLOT = np.dtype([("t", ">u4"), ("v", ">f8")])
STAMP = 4  # bytes
BEGINNING = METADATA.size + 3 * ARCHIVE_INFO.size + STAMP  # the header of three archives, slot 0's stamp behind it
NOWAIT = getattr(os, "RWF_NOWAIT", 0)
WARMINGS = 3
MAX_LAYOUTS = 256  # of one plan

Into = Callable[[memoryview, int], None]
"""Fill a buffer from the file's bytes at an offset.  Raises ShortFile where the file ends before."""


class Compressed(Exception):
    """A file in go-carbon's compressed format: it has no slots."""


class Fresh(NamedTuple):
    """What was read: the header's bytes, one `Ring` an archive, the file's status after, when the reading began (ns).

    `is_torn`: the file still changed while it was read the last time, so that a value may be half of another.
    """

    header: bytes
    rings: tuple[Ring, ...]
    status: os.stat_result
    began: int
    is_torn: bool


class Stretch(NamedTuple):
    """The window's share of one archive: `slots` slots from time `first` on, which are `begin` to `end` of the buffer.

    `slots` is the archive's `points` where the window has a lap or more; then they begin with slot 0.
    """

    archive: Archive
    first: int
    slots: int
    last: int
    begin: int
    end: int

    @property
    def is_lap(self) -> bool:
        """Whether all slots are read."""
        return self.slots == self.archive.points


class Plan(NamedTuple):
    """What to read of every file with this header, `size` bytes in all.

    Stretches of less than a lap come first in the buffer; `expected` are the stamps that their slots have if they are
    fresh, big endian as they are stored.  `layouts` are those found so far, by which of these slots were fresh.
    """

    file_size: int
    stretches: tuple[Stretch, ...]
    size: int
    expected: NDArray[Any]
    layouts: dict[bytes, Layout]


class Layout(NamedTuple):
    """Which slots are fresh: the runs of each archive, and in which slots of the buffer each run lies.

    `packed` are the runs as a record has them; `end` is where the newest point of the finest archive ends, 0 without.
    """

    runs: tuple[tuple[Run, ...], ...]
    places: tuple[tuple[int, int], ...]
    packed: bytes
    points: int
    end: int


class Raw(NamedTuple):
    """What was read of one file, as it is stored: slot 0's stamps, and the slots of all stretches as `plan` says."""

    header: bytes
    plan: Plan
    bases: list[int]
    content: bytearray
    is_whole: bool
    status: os.stat_result
    began: int
    is_torn: bool

    @property
    def version(self) -> int:
        """A file whose times lie in the future has the version of its reading: what was read then was there then."""
        status = self.status
        return min(max(status.st_mtime_ns, status.st_ctime_ns), self.began) // 1_000_000_000

    @property
    def told_bases(self) -> list[int]:
        """Slot 0's stamp of each archive if it lies in the window or the file is whole, else 0."""
        if self.is_whole:
            return self.bases
        stretches = self.plan.stretches
        return [
            base if each.first <= base <= each.last else 0 for each, base in zip(stretches, self.bases, strict=True)
        ]


class Share(NamedTuple):
    """What is fresh of one file: the values of each run, little endian."""

    raw: Raw
    layout: Layout
    values: list[bytes]

    def encode(self, key: str) -> bytes:
        """The record of it.  Raises ValueError for one that is too large to be read again."""
        raw, layout = self.raw, self.layout
        numbers: list[int] = []
        for base, runs in zip(raw.told_bases, layout.runs, strict=True):
            numbers += (base, len(runs))
        read = raw.began // 1_000_000_000
        return assemble(key, raw.header, raw.version, read, raw.is_whole, numbers, layout.packed, self.values)


@functools.lru_cache(512)
def plan_of(header: bytes, since: int, until: int) -> Plan:
    """How to read the window [since, until] of a file with this header.  Raises CorruptFile."""
    parsed = parse_header(header)
    windows = []
    for archive in parsed.archives:
        first = max(since // archive.step * archive.step, archive.step)
        last = min(until, END_OF_TIME - 1) // archive.step * archive.step
        count = min(max((last - first) // archive.step + 1, 0), archive.points)
        windows.append((archive, first, count, last))
    size = 0
    begins: dict[Archive, int] = {}
    for archive, _, count, _ in sorted(windows, key=lambda window: window[2] == window[0].points):
        begins[archive] = size
        size += count * POINT_SIZE
    stretches = tuple(
        Stretch(archive, first, count, last, begins[archive], begins[archive] + count * POINT_SIZE)
        for archive, first, count, last in windows
    )
    stamps = [
        stretch.first + stretch.archive.step * np.arange(stretch.slots, dtype=np.int64)
        for stretch in stretches
        if not stretch.is_lap
    ]
    expected = np.concatenate([*stamps, np.empty(0, np.int64)]).astype(">u4").view("=u4")
    expected.setflags(write=False)
    return Plan(parsed.file_size, stretches, size, expected, {})


def read_fresh(fd: int, since: int, until: int) -> Fresh:
    """The window [since, until] of the whisper file that is open as `fd`, as `read_raw` reads it."""
    return _fresh(read_raw(fd, since, until))


def read_whole(fd: int) -> Fresh:
    """As `read_fresh`, but every point of the file, and slot 0's stamps whatever they are."""
    return _fresh(read_whole_raw(fd))


def _fresh(raw: Raw) -> Fresh:
    (share,) = decode([raw])
    values = iter(share.values)
    rings = [
        Ring(base, runs, b"".join(itertools.islice(values, len(runs))))
        for base, runs in zip(raw.told_bases, share.layout.runs, strict=True)
    ]
    return Fresh(raw.header, tuple(rings), raw.status, raw.began, raw.is_torn)


def record_of(key: str, fresh: Fresh, is_whole: bool) -> Record:
    """The record of what was read.

    A file whose times lie in the future has the version of its reading: what was read then was there then.
    """
    status = fresh.status
    version = min(max(status.st_mtime_ns, status.st_ctime_ns), fresh.began) // 1_000_000_000
    return Record(key, fresh.header, version, fresh.began // 1_000_000_000, is_whole, fresh.rings)


def read_raw(fd: int, since: int, until: int, before: os.stat_result | None = None, is_whole: bool = False) -> Raw:
    """The window [since, until] of the whisper file that is open as `fd`, read under carbon's shared lock.

    No more is read than the module's docstring shows; carbon waits for no disk meanwhile; the pages that were not in
    the page cache are given back.  What may be torn is read again, READINGS times at most.  `before`: the file's status
    at a moment before, which saves a system call.
    Raises CorruptFile (ShortFile: it may be in the making), Compressed, Locked, OSError.
    """
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # or the kernel reads 32 pages for one
    absent: list[int] = []
    try:
        for number in range(1, READINGS + 1):
            raw = _read_once(fd, since, until, is_whole, absent, before)
            if not raw.is_torn or number == READINGS:
                break
            before = None
            time.sleep(TICK / 1e9)
        return raw
    finally:
        if absent:
            _give_back(fd, absent)


def read_whole_raw(fd: int) -> Raw:
    """As `read_raw`, but every point of the file."""
    return read_raw(fd, 0, END_OF_TIME - 1, is_whole=True)


def _give_back(fd: int, pages: list[int]) -> None:
    for page in pages:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, page, PAGE, os.POSIX_FADV_DONTNEED)


def _read_once(
    fd: int, since: int, until: int, is_whole: bool, absent: list[int], before: os.stat_result | None
) -> Raw:
    """One reading, of what the page cache holds: what it does not hold is brought there before the lock is taken."""
    for _ in range(WARMINGS if NOWAIT else 0):
        try:
            return _read_locked(fd, since, until, is_whole, functools.partial(_from_cache, fd, absent), before)
        except BlockingIOError:
            _gather(since, until, functools.partial(_from_disk, fd, absent))
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            break
    return _read_locked(fd, since, until, is_whole, functools.partial(_plainly, fd), before)


def _read_locked(fd: int, since: int, until: int, is_whole: bool, into: Into, before: os.stat_result | None) -> Raw:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        acquire(fd, fcntl.LOCK_SH)
    try:
        began = time.time_ns()
        before = before or os.fstat(fd)
        header, plan, bases, content = _gather(since, until, into)
        after = os.fstat(fd)
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
    if after.st_size != plan.file_size:
        kind = ShortFile if after.st_size < plan.file_size else CorruptFile
        raise kind(f"{after.st_size} bytes, its header says {plan.file_size}")
    written = after.st_mtime_ns
    # A write in the same tick as the one before it leaves no trace in the file's times.
    is_torn = before.st_mtime_ns != written or before.st_size != after.st_size or abs(began - written) < TICK
    return Raw(header, plan, bases, content, is_whole, after, began, is_torn)


def _gather(since: int, until: int, into: Into) -> tuple[bytes, Plan, list[int], bytearray]:
    """The header, its plan, slot 0's stamps, and the slots of all stretches."""
    buffer = bytearray(BEGINNING)
    into(memoryview(buffer), 0)
    if is_compressed(buffer):
        raise Compressed("a compressed file; backup stores it")
    size = header_size(buffer)
    if size > BEGINNING - STAMP:
        buffer = bytearray(size + STAMP)
        into(memoryview(buffer), 0)
    header = bytes(buffer[:size])
    plan = plan_of(header, since, until)
    content = bytearray(plan.size)
    view = memoryview(content)
    bases = []
    stamp = bytearray(buffer[size : size + STAMP])
    for archive, first, count, _, begin, end in plan.stretches:
        offset, step, points = archive
        if count == points:
            into(view[begin:end], offset)
            bases.append(int.from_bytes(content[begin : begin + STAMP], "big"))
            continue
        if bases:
            into(memoryview(stamp), offset)
        base = int.from_bytes(stamp, "big")
        bases.append(base)
        if not base or not count:
            continue  # whisper finds nothing in an archive without a base
        slot = (first - base) // step % points
        before_wrap = (points - slot) * POINT_SIZE
        if end - begin <= before_wrap:
            into(view[begin:end], offset + slot * POINT_SIZE)
        else:
            into(view[begin : begin + before_wrap], offset + slot * POINT_SIZE)
            into(view[begin + before_wrap : end], offset)
    return header, plan, bases, content


def _from_cache(fd: int, absent: list[int], buffer: memoryview, offset: int) -> None:
    """Raises BlockingIOError where the page cache lacks some of it, with the page noted.

    A page at a time: the kernel begins to read all that is asked for, and later these pages are there by our doing.
    """
    size = len(buffer)
    if offset % PAGE + size <= PAGE:
        try:
            if os.preadv(fd, (buffer,), offset, NOWAIT) == size:
                return
        except BlockingIOError:
            absent.append(offset - offset % PAGE)
            raise
    done = 0
    while done < size:
        at = offset + done
        page = at // PAGE * PAGE
        try:
            length = os.preadv(fd, (buffer[done : done + page + PAGE - at],), at, NOWAIT)
        except BlockingIOError:
            absent.append(page)
            raise
        if not length:
            _end(at)
        done += length


def _from_disk(fd: int, absent: list[int], buffer: memoryview, offset: int) -> None:
    """Have the page cache hold it, each page that it lacked noted."""
    done = 0
    while done < len(buffer):
        size = min(PAGE - (offset + done) % PAGE, len(buffer) - done)
        piece = buffer[done : done + size]
        try:
            _from_cache(fd, absent, piece, offset + done)
        except BlockingIOError:
            _plainly(fd, piece, offset + done)
        done += size


def _plainly(fd: int, buffer: memoryview, offset: int) -> None:
    length = os.preadv(fd, (buffer,), offset)
    if length < len(buffer):
        _plainly(fd, buffer[length:], offset + length) if length else _end(offset)


def _end(offset: int) -> None:
    raise ShortFile(f"it ends at byte {offset}, its header says more")


# From slots to runs


def decode(raws: Sequence[Raw]) -> list[Share]:
    """What is fresh of each file; files with the same plan are decoded together."""
    together: dict[int, list[int]] = {}
    for number, raw in enumerate(raws):
        together.setdefault(id(raw.plan), []).append(number)
    shares: list[Share | None] = [None] * len(raws)
    for numbers in together.values():
        for number, share in zip(numbers, _decode_alike([raws[number] for number in numbers]), strict=True):
            shares[number] = share
    return [share for share in shares if share is not None]


def _decode_alike(raws: list[Raw]) -> Iterator[Share]:
    """`decode` for files with the same plan."""
    plan = raws[0].plan
    content = b"".join([raw.content for raw in raws])
    width = plan.size // POINT_SIZE
    slots = np.frombuffer(content, SLOT)
    stored = slots["v"].astype("<f8").tobytes()  # swaps bytes, and so keeps every bit
    expected = plan.expected
    stamps = np.frombuffer(content, "=u4").reshape(len(raws), 3 * width)[:, : 3 * len(expected) : 3]
    fresh = (stamps == expected).tobytes()
    has_laps = len(expected) < width
    for number, raw in enumerate(raws):
        mask = fresh[number * len(expected) : (number + 1) * len(expected)]
        row = number * width
        layout = None if has_laps else plan.layouts.get(mask)
        if layout is None:
            layout = _layout(plan, mask, raw.bases, slots["t"][row : row + width])
            if not has_laps:
                if len(plan.layouts) >= MAX_LAYOUTS:
                    plan.layouts.clear()
                plan.layouts[mask] = layout
        values = [stored[(row + begin) * VALUE_SIZE : (row + end) * VALUE_SIZE] for begin, end in layout.places]
        yield Share(raw, layout, values)


def _layout(plan: Plan, mask: bytes, bases: list[int], stamps: NDArray[Any]) -> Layout:
    """The layout of a buffer: `mask` tells which slots are fresh in the stretches of less than a lap."""
    all_runs = []
    places = []
    for stretch, base in zip(plan.stretches, bases, strict=True):
        at, until = stretch.begin // POINT_SIZE, stretch.end // POINT_SIZE
        step = stretch.archive.step
        runs: list[Run] = []
        if stretch.is_lap:
            runs, inside = _lap_runs(stretch, base, stamps[at:until].astype(np.int64))
            places += [(at + begin, at + end) for begin, end in inside]
        else:
            here = mask.find(1, at, until)
            while here >= 0:
                after = mask.find(0, here, until)
                after = until if after < 0 else after
                runs.append((stretch.first + (here - at) * step, after - here))
                places.append((here, after))
                here = mask.find(1, after, until)
        all_runs.append(tuple(runs))
    step = plan.stretches[0].archive.step
    end = max((first + count * step for first, count in all_runs[0]), default=0)
    points = sum(end - begin for begin, end in places)
    return Layout(tuple(all_runs), tuple(places), pack_runs(all_runs), points, end)


def _lap_runs(stretch: Stretch, base: int, stamps: NDArray[np.int64]) -> tuple[list[Run], list[tuple[int, int]]]:
    """The runs among all slots of an archive, each with the slots that it lies in."""
    archive, first, count, last, _, _ = stretch
    if not base:
        return [], []
    step = archive.step
    in_place = ((stamps - base) // step % archive.points == np.arange(count)) & (stamps % step == 0)
    here = np.flatnonzero(in_place & (stamps >= first) & (stamps <= last))
    if not here.size:
        return [], []
    times = stamps[here]
    cuts = np.flatnonzero((np.diff(here) != 1) | (np.diff(times) != step)) + 1
    begins = [0, *cuts.tolist()]
    ends = [*cuts.tolist(), len(here)]
    runs = [(int(times[begin]), end - begin) for begin, end in zip(begins, ends, strict=True)]
    places = [(int(here[begin]), int(here[end - 1]) + 1) for begin, end in zip(begins, ends, strict=True)]
    return runs, places
