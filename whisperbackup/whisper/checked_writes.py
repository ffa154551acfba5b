"""Writes into a live file that a daemon without locks may be writing to: a batch is compared just before it is made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from whisperbackup.whisper.format import POINT_SIZE, Archive
from whisperbackup.whisper.healing import Write

BATCH_WRITES, BATCH_BYTES = 32, 16384  # some 50 microseconds of writing


def write_checked(fd: int, live: bytes, writes: Sequence[Write], archives: Sequence[Archive]) -> bool:
    """Make `writes`, in healing's order, in a file that held `live` a moment ago; False if it changed since.

    An archive without a base gets one with its first batch.  A daemon that read the empty slot 0 just before may
    overwrite that, and then every other point written there is in a wrong slot.  So slot 0 is compared before each
    further batch and once at the end; where it changed, what was written to that archive is undone.
    """
    made = 0
    bases: dict[Archive, bytes] = {}  # what was written to slot 0 of archives that had no base
    is_unchanged = True
    for archive, batch in _batches(writes, archives):
        begin = min(offset for offset, _ in batch)
        end = max(offset + len(record) for offset, record in batch)
        is_unchanged = os.pread(fd, end - begin, begin) == live[begin:end]
        if archive in bases:
            is_unchanged = is_unchanged and _slot_0(fd, archive) == bases[archive]
        elif not any(live[archive.offset : archive.offset + 4]):
            bases[archive] = _slot_0_after(live, archive, batch)
        if not is_unchanged:
            break
        for offset, record in batch:
            write_at(fd, offset, record)
        made += len(batch)
    for archive, base in bases.items():
        if _slot_0(fd, archive) != base:
            is_unchanged = False
            _undo(fd, live, writes[:made], archive)
    return is_unchanged


def write_at(fd: int, offset: int, record: bytes) -> None:
    """Write all of `record`."""
    while record:
        written = os.pwrite(fd, record, offset)
        offset, record = offset + written, record[written:]


def _batches(writes: Sequence[Write], archives: Sequence[Archive]) -> Iterator[tuple[Archive, Sequence[Write]]]:
    """`writes` in batches, each of writes close together in one archive.

    A record that crosses pages is several writes, not in ascending order.  No batch ends within one, so that no batch
    is compared with what an earlier one wrote.
    """
    start = 0
    while start < len(writes):
        first = writes[start][0]
        archive = next(one for one in reversed(archives) if one.offset <= first)
        limit = min(first + BATCH_BYTES, archive.offset + archive.points * POINT_SIZE)
        end = min(start + BATCH_WRITES, len(writes))
        while end > start + 1 and not archive.offset <= writes[end - 1][0] < limit:
            end -= 1
        while end < len(writes) and not _begins_behind(writes[end][0], writes[end - 1][0], archive):
            end += 1
        yield archive, writes[start:end]
        start = end


def _begins_behind(offset: int, last: int, archive: Archive) -> bool:
    """Whether a write begins a record that no earlier write touched; the archive written next lies before this one."""
    return offset < archive.offset or (offset > last and (offset - archive.offset) % POINT_SIZE == 0)


def _slot_0(fd: int, archive: Archive) -> bytes:
    return os.pread(fd, POINT_SIZE, archive.offset)


def _slot_0_after(live: bytes, archive: Archive, batch: Sequence[Write]) -> bytes:
    """What slot 0 holds once the first batch of an archive is written."""
    slot = bytearray(live[archive.offset : archive.offset + POINT_SIZE])
    for offset, record in batch:
        at = offset - archive.offset
        if 0 <= at < POINT_SIZE:
            slot[at : at + len(record)] = record[: POINT_SIZE - at]
    return bytes(slot)


def _undo(fd: int, live: bytes, made: Sequence[Write], archive: Archive) -> None:
    """Restore the previous content of the slots of `archive`, except slot 0, that still hold what was written."""
    begin, end = archive.offset + POINT_SIZE, archive.offset + archive.points * POINT_SIZE
    written = bytearray(live[:end])
    for offset, record in made:
        if archive.offset <= offset < end:
            written[offset : offset + len(record)] = record
    now = os.pread(fd, end - begin, begin)
    for offset in range(begin, end, POINT_SIZE):
        slot = slice(offset, offset + POINT_SIZE)
        if live[slot] != written[slot] == now[offset - begin : offset - begin + POINT_SIZE]:
            write_at(fd, offset, live[slot])
