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
5. A record that may be earlier than the backup only fills in what the backup has not.
6. A record whose file has other archives begins an image of its own; in the end the others are healed into the image of
   the latest record, the latest of them first (docs/design.md, "Healing").  If that has no room for some of their
   points, and one of the other layouts has room for all, everything is healed into that one.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from whisperbackup.increments.manifest import Manifest, Run
from whisperbackup.increments.record import CorruptIncrement, Record, Ring, parse
from whisperbackup.repository.stamps import seconds as seconds
from whisperbackup.whisper.cwhisper import is_compressed
from whisperbackup.whisper.format import Archive, Header, check, parse_header
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


class Order(enum.Enum):
    """Whether a record is earlier or later than a backup."""

    EARLIER = "the backup has it"
    UNKNOWN = "it may be earlier"
    LATER = "it goes over the backup"


def makers(stamp: str, key: str, runs: Iterable[Run]) -> list[Run]:
    """The runs that may have made this backup of the metric, or found it to be what the file holds.

    `runs` are those of the node and prefix.  It is more than one where the clock was set: a backup is never stamped
    earlier than the one before, so a run under a fast clock leaves its stamps to those after it.  A run that did not
    end has not told which stamps it gave.
    """
    moment = seconds(stamp)
    return [
        run
        for run in runs
        if run.begin <= moment
        and (moment <= max(run.end, run.last_stamp) or not run.is_complete)
        and run.selects(key)
        and not run.doubts(key)
    ]


def order(record: Record, increment: Manifest, stamp: str, possible: Collection[Run]) -> Order:
    """How a record is to the backup stamped `stamp`, which one of the `possible` runs made, or one without record.

    What was complete in the store when the other began is earlier, whatever the clocks were.  Only of a backup run and
    an increment at the same time, or where a run left no record, it is told by the clock: a backup's stamp is the
    moment of its reading, unless it had to be later than an older one.
    """
    moment = seconds(stamp)
    told = {_order_by(record, increment, moment, maker) for maker in possible or (None,)}
    return told.pop() if len(told) == 1 else Order.UNKNOWN


def _order_by(record: Record, increment: Manifest, moment: int, maker: Run | None) -> Order:
    if maker is not None:
        if increment.stamp <= maker.after_increment:
            return Order.EARLIER
        if maker.stamp <= increment.after_run:
            return Order.LATER
    if record.version >= moment:
        return Order.LATER
    if maker is None or not maker.is_complete:
        return Order.UNKNOWN  # the clock may have been set back since
    if moment <= maker.end or record.version < maker.begin:
        return Order.EARLIER
    return Order.LATER if record.version >= maker.end else Order.UNKNOWN


def lay(backup: bytes | None, records: Iterable[Record], max_size: int, unsure: Iterable[Record] = ()) -> Image | None:
    """The image of a metric: `backup` (a whole whisper file, None: there is none) with `records` laid over it.

    Records that may be earlier than the backup, the `unsure` ones, only fill in what it has not.
    None if there is neither.  Raises CorruptFile for a broken backup, CorruptIncrement for a record that declares a
    file of more than `max_size` bytes.  A compressed backup is the image whatever records
    there are: it cannot take them, and whoever restores it must say so.
    """
    images: dict[Layout, bytearray] = {}  # the latest is the last
    is_based = backup is not None
    whole = bytearray(backup or b"")
    if backup is not None:
        if is_compressed(backup):
            return Image(backup, True, None, 0)
        check(backup)
    layout = parse_header(backup).archives if backup is not None else None
    count = 0
    read = None
    for header, group in _groups(unsure, max_size):
        if header.archives == layout:
            _lay_group(whole, header.archives, group, is_filling=True)
        else:
            _lay_latest(images, header, group)
        count += len(group)
        read = group[-1].read
    if layout is not None:
        images[layout] = whole
    for header, group in _groups(records, max_size):
        _lay_latest(images, header, group)
        is_based = is_based or group[0].is_whole
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


def _groups(records: Iterable[Record], max_size: int) -> Iterator[tuple[Header, list[Record]]]:
    """Records that follow one another and have the same header, all of them whole or none."""
    for (header, _), same in itertools.groupby(records, lambda each: (parse(each.header, each.key), each.is_whole)):
        group = list(same)
        if header.file_size > max_size:
            raise CorruptIncrement(f"'{group[0].key}': a file of {header.file_size} bytes, more than {max_size}")
        yield header, group


def _lay_latest(images: dict[Layout, bytearray], header: Header, group: list[Record]) -> None:
    """Lay records over the image of their layout, which becomes the latest."""
    image = images.pop(header.archives, None)
    if image is None:
        image = bytearray(header.file_size)
    images[header.archives] = image
    image[: len(group[0].header)] = group[0].header
    _lay_group(image, header.archives, group)


def _lay_group(image: bytearray, archives: Layout, group: list[Record], is_filling: bool = False) -> None:
    for number, archive in enumerate(archives):
        rings = [each.rings[number] for each in group]
        if is_filling:
            lay_rings(image, archive, rings, is_filling=True)
        elif group[0].is_whole:
            for ring, each in zip(rings, group, strict=True):
                lay_rings(image, archive, [ring], each.read)
        else:
            lay_rings(image, archive, rings)


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


def lay_rings(image: bytearray, archive: Archive, rings: list[Ring], kept: int = 0, is_filling: bool = False) -> None:
    """Lay what records have of one archive over the image, in their order, rules 1 and 2.

    A stamp no later than `kept` stays against an earlier one; where they are only `is_filling`, against its own, too.
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
        if kept or is_filling:
            there = slots["t"][places]
            wins = there < times if is_filling else (there <= times) | (there > kept)
            times, values, places = times[wins], values[wins], places[wins]
        slots["t"][places], slots["v"][places] = times, values  # where one comes twice, the last stays
    if is_empty and base and not slots["t"][0]:
        slots[0] = (base, 0.0)
