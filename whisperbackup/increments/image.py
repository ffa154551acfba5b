"""The image of a metric: its backup with the records of increments laid over it.

Records are laid in the order of the increments.  Of an archive's points:

1. What comes later wins its slot.  Only a record of all points does not win it from a later stamp (unless that lies
   after its reading): a file that was made anew from older content does not push out newer points.  Of a window's
   points it is known that the file held no others; a later stamp was ahead, as a sender's clock was, and carbon wrote
   over it.
2. Slot 0's stamp says where every other slot is.  Only an empty archive takes it from the record; where the record does
   not tell it, the first run's first time is slot 0.
3. The image has the latest record's header (aggregation, xFilesFactor).
4. A record of all points is laid as any other: what was there before a disk died is still the metric's.
5. A record whose file has other archives begins an image of its own; in the end the others are healed into the image of
   the latest record, the latest of them first (docs/design.md, "Healing").  If that has no room for some of their
   points, and one of the other layouts has room for all, everything is healed into that one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from whisperbackup.increments.manifest import Manifest, Run
from whisperbackup.increments.record import CorruptIncrement, Record, Ring, parse
from whisperbackup.repository.stamps import seconds as seconds
from whisperbackup.whisper.cwhisper import is_compressed
from whisperbackup.whisper.format import Archive, check, parse_header
from whisperbackup.whisper.healing import heal

SLOT = np.dtype([("t", ">u4"), ("v", ">f8")])
Layout = tuple[Archive, ...]
DAY = 86400


class Image(NamedTuple):
    """A metric as it was last read.

    `is_based`: there was a backup, or a record of all the file's points; without either, only what was written since a
    window began is in it, and whoever restores it must be told.  `read`: when the latest record was read, None if none
    was laid.  `others`: images of the metric's other layouts.  What of them fitted at `read` is in `content`, but not
    the rest, nor what was ahead of the clock then; and `content` may keep points for a shorter time than they do.  So
    restore fills from them, too.
    """

    content: bytes
    is_based: bool
    read: int | None
    records: int
    others: tuple[bytes, ...] = ()


def confirmed_by(stamp: str, key: str, runs: Iterable[Run]) -> Run | None:
    """The latest run that can have made this backup of the metric, or found it to be what the file holds.

    `runs` are those of the node and prefix.  A stamp can be some runs' if the clock was set back: a backup is never
    stamped earlier than the one before.
    """
    moment = seconds(stamp)
    possible = [run for run in runs if run.begin <= moment <= max(run.end, run.last_stamp) and not run.doubts(key)]
    return max(possible, key=lambda run: run.stamp, default=None)


def applies(record: Record, increment: Manifest, stamp: str, by: Run | None) -> bool:
    """Whether a record is later than the backup stamped `stamp`, which is confirmed by the run `by`.

    What was complete in the store when the other began is earlier, whatever the clocks were.  Only of a backup run and
    an increment at the same time, or where a run left no record, it is told by the clock: a backup's stamp is the
    moment of its reading, unless it had to be later than an older one.
    """
    moment = seconds(stamp)
    if by is not None and increment.stamp <= by.after_increment:
        return False
    if by is not None and by.stamp <= increment.after_run:
        return True
    if by is not None and moment > by.end:
        moment = by.begin
    return record.version >= moment


def lay(backup: bytes | None, records: Iterable[Record], max_size: int) -> Image | None:
    """The image of a metric: `backup` (a whole whisper file, None: there is none) with `records` laid over it.

    None if there is neither.  Raises CorruptFile for a broken backup, CorruptIncrement for a record that declares a
    file of more than `max_size` bytes.  A compressed backup is the image whatever records
    there are: it cannot take them, and whoever restores it must say so.
    """
    images: dict[Layout, bytearray] = {}
    is_based = backup is not None
    if backup is not None:
        if is_compressed(backup):
            return Image(backup, True, None, 0)
        check(backup)
        images[parse_header(backup).archives] = bytearray(backup)
    count = 0
    read = None
    for (header, is_whole), same in itertools.groupby(
        records, lambda each: (parse(each.header, each.key), each.is_whole)
    ):
        group = list(same)
        if header.file_size > max_size:
            raise CorruptIncrement(f"'{group[0].key}': a file of {header.file_size} bytes, more than {max_size}")
        # The latest is the last of the dict.
        image = images.pop(header.archives, None)
        if image is None:
            image = bytearray(header.file_size)
        images[header.archives] = image
        image[: len(group[0].header)] = group[0].header
        for number, archive in enumerate(header.archives):
            if is_whole:
                for each in group:
                    lay_rings(image, archive, [each.rings[number]], each.read)
            else:
                lay_rings(image, archive, [each.rings[number] for each in group])
        is_based = is_based or is_whole
        count += len(group)
        read = group[-1].read
    if not images:
        return None
    *others, latest = images.values()
    if not others:
        return Image(bytes(latest), is_based, read, count)
    others.reverse()
    assert read is not None
    made = bytearray(latest)
    crowded = [other for other in others if not heal_in(made, other, read)]
    if crowded and (roomy := _in_earlier_layout(latest, others, read)) is not None:
        return Image(roomy, is_based, read, count, tuple(map(bytes, (latest, *others))))
    return Image(bytes(made), is_based, read, count, tuple(map(bytes, others)))


def heal_in(image: bytearray, other: bytearray, now: int) -> bool:
    """Heal the points of `other` into `image`; False if it has no room for some of them, or no free slot."""
    healing = heal(bytes(image), bytes(other), now)
    for offset, content in healing.writes:
        image[offset : offset + len(content)] = content
    return not (healing.unheld or healing.blocked or healing.ahead)


def _in_earlier_layout(latest: bytearray, others: list[bytearray], read: int) -> bytes | None:
    """Everything in the first of the earlier layouts that has room for it; None if none has."""
    header = parse_header(bytes(latest))
    newest = max(int(np.frombuffer(latest, SLOT, points, offset)["t"].max()) for offset, _, points in header.archives)
    now = max(read, newest)  # a sender may be ahead of the clock
    if now > read + DAY:
        return None
    for other in others:
        end = parse_header(bytes(other)).archives[0].offset
        # An empty file: where two images have the same time, the later one's value comes first.
        made = bytearray(other[:end]).ljust(len(other), b"\0")
        made[:4], made[8:12] = latest[:4], latest[8:12]  # aggregation, xFilesFactor
        if all(heal_in(made, image, now) for image in (latest, *others)):
            return bytes(made)
    return None


def lay_rings(image: bytearray, archive: Archive, rings: list[Ring], kept: int = 0) -> None:
    """Lay what records have of one archive over the image, in their order, rules 1 and 2.

    A stamp no later than `kept` stays against an earlier one.
    """
    offset, step, points = archive
    slots = np.frombuffer(image, SLOT, points, offset)
    runs = [run for ring in rings for run in ring.runs]
    base = int(slots["t"][0])
    is_empty = not base
    if is_empty:
        base = next(filter(None, (ring.base or (ring.runs[0][0] if ring.runs else 0) for ring in rings)), 0)
    if runs:
        firsts, counts = np.array(runs).T
        ends = counts.cumsum()
        times = np.arange(ends[-1]) * step + np.repeat(firsts - (ends - counts) * step, counts)
        values = np.frombuffer(b"".join([ring.values for ring in rings]), "<f8")
        places = (times - base) // step % points
        if kept:
            there = slots["t"][places]
            wins = (there <= times) | (there > kept)
            times, values, places = times[wins], values[wins], places[wins]
        slots["t"][places], slots["v"][places] = times, values  # where one comes twice, the last stays
    if is_empty and base and not slots["t"][0]:
        slots[0] = (base, 0.0)
