"""What healing must come to, told slow and plain: one point at a time, from docs/design.md, with whisper's own
aggregation.  Nothing is shared with fill.py but the header's parser."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import whisper

from whisperbackup.whisper.format import Archive, parse_header

Points = dict[int, float]


def bits(value: float) -> bytes:
    return struct.pack(">d", value)


class Ring:
    """One archive as stored: the stamp and value of each slot, and the time that belongs into slot 0."""

    def __init__(self, content: bytes, archive: Archive, now: int) -> None:
        self.step, self.n = archive.step, archive.points
        self.span = self.step * self.n
        self.slots = list(struct.iter_unpack(">Ld", content[archive.offset : archive.offset + 12 * self.n]))
        self.base: int | None = self.slots[0][0] or None
        if self.base is None:
            newest = 0
            for slot, (stamp, _) in enumerate(self.slots):
                if stamp % self.step == 0 and now - self.span < stamp <= now + self.span and stamp > newest:
                    newest = stamp
                    self.base = stamp - slot * self.step

    def slot_of(self, t: int) -> int:
        assert self.base is not None
        return (t - self.base) // self.step % self.n

    def stamp_at(self, t: int) -> int:
        return 0 if self.base is None else self.slots[self.slot_of(t)][0]

    def points(self) -> Points:
        """Every point in its place."""
        if self.base is None:
            return {}
        return {
            stamp: value
            for slot, (stamp, value) in enumerate(self.slots)
            if stamp and stamp % self.step == 0 and self.slot_of(stamp) == slot and not math.isnan(value)
        }


class Level:
    """An archive of the live file, and what becomes of it."""

    def __init__(self, ring: Ring, now: int) -> None:
        self.ring, self.step = ring, ring.step
        oldest = (now - ring.span) // ring.step * ring.step + ring.step
        self.window = [t for t in range(oldest, now + 1, ring.step) if 0 < t < 2**32]
        self.horizon = now - ring.span
        self.held = {t: v for t, v in ring.points().items() if now - ring.span < t <= now + ring.span}
        self.after = dict(self.held)
        self.copies: Points = {}  # what rule 2 has
        self.finds: Points = {}  # what rules 2 and 3 (from finer points) have
        self.sparse: set[int] = set()
        self.aggregated: set[int] = set()

    def may_write(self, t: int) -> bool:
        return self.ring.stamp_at(t) <= t

    def changes(self, t: int) -> bool:
        return t in self.after and (t not in self.held or bits(self.after[t]) != bits(self.held[t]))


class Expected(NamedTuple):
    slots: list[list[tuple[int, float]]]  # of each archive
    aggregated: list[set[int]]  # slots whose value need only be close
    points: int
    levels: list[Level]


def heal(live: bytes, backup: bytes, now: int) -> Expected:
    return Oracle(live, backup, now).run()


class Oracle:
    def __init__(self, live: bytes, backup: bytes, now: int) -> None:
        self.live, self.now = live, now
        self.header, other = parse_header(live), parse_header(backup)
        self.method = whisper.aggregationTypeToMethod.get(self.header.aggregation, "unknown")
        self.differs = [(a.step, a.points) for a in self.header.archives] != [
            (a.step, a.points) for a in other.archives
        ]
        self.backup: dict[int, Points] = {}
        self.reach: dict[int, int] = {}
        for archive in other.archives:
            points = {t: v for t, v in Ring(backup, archive, now).points().items() if t <= now}
            self.backup[archive.step] = points
            self.reach[archive.step] = max(points, default=0) - archive.step * archive.points
        self.levels: list[Level] = []

    def run(self) -> Expected:
        for archive in self.header.archives:
            level = Level(Ring(self.live, archive, self.now), self.now)
            self.fill(level)
            if level.ring.base is None and level.after:
                base = min(level.after)
                level = Level(Ring(self.live, archive, self.now), self.now)
                level.ring.base = base
                self.fill(level)
            self.levels.append(level)
        slots, aggregated, points = [], [], 0
        for level in self.levels:
            ring = level.ring
            slots.append(list(ring.slots))
            for t in level.window:
                if level.changes(t):
                    slots[-1][ring.slot_of(t)] = (t, level.after[t])
                    points += t not in level.held
            aggregated.append({ring.slot_of(t) for t in level.aggregated})
            if ring.base is not None and slots[-1][0][0] == 0:
                self.mark(ring, slots[-1])
        return Expected(slots, aggregated, points, self.levels)

    def mark(self, ring: Ring, slots: list[tuple[int, float]]) -> None:
        place = next(t for t in range(self.now // ring.step * ring.step, -(10**20), -ring.step) if not ring.slot_of(t))
        if place - 2 * ring.span > 0:
            slots[0] = (place - 2 * ring.span, math.nan)
        elif ring.step > 1:
            stamp = place - 1
            while stamp >= ring.span:
                stamp -= ring.span
            while stamp < 0:
                stamp += ring.span
            if stamp < 2**32:
                slots[0] = (stamp, math.nan)

    def aggregate(self, points: Points, begin: int, end: int, step: int) -> float | None:
        """whisper's __propagate: None where too few are known, or it is no number."""
        places = [t for t in points if begin <= t < end]
        if not places:
            return None
        total = -(-end // step) - -(-begin // step)
        if len(places) / total < self.header.x_files_factor:
            return None
        value = self.combine([points[t] for t in sorted(places)], total)
        return None if math.isnan(value) else value

    def combine(self, values: list[float], total: int) -> float:
        if self.method == "unknown":
            return math.nan
        if self.method == "avg_zero":  # or go-whisper's "first", with the same number: a value only where both agree
            value = sum(values) / total
            return value if math.isclose(value, values[0]) else math.nan
        return float(whisper.aggregate(self.method, values))

    def fill(self, level: Level) -> None:
        step = level.step
        for t in level.window:
            if t in self.backup.get(step, {}):
                level.copies[t] = level.finds[t] = self.backup[step][t]
            elif self.differs:
                for finer in sorted(s for s in self.backup if s < step):
                    value = self.aggregate(self.backup[finer], t, t + step, finer)
                    if t > self.reach[finer] and value is not None:
                        level.finds[t] = value
                        level.aggregated.add(t)
                        break
        for t in level.window:
            if t not in level.held and t in level.finds and level.may_write(t):
                level.after[t] = level.finds[t]
        if self.levels:
            for t in level.window:
                if t > self.levels[-1].horizon and level.may_write(t):
                    self.aggregate_anew(level, self.levels[-1], t)
        if self.differs:
            self.place_coarser(level)

    def place_coarser(self, level: Level) -> None:
        step, placed = level.step, {}
        for coarse in sorted(s for s in self.backup if s > step):
            for begin, value in self.backup[coarse].items():
                t, end = begin // step * step, (begin + coarse) // step * step
                finer = [
                    u
                    for s, points in self.backup.items()
                    if s < coarse
                    for u in points
                    if u < begin + coarse and u + s > begin
                ]
                live = [
                    (other, u)
                    for other in [*self.levels, level]
                    for u in other.after
                    if t <= u < end and u not in other.sparse
                ]
                there = (
                    live == [(level, t)] and bits(level.held.get(t, math.nan)) == bits(value) and not level.changes(t)
                )
                free = not live and level.may_write(t)
                if t in level.window and not finer and (there or free):
                    placed[t] = value
        for t, value in placed.items():
            level.after[t] = value
            level.sparse.add(t)

    def is_own(self, number: int, t: int) -> bool:
        """Whether the live file has anything at t (or below it) that the backup did not give it."""
        level = self.levels[number]
        if t > self.now:
            return t in level.held
        if number and t > self.levels[number - 1].horizon:
            return self.has_own_below(number - 1, t, t + level.step)
        if t not in level.held or t in level.sparse:
            return False
        return t not in level.finds or bits(level.finds[t]) != bits(level.held[t])

    def has_own_below(self, number: int, begin: int, end: int) -> bool:
        level = self.levels[number]
        times = {*level.window, *level.held}
        return any(self.is_own(number, t) for t in times if begin <= t < end)

    def aggregate_anew(self, level: Level, finer: Level, t: int) -> None:
        end = t + level.step
        below = [u for u in {*finer.window, *finer.held} if t <= u < end]
        changed = [u for u in below if finer.changes(u)]
        if (t in level.held and not changed) or any(u in finer.sparse for u in below):
            return
        if t in level.held and self.represents(level, finer, t):
            return
        value = self.aggregate(finer.after, t, end, finer.step)
        if value is None:
            return
        own = self.has_own_below(len(self.levels) - 1, t, end)
        if t not in level.held:
            if t in level.copies and not own:
                return
        else:
            stored = level.held[t]
            if not own and t in level.copies and bits(level.copies[t]) == bits(stored):
                return
            total = -(-end // finer.step) - -(-t // finer.step)
            if sum(u in finer.after for u in below) < total and not self.is_explained(
                stored, value, [finer.held[u] for u in sorted(below) if u in finer.held]
            ):
                return
        level.after[t] = value
        level.aggregated.add(t)

    def represents(self, level: Level, finer: Level, t: int) -> bool:
        """Whether the live file's only point below t is the slot's own value, in the first place, and its own."""
        first = -(-t // finer.step) * finer.step
        below = [u for u in finer.held if t <= u < t + level.step and u <= self.now]
        is_own = self.is_own(self.levels.index(finer), first)
        return below == [first] and bits(finer.held[first]) == bits(level.held[t]) and is_own

    def is_explained(self, stored: float, value: float, held: list[float]) -> bool:
        if self.method in ("max", "min"):
            return stored <= value if self.method == "max" else stored >= value
        if self.method in ("absmax", "absmin"):
            return abs(stored) <= abs(value) if self.method == "absmax" else abs(stored) >= abs(value)
        return self.method != "avg_zero" and bool(held) and math.isclose(stored, self.combine(held, 0))
