"""Heal: compute the writes that give a live whisper file every point that it lacks and a backup holds.

The rules are in docs/design.md, "Healing"; each function names the rule that it implements.
Every archive becomes a `Window`: one place for each of its n slots, in the order of time, from the oldest time
in (now - s·n, now] to the newest.  Windows are healed from the finest to the coarsest, because a coarser slot
may be aggregated again from the healed finer archive; they are written in the opposite order.

**Killed anywhere**, the file is valid and no point of its finest archive is lost; the next restore fills the rest.
This is why the coarsest archive is written first: as long as a finer point is missing, the next restore examines the
coarser slot above it again.  A coarser slot may then get a value other than in an uninterrupted run, because the rules
are applied to the file as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from whisperbackup.whisper.format import POINT_SIZE, Archive, CorruptFile, Header, check, parse_header

__all__ = ["CorruptFile", "Healing", "heal"]

RECORD = np.dtype([("t", ">u4"), ("v", ">f8")])
END_OF_TIME = 2**32  # timestamps are unsigned 32-bit
FAR_AHEAD = 86400  # seconds; senders and time zones are wrong by less, and what is less is overwritten within a day
PAGE = 4096  # an interrupted write ends at a multiple of this in the file
NAN_UPPER_HALF = b"\x7f\xf8\x00\x00"  # of a value: a NaN whatever the lower half is

AVERAGE, SUM, LAST, AVG_ZERO_OR_FIRST = 1, 2, 3, 6
EXTREMES: dict[int, Callable[[Any], Any]] = {  # method: the greatest of this is the aggregate
    4: np.positive,  # max
    5: np.negative,  # min
    7: np.abs,  # absmax
    8: lambda values: -np.abs(values),  # absmin
}

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Write = tuple[int, bytes]
Span = tuple[int | None, int | None]
"""The Unix times of the first and the last second, both included; None: no bound."""
EVER: Span = (None, None)


class Healing(NamedTuple):
    """`writes` as (offset, bytes), in the order in which to make them; `points` counts the slots of all archives, in
    the live file's windows, that held nothing and hold a point afterwards (a changed aggregate is not counted).
    `unheld` counts the backup's points that are within the backup's own retention, but for which the live file's
    layout has no slot of the same or a finer step.  `blocked` counts those whose slot holds a stamp that is far ahead
    of the clock, and so is never overwritten.  `ahead` counts those that are far ahead of the clock themselves, and
    not in the live file.  `is_resampled`: the layouts differ.  `coarser`: the steps of those archives of the backup
    whose points may still fill finer slots, if they are allowed to."""

    writes: list[Write]
    points: int
    unheld: int = 0
    blocked: int = 0
    ahead: int = 0
    is_resampled: bool = False
    coarser: frozenset[int] = frozenset()


class Source(NamedTuple):
    """The points of one archive of the backup, in the order of time."""

    step: int
    times: Ints
    values: Floats
    since: int  # the archive reaches back to this time, not included
    overlaps_finer: Bools  # a finer archive of the backup holds something that overlaps this point's slot


class Rules(NamedTuple):
    """What is the same for all archives of the live file."""

    header: Header
    sources: list[Source]
    resample: bool  # the layouts differ
    coarsest: int  # the greatest step of points that may be placed in finer slots
    finest: int  # the smallest step of both files
    now: int
    span: Span


@dataclass
class Window:
    """An archive of the live file; the arrays have one element for each slot, in the order of time."""

    archive: Archive
    start: int  # the slot of the oldest place
    based: bool  # whether the ring has a base, and so any point
    times: Ints  # the time that belongs in each slot
    stamps: Ints  # the timestamp found in it
    stored: Floats
    held: Bools
    ahead: Bools  # holds a point of the next lap, stamped in (now, now + s·n]
    writable: Bools
    known: Bools  # held or, in the end, filled
    values: Floats
    own: Bools  # the live file holds something here that is not from this backup
    sparse: Bools  # represents a longer time, rule 3

    @property
    def span(self) -> int:
        return self.archive.step * self.archive.points

    @property
    def changed(self) -> Bools:
        return self.known & (~self.held | differ(self.values, self.stored))

    def times_ahead(self) -> Ints:
        return self.times[self.ahead] + self.span


def heal(live: bytes, backup: bytes, now: int, span: Span = EVER, coarsest: int = END_OF_TIME) -> Healing:
    """The writes that fill `live` from `backup` (docs/design.md, "Healing").

    `live` and `backup` are whole whisper files; `now` is Unix time in seconds.  Of the backup, only the points of
    `span` are used (`are_within`).  Where the layouts differ, points of archives with steps up to `coarsest` may fill
    the finer slots that nothing else fills: not yet, while other backups may have finer points for them.  Nothing that
    `live` holds in its finest archive is among the writes.  Raises CorruptFile for a broken header or a wrong length.
    """
    check(live)
    check(backup)
    span = until_now(span, now)
    header, other = parse_header(live), parse_header(backup)
    resample = [a[1:] for a in header.archives] != [a[1:] for a in other.archives]
    sources = read_sources(backup, other, resample, now, span)
    finest = min(header.archives[0].step, other.archives[0].step)
    rules = Rules(header, sources, resample, coarsest if resample else 0, finest, now, span)
    windows: list[Window] = []
    occupied = np.empty(0, np.int64)  # times held in the archives up to this one
    with np.errstate(all="ignore"):
        for archive in header.archives:
            window = heal_archive(live, archive, None, windows[-1] if windows else None, rules, occupied)
            if resample:
                occupied = np.sort(
                    np.concatenate((occupied, window.times[window.known & ~window.sparse], window.times_ahead()))
                )
            windows.append(window)
        writes = [write for window in reversed(windows) for write in writes_of(window)]
    unheld = count_unheld(header, other, sources, now) if resample else 0
    points = sum(int(np.count_nonzero(w.known & ~w.held)) for w in windows)
    ahead = count_ahead(live, header, backup, other, now, span)
    coarser = frozenset(each.step for each in sources if each.step > max(coarsest, header.archives[0].step))
    blocked = count_blocked(windows, sources, now)
    return Healing(writes, points, unheld, blocked, ahead, resample, coarser if resample else frozenset())


def heal_archive(
    live: bytes, archive: Archive, base: int | None, finer: Window | None, rules: Rules, occupied: Ints
) -> Window:
    """The healed window of one archive; `finer` is the healed window of the next finer archive."""
    window = open_window(live, archive, base, rules.now)
    step = archive.step
    found, copied = np.full(archive.points, np.nan), np.zeros(archive.points, np.bool_)
    for source in rules.sources:
        if source.step == step:
            copy_points(window, source, found, copied)
    available = copied.copy()
    if rules.resample:
        for source in rules.sources:
            if source.step < step and not available.all():
                downsample(window, source, found, available, rules)
    window.own = window.held & ~(available & ~differ(found, window.stored))
    fill = available & ~window.held & window.writable
    np.copyto(window.values, found, where=fill)
    window.known |= fill
    if finer is not None:
        aggregate_anew(window, finer, found, copied, rules)
    for source in rules.sources:
        if step < source.step <= rules.coarsest:
            place_coarser_points(window, source, occupied)
    if not window.based and window.known.any():
        # An empty archive: its base is the oldest filled time.
        oldest = int(np.argmax(window.known))
        if not window.stamps.any():
            window.start, window.based = -oldest % archive.points, True
            return window
        # Repeat with a base: stamps outside the window may then prevent writing some slots.
        base = int(window.times[oldest])
        return heal_archive(live, archive, base, finer, rules, occupied)
    return window


# Reading the two files


def read_ring(content: bytes, archive: Archive) -> tuple[Ints, Floats]:
    ring = np.frombuffer(content, RECORD, archive.points, archive.offset)
    return ring["t"].astype(np.int64), ring["v"].astype(np.float64)


def base_of(stamps: Ints, archive: Archive, now: int) -> int | None:
    """A time that belongs in slot 0; None for an empty archive."""
    if stamps[0]:
        return int(stamps[0])
    span = archive.step * archive.points
    near = (stamps > max(now - span, 0)) & (stamps <= now + span) & (stamps // archive.step * archive.step == stamps)
    if not near.any():
        return None
    slot = int(np.argmax(np.where(near, stamps, 0)))
    return int(stamps[slot]) - slot * archive.step


def open_window(live: bytes, archive: Archive, base: int | None, now: int) -> Window:
    """The window of an archive of the live file.  `base` is used for an archive that has none."""
    stamps, stored = read_ring(live, archive)
    if base is None:
        base = base_of(stamps, archive, now)
    newest = now // archive.step
    # The division rounds down, like whisper's: a base need not be a multiple of the step.
    start = 0 if base is None else ((newest * archive.step - base) // archive.step + 1) % archive.points
    times = (np.arange(newest - archive.points + 1, newest + 1)) * archive.step
    stamps, stored = np.roll(stamps, -start), np.roll(stored, -start)
    possible = (times > 0) & (times < END_OF_TIME)
    number = ~np.isnan(stored)
    held = (stamps == times) & number & possible
    return Window(
        archive=archive,
        start=start,
        based=base is not None,
        times=times,
        stamps=stamps,
        stored=stored,
        held=held,
        ahead=(stamps == times + archive.step * archive.points) & number,
        writable=((stamps <= times) if base is not None else True) & possible,
        known=held.copy(),
        values=stored.copy(),
        own=held,
        sparse=np.zeros(archive.points, np.bool_),
    )


def read_sources(backup: bytes, header: Header, resample: bool, now: int, span: Span) -> list[Source]:
    """Every point of the backup that is in its place, on any lap, with 0 < t <= now, and in the span."""
    sources = []
    starts = ends = np.empty(0, np.int64)  # of all finer points' slots, sorted
    for archive in header.archives:
        stamps, values = read_ring(backup, archive)
        base = base_of(stamps, archive, now)
        if base is None:
            continue
        counts = is_in_place(stamps, base, archive)
        counts &= (stamps > 0) & (stamps <= now) & ~np.isnan(values)
        order = np.flatnonzero(counts)
        if not order.size:
            continue
        order = np.roll(order, -1 - int(np.argmax(stamps[order])))
        if (np.diff(stamps[order]) < 0).any():  # old laps between newer points
            order = order[np.argsort(stamps[order])]
        times, values = stamps[order], values[order]
        overlaps_finer = np.zeros(len(times), np.bool_)
        if resample:
            after = times + archive.step
            overlaps_finer = np.searchsorted(starts, after) > np.searchsorted(ends, times, side="right")
            starts, ends = np.sort(np.concatenate((starts, times))), np.sort(np.concatenate((ends, after)))
        since = int(times[-1]) - archive.step * archive.points
        inside = are_within(span, times, archive.step, header.archives[0].step)
        sources.append(Source(archive.step, times[inside], values[inside], since, overlaps_finer[inside]))
    return sources


def until_now(span: Span, now: int) -> Span:
    """The span, without an end that has not come yet: it cuts nothing."""
    begin, end = span
    return begin, None if end is not None and end >= now else end


def are_within(span: Span, times: Ints, step: int, finer_step: int) -> Bools:
    """Which slots, of `step` seconds from these times on, have no point of `finer_step` that is outside of `span`."""
    begin, end = span
    inside = np.ones(len(times), np.bool_)
    if begin is not None:
        inside &= -(-times // finer_step) * finer_step >= begin  # the first point that a slot can have
    if end is not None:
        inside &= (times + step - 1) // finer_step * finer_step <= end  # the last
    return inside


def count_unheld(header: Header, other: Header, sources: list[Source], now: int) -> int:
    """How many points of `sources`, by the layout `other`, have no slot of the same or a finer step in `header`."""
    spans = {archive.step: archive.step * archive.points for archive in other.archives}
    count = 0
    for source in sources:
        reach = max((a.step * a.points for a in header.archives if a.step <= source.step), default=0)
        count += int(np.count_nonzero((source.times > now - spans[source.step]) & (source.times <= now - reach)))
    return count


def count_blocked(windows: list[Window], sources: list[Source], now: int) -> int:
    """How many points of `sources` are not in the healed windows, and have a stamp far ahead of `now` in their slot."""
    limit = now + FAR_AHEAD
    if all(window.stamps.max() <= limit for window in windows):
        return 0
    count = 0
    for source in sources:
        same = [window for window in windows if window.archive.step == source.step]
        known, blocked = np.zeros(len(source.times), np.bool_), np.zeros(len(source.times), np.bool_)
        for window in same or [window for window in windows if window.archive.step < source.step]:
            step = window.archive.step
            places = source.times // step - window.times[0] // step
            inside = places >= 0
            known[inside] |= window.known[places[inside]]
            blocked[inside] |= window.stamps[places[inside]] > limit
        count += int(np.count_nonzero(blocked & ~known))
    return count


def count_ahead(live: bytes, header: Header, backup: bytes, other: Header, now: int, span: Span) -> int:
    """How many points of the backup are far ahead of `now`, and not in the live file's archive of the same step."""
    count = 0
    if span[1] is not None:
        return count
    for archive in other.archives:
        if np.frombuffer(backup, RECORD, archive.points, archive.offset)["t"].max() <= now + FAR_AHEAD:
            continue
        stamps, values = read_ring(backup, archive)
        counts = is_in_place(stamps, int(stamps[0]), archive) & (stamps > now + FAR_AHEAD) & ~np.isnan(values)
        there = [read_ring(live, same)[0] for same in header.archives if same.step == archive.step]
        count += int(np.count_nonzero(~np.isin(stamps[counts], np.concatenate([*there, np.empty(0, np.int64)]))))
    return count


def is_in_place(stamps: Ints, base: int, archive: Archive) -> Bools:
    """Where the timestamp is a multiple of the step and belongs in its slot, on any lap."""
    step, points = archive.step, archive.points
    if base % step == 0:  # whole laps from the slot's first time: one division instead of three
        laps = stamps - base - step * np.arange(points)
        return cast(Bools, laps // (step * points) * (step * points) == laps)
    slots = (stamps - base) // step
    in_slot = slots - slots // points * points == np.arange(points)
    return cast(Bools, in_slot & (stamps // step * step == stamps))


# Rules 2 and 3


def copy_points(window: Window, source: Source, found: Floats, copied: Bools) -> None:
    """Rule 2: points of an archive of the same step."""
    oldest = window.times[0]
    inside = slice(int(np.searchsorted(source.times, oldest)), None)
    places = (source.times[inside] - oldest) // source.step
    found[places] = source.values[inside]
    copied[places] = True


def downsample(window: Window, source: Source, found: Floats, available: Bools, rules: Rules) -> None:
    """Rule 3, first half: values for the remaining slots from a finer archive of the backup.

    The archive covers a slot that begins within its span, counted back from its newest point and not from now, because
    the backup may be older than the span of its finer archives.
    """
    step = window.archive.step
    oldest = window.times[0]
    inside = slice(int(np.searchsorted(source.times, oldest)), None)
    groups = (source.times[inside] - oldest) // step
    total = multiples(window.times, step, source.step)
    result, count = aggregate(rules.header.aggregation, groups, source.values[inside], total)
    fill = ~available & (window.times > source.since) & is_enough(result, count, total, rules.header)
    fill &= are_within(rules.span, window.times, step, rules.finest)
    np.copyto(found, result, where=fill)
    available |= fill


def place_coarser_points(window: Window, source: Source, occupied: Ints) -> None:
    """Rule 3, second half: place a coarser point (T, S) in the slot ⌊T/s⌋·s, where nothing finer is held.

    It represents the slots from there to ⌊(T + S)/s⌋·s.  These ranges do not overlap, whatever the steps, so a point
    placed earlier by an interrupted run does not exclude its neighbour.
    """
    step = window.archive.step
    begin = source.times // step
    end = (source.times + source.step) // step * step
    places = begin - window.times[0] // step
    apart = (places >= 0) & (begin > 0) & ~source.overlaps_finer
    begin, end, places, values = begin[apart] * step, end[apart], places[apart], source.values[apart]
    here = np.concatenate((window.times[window.known], window.times_ahead()))
    neighbours = np.searchsorted(here, end) - np.searchsorted(here, begin)
    finer = np.searchsorted(occupied, end) - np.searchsorted(occupied, begin)
    free = window.writable[places] & ~window.known[places]
    there = window.held[places] & ~differ(values, window.values[places]) & ~differ(values, window.stored[places])
    chosen = (free | there) & (neighbours == there) & (finer == 0)
    places, values = places[chosen], values[chosen]
    window.values[places] = values
    window.known[places] = True
    window.sparse[places] = True
    window.own[places] = False


# Rule 4


def aggregate_anew(window: Window, finer: Window, found: Floats, copied: Bools, rules: Rules) -> None:
    """Rule 4: aggregate coarser slots again from the healed next finer archive.

    An empty slot that reaches out of the span may lack points that the backup has: it is aggregated only if all are
    known.  A held one goes on being the aggregate of what the file has, as if carbon had received the points late.
    """
    header, step = rules.header, window.archive.step
    tail = slice(int(np.searchsorted(window.times, rules.now - finer.span, side="right")), None)
    size = len(window.times[tail])
    if not size:
        return
    first = window.times[tail][0]
    groups = (finer.times - first) // step  # negative: before the slots in question
    groups_ahead = (finer.times_ahead() - first) // step
    reached = groups_ahead < size
    ahead_of = np.flatnonzero(finer.ahead)[reached]
    groups_ahead = groups_ahead[reached]
    edges = np.searchsorted(groups, np.arange(size + 1))

    def count_of(mask: Bools) -> Ints:
        """How many of each slot's finer points are set in `mask`."""
        upto = np.concatenate(([0], np.cumsum(mask)))[edges]
        return np.diff(upto)

    with_ahead = np.bincount(groups_ahead, minlength=size)
    own = (count_of(finer.own) + with_ahead) > 0
    changed = count_of(finer.changed) > 0
    held, writable, stored = window.held[tail], window.writable[tail], window.stored[tail]
    window.own[tail] = own
    asked = writable & (changed | ~held)
    if not asked.any():
        return

    order = np.flatnonzero(finer.known & (groups >= 0))
    total = multiples(window.times[tail], step, finer.archive.step)
    result, count = aggregate(
        header.aggregation,
        np.concatenate((groups[order], groups_ahead)),
        np.concatenate((finer.values[order], finer.stored[ahead_of])),
        total,
    )
    asked &= is_enough(result, count, total, header) & (count_of(finer.sparse) == 0)
    asked &= ~represents_slot(finer, edges, stored, held)

    # An empty slot is left to the backup's value if the live file has no points of its own below it.
    take = asked & ~held & (own | ~copied[tail])
    take &= are_within(rules.span, window.times[tail], step, rules.finest) | (count == total)
    # A held slot keeps its value if the backup holds the same and the live file has no points of its own below it, and
    # if it may be the aggregate of more points than are left.
    asked &= held & ~(copied[tail] & ~differ(found[tail], stored) & ~own)
    take |= asked & (count == total)
    if (asked & ~take).any():
        was_held = np.flatnonzero(finer.held & (groups >= 0))
        before, _ = aggregate(
            header.aggregation,
            np.concatenate((groups[was_held], groups_ahead)),
            np.concatenate((finer.stored[was_held], finer.stored[ahead_of])),
            total,
        )
        take |= asked & is_explained(header.aggregation, stored, before, result)

    np.copyto(window.values[tail], result, where=take)
    window.known[tail] |= take


def represents_slot(finer: Window, edges: Ints, stored: Floats, held: Bools) -> Bools:
    """Which slots' only point in the live file is the slot's own value, in the first place: rule 3 may have put it
    there, for all of the slot.  If the backup has the same in that place it is an ordinary point.

    `edges`: where in the finer window each slot begins, and the last ends.
    """
    upto = np.concatenate(([0], np.cumsum(finer.held)))
    is_lone: Bools = held & (np.diff(upto[edges]) == 1)
    firsts = np.minimum(edges[:-1], len(finer.held) - 1)
    is_lone &= finer.held[firsts] & finer.own[firsts] & ~differ(finer.stored[firsts], stored)
    return is_lone


def is_explained(method: int, stored: Floats, before: Floats, result: Floats) -> Bools:
    """Whether a slot's value is the aggregate `before` of the live file's points, or within an extreme `result`."""
    if method in EXTREMES:
        rank = EXTREMES[method]
        within: Bools = rank(stored) <= rank(result)
        return within
    # The two readings of method 6 explain different values.
    return is_close(before, stored) & (method != AVG_ZERO_OR_FIRST)


# Aggregation, the same as whisper's


def aggregate(method: int, groups: Ints, values: Floats, total: Ints) -> tuple[Floats, Ints]:
    """Each group's aggregate (NaN for none) and its number of values; `groups` is ascending, and so is time in each.

    `total` is the number of values that each group could have.

    Number 6 is avg_zero in whisper and first in go-whisper, and a file does not record which: there is a result only
    where both agree.  The other methods that both know are the same in both (go-whisper's 7 and 8, mix and percentile,
    are for its compressed files).  An unknown number gives no value: whisper refuses to read such a file.
    """
    count = np.bincount(groups, minlength=len(total))
    if method != LAST and method not in EXTREMES:
        # bincount adds one value after another to 0.0, in this order, like sum() in whisper.
        sums = np.bincount(groups, values, minlength=len(total))
        divisor = 1 if method == SUM else total if method == AVG_ZERO_OR_FIRST else count
        result = np.where(count > 0, sums / divisor, np.nan)
        if method not in (AVERAGE, SUM, AVG_ZERO_OR_FIRST):
            result[:] = np.nan
        elif method == AVG_ZERO_OR_FIRST:
            starts = np.flatnonzero(np.diff(groups, prepend=-1))
            first = np.full(len(total), np.nan)
            first[groups[starts]] = values[starts]
            result[~is_close(result, first)] = np.nan
        return result, count
    result = np.full(len(total), np.nan)
    if groups.size:
        starts = np.flatnonzero(np.diff(groups, prepend=-1))
        rank: NDArray[Any] = EXTREMES[method](values) if method in EXTREMES else np.arange(len(values))
        best = np.repeat(np.maximum.reduceat(rank, starts), count[groups[starts]])
        hits = np.flatnonzero(rank == best)
        # The first of equal values, like Python's max() and min(): 0.0 and -0.0 are equal, so are 1 and -1 for absmax.
        hits = hits[np.flatnonzero(np.diff(groups[hits], prepend=-1))]
        result[groups[hits]] = values[hits]
    return result, count


def is_enough(result: Floats, count: Ints, total: Ints, header: Header) -> Bools:
    """Where an aggregate is a number, made of enough points."""
    enough: Bools = (count > 0) & (count / total >= header.x_files_factor) & ~np.isnan(result)
    return enough


def multiples(times: Ints, coarse: int, fine: int) -> Ints:
    """How many multiples of `fine` each of the slots [t, t + coarse) has."""
    upto: Ints = -(-(times + coarse) // fine) + -times // fine
    return upto


def is_close(one: Floats, other: Floats) -> Bools:
    apart = np.abs(one - other)
    equal: Bools = (one == other) | (np.isfinite(apart) & (apart <= 1e-9 * np.minimum(np.abs(one), np.abs(other))))
    return equal


def differ(one: Floats, other: Floats) -> Bools:
    """Where two arrays differ in any bit."""
    bits: Bools = one.view(np.int64) != other.view(np.int64)
    return bits


# Writing


def writes_of(window: Window) -> list[Write]:
    """The changed records of an archive, by ascending slot: slot 0 comes first, since its stamp is the base."""
    archive = window.archive
    changed = np.flatnonzero(window.changed)
    slots = (window.start + changed) % archive.points
    order = np.argsort(slots, kind="stable")
    changed, slots = changed[order], slots[order]
    records = np.empty(len(changed), RECORD)
    records["t"], records["v"] = window.times[changed], window.values[changed]
    slot_0 = -window.start % archive.points
    if window.based and not window.stamps[slot_0] and not (len(slots) and slots[0] == 0):
        mark = base_mark(window, int(window.times[slot_0]))
        if mark is not None:
            slots = np.insert(slots, 0, 0)
            records = np.insert(records, 0, np.array((mark, np.nan), RECORD))
    return split_writes(archive.offset + slots * POINT_SIZE, records)


def base_mark(window: Window, time: int) -> int | None:
    """A stamp for a slot 0 that gets no point (its value is NaN); `time` belongs there: two laps ago, so that no reader
    returns it.

    Before 1970 that is impossible; then the stamp is a second before a time of slot 0: no multiple of the step, so no
    reader returns it, and whisper's division gives the same slots.
    """
    step, span = window.archive.step, window.span
    mark = time - 2 * span if time > 2 * span else (time - 1) % span
    return mark if mark < END_OF_TIME and (time > 2 * span or step > 1) else None


def split_writes(offsets: Ints, records: NDArray[Any]) -> list[Write]:
    """Records as writes: adjacent ones are combined, but a record that crosses a page boundary is written alone.

    An interrupted write ends at a page boundary.  Between two records this is harmless; within a record it would leave
    a stamp with the wrong value, or a value made of two halves.  So a crossing record is written in parts that each lie
    in one page (offsets are multiples of 4): first its value becomes a NaN, which is no point, then the value is
    written, and last the stamp.
    """
    if not len(offsets):
        return []
    content = records.tobytes()
    crossing = offsets % PAGE > PAGE - POINT_SIZE
    cut = np.diff(offsets) != POINT_SIZE
    cut |= crossing[1:] | crossing[:-1]
    begins = np.concatenate(([0], np.flatnonzero(cut) + 1))
    ends = np.append(begins[1:], len(offsets))
    # A file may have ten thousand of them: no interpreted loop may touch each.
    slices = map(slice, (begins * POINT_SIZE).tolist(), (ends * POINT_SIZE).tolist())
    writes: list[Write] = list(zip(offsets[begins].tolist(), map(content.__getitem__, slices), strict=True))
    for run in np.flatnonzero(crossing[begins])[::-1].tolist():
        at, record = writes[run]
        parts = (4, NAN_UPPER_HALF), (8, record[8:]), (4, record[4:8]), (0, record[:4])
        writes[run : run + 1] = [(at + begin, part) for begin, part in parts]
    return writes
