"""The image of a metric: its backup with the records of increments laid over it.

Records are laid in the order of the increments.  Of an archive's points:

1. What comes later wins its slot.  Only a record of all points does not win it from a later stamp (unless that lies
   after its reading): a file that was recreated from older content does not push out newer points.  Of a window's
   points it is known that the file held no others; a later stamp was ahead, as a sender's clock was, and carbon wrote
   over it.
2. Slot 0's stamp says where every other slot is.  Only an empty archive takes it from the record; where the record does
   not tell it, the first run's first time is slot 0.
3. The image has the latest record's header (aggregation, xFilesFactor).
4. A record of all points is laid as any other: what was there before a disk died is still the metric's.
5. A record that may be earlier than the backup only fills in what the backup has not.  Earlier ones make images of
   their own, from which restore fills if they have much more: then the file was recreated before the backup.
6. A record whose file has other archives begins an image of its own; in the end the others are healed into the image of
   the latest record, the latest of them first (docs/design.md, "Healing").  If that has no room for some of their
   points, and one of the other layouts has room for all, everything is healed into that one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from whisperbackup.increments.order import Sorted
from whisperbackup.increments.record import CorruptIncrement, Record, Ring, parse
from whisperbackup.whisper.cwhisper import is_compressed
from whisperbackup.whisper.format import Archive, Header, check, parse_header
from whisperbackup.whisper.healing import heal

SLOT = np.dtype([("t", ">u4"), ("v", ">f8")])
Layout = tuple[Archive, ...]
HOUR, DAY = 3600, 86400


class Image(NamedTuple):
    """A metric as it was last read.

    `is_based`: there was a backup, or a record of all the file's points; without either, only what was written since a
    window began is in it, and whoever restores it must be told.  `read`: when the latest record was read, None if none
    was laid.  `others`: images of the metric's other layouts.  What of them fitted at `read` is in `content`, but not
    the rest (coarser points where finer ones would fit, what was ahead of the clock then); and `content` may keep
    points for a shorter time than they do.  So restore fills from them, too, and from those of `earlier` records, of
    which it names nothing: what was wanted since is the backup's layout.
    """

    content: bytes
    is_based: bool
    read: int | None
    records: int
    others: tuple[bytes, ...] = ()
    earlier: tuple[bytes, ...] = ()


def lay(backup: bytes | None, found: Sorted, max_size: int) -> Image | None:
    """The image of a metric: `backup` (a whole whisper file, None: there is none) with records laid over it.

    None if there is neither.  Raises CorruptFile for a broken backup, CorruptIncrement for a record that declares a
    file of more than `max_size` bytes.  A compressed backup is the image whatever records there are: it cannot take
    them, and whoever restores it must say so.
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
    older: dict[Layout, bytearray] = {}
    for header, group in _groups(found.earlier, max_size):
        _lay_latest(older, header, group)
    earlier = tuple(bytes(each) for each in reversed(older.values()) if _has_much_more(each, whole))
    for header, group in _groups(found.unsure, max_size):
        if header.archives == layout:
            _lay_group(whole, header.archives, group, is_filling=True)
        else:
            _lay_latest(images, header, group)
        count += len(group)
        read = group[-1].read
    if layout is not None:
        images[layout] = whole
    for header, group in _groups(found.later, max_size):
        _lay_latest(images, header, group)
        is_based = is_based or group[0].is_whole
        count += len(group)
        read = group[-1].read
    if not images:
        return None
    *others, latest = images.values()
    if not others:
        return Image(bytes(latest), is_based, read, count, (), earlier)
    others.reverse()
    assert read is not None
    made = bytearray(latest)
    crowded = [other for other in others if not heal_in(made, other, read)]
    if crowded and (roomy := _in_earlier_layout(latest, others, read)) is not None:
        return Image(roomy, is_based, read, count, tuple(map(bytes, (latest, *others))), earlier)
    return Image(bytes(made), is_based, read, count, tuple(map(bytes, others)), earlier)


def _has_much_more(image: bytearray, other: bytearray) -> bool:
    """Whether an image has points for as many times, which `other` lacks, as `other` has; in each of their archives.

    A file from which points of the last days were removed may have none of the image's times in its finest archive, but
    has its history, in the coarser ones, most of it older than the image.  Two slots are none: a recreated one has
    those of today, as the image has.
    """
    archives = zip(parse_header(bytes(image)).archives, parse_header(bytes(other)).archives, strict=False)
    for number, (archive, other_archive) in enumerate(archives):
        step = max(archive.step, other_archive.step)
        times, has = _times(image, archive, step), _times(other, other_archive, step)
        has_history = len(has) > 2
        if number and not (has_history and len(times)):
            continue
        if len(np.setdiff1d(times, has)) < max(len(has), 1) or (has_history and has[len(has) // 2] < times[0]):
            return False
    return True


def _times(image: bytearray, archive: Archive, step: int) -> npt.NDArray[np.uint32]:
    """The times of an archive's points, in steps of so many seconds."""
    times = np.unique(np.frombuffer(image, SLOT, archive.points, archive.offset)["t"] // step)
    return times[times > 0]


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
        if group[0].is_whole:
            for ring, each in zip(rings, group, strict=True):
                lay_rings(image, archive, [ring], each.read + (HOUR if is_filling else 0), is_filling)
        else:
            lay_rings(image, archive, rings, is_filling=is_filling)


def heal_in(image: bytearray, other: bytearray, now: int) -> bool:
    """Heal the points of `other` into `image`; False if it has no room for some of them, or no free slot.

    Coarser points are not put in the place of finer ones: other images, or older backups, may have these.
    """
    healing = heal(bytes(image), bytes(other), now, coarsest=0)
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
        if all(heal_in(made, image, moment) for moment in (read, now) for image in (latest, *others)):
            return bytes(made)
    return None


def lay_rings(image: bytearray, archive: Archive, rings: list[Ring], kept: int = 0, is_filling: bool = False) -> None:
    """Lay what records have of one archive over the image, in their order, rules 1 and 2.

    A stamp no later than `kept` stays against an earlier one.  Where they are only `is_filling`, any does, also against
    its own, and against what was ahead at `kept`.
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
            if is_filling:
                wins = (there < times) & ((there == 0) | (times <= (kept or np.inf)))
            else:
                wins = (there <= times) | (there > kept)
            times, values, places = times[wins], values[wins], places[wins]
        slots["t"][places], slots["v"][places] = times, values  # where one comes twice, the last stays
    if is_empty and base and not slots["t"][0] and (slots["t"].any() or not is_filling):
        slots[0] = (base, np.nan)
