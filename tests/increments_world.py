"""A node under real whisper, its clock, its store of backups and increments: what the truth tests let happen to it.

Times are the world's: files get their mtime from it, records their version and the moment of their reading.
"""

from __future__ import annotations

import fcntl
import math
import os
import random
import struct
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import whisper

from whisperbackup.increments import (
    fresh,
    image,
    manifest,
    merge,
    order,
    part,
    quick,
    reader,
    record,
    retention,
    slots,
    window,
)
from whisperbackup.increments.names import Names
from whisperbackup.repository.stamps import next_stamp, seconds, stamp_of
from whisperbackup.whisper.format import parse_header

EPOCH = 2_000_000_000  # later than any ctime that a test can have
METHODS = ["average", "sum", "last", "max", "min", "avg_zero", "absmax", "absmin"]
NAN = struct.unpack("<d", bytes.fromhex("010000000000f87f"))[0]
NODE = "node"
PREFIX = "/tree"


@dataclass
class File:
    """A metric as the world knows it: `expected` is its content at the last reading that counts."""

    path: Path
    layout: list[tuple[int, int]]
    born: int
    mtime: int
    is_locked: bool = False
    backups: dict[str, bytes] = field(default_factory=dict)
    expected: tuple[int, bytes] | None = None
    recreated: bool = False  # since its newest backup
    was_ahead: bool = False  # a sender was, by hours
    has_earlier: bool = False  # records that are earlier than its newest backup
    is_blurred: bool = False  # by such a file's whole or earlier records: which of two stamps came first is not known
    last: int = 0
    is_unsure: bool = False  # last read while the clock was wrong: the next increment makes good what its window missed
    is_filled: bool = False  # from records of which is not known whether they are later than its newest backup
    layouts: int = 1
    before: list[bytes] = field(default_factory=list)  # what it held before it was made anew, since its newest backup


class World:
    """`lag` in seconds; `rules` replaces parts of the code under test by other ones, by name."""

    def __init__(self, folder: Path, chance: random.Random) -> None:
        self.folder, self.chance = folder, chance
        self.now = EPOCH + chance.randrange(10**6)
        self.was_set = False  # then no run is without record: only the clock could tell its order
        self.skew = 0  # how far the node's clock is ahead of the senders'
        self.lag = chance.choice([60, 300, 900])
        self.files: dict[str, File] = {}
        self.store: dict[str, bytes] = {}  # parts
        self.manifests: dict[str, manifest.Manifest] = {}
        self.runs: dict[str, manifest.Run] = {}
        self.sequence = 0
        self.compared = 0
        self.keep = chance.choice([86400, 3 * 86400])
        for number in range(chance.randrange(1, 4)):
            self.create(f"m{number}/")

    # The node

    def create(self, key: str) -> None:
        """A metric comes, or returns."""
        chance = self.chance
        layout = chance.choice(
            [
                [(60, 40)],
                [(10, 200), (60, 60)],
                [(60, 33), (300, 24), (600, 18)],
                [(1, 2000), (60, 50), (900, 12)],
                [(60, 60), (120, 45)],
                [(10, 190), (30, 100), (90, 70), (900, 9)],
            ]
        )
        path = self.folder / f"{key[:-1]}.wsp"
        known = self.files.get(key)
        if known and path.exists():
            return
        if known and chance.random() < 0.5:
            layout = known.layout
        whisper.create(str(path), layout, chance.choice([0.0, 0.3, 0.5, 1.0]), chance.choice(METHODS))
        new = File(path, layout, self.clock, self.clock)
        if known:
            new.backups, new.expected, new.recreated = known.backups, known.expected, True
            new.was_ahead = known.was_ahead
            new.is_unsure = known.is_unsure
            new.before = known.before + ([known.expected[1]] if known.expected and not known.is_unsure else [])
            new.layouts = known.layouts + (layout != known.layout)
            if known.expected and chance.random() < 0.3 and layout == known.layout:  # an old copy is put back
                path.write_bytes(chance.choice([*known.backups.values(), known.expected[1]]))
        self.files[key] = new
        self.touch(new)

    @property
    def clock(self) -> int:
        """What the node believes."""
        return self.now + self.skew

    def touch(self, file: File) -> None:
        """The file was written to now."""
        file.mtime = self.clock
        os.utime(file.path, (self.clock, self.clock))

    def delete(self, key: str) -> None:
        """A metric goes."""
        file = self.files[key]
        file.path.unlink(missing_ok=True)

    def write(self, key: str = "", ahead: int = 0) -> None:
        """carbon writes something to some metric."""
        chance = self.chance
        file = self.files[key or chance.choice(list(self.files))]
        if not file.path.exists():
            return
        path = str(file.path)

        def value() -> float:
            kind = chance.random()
            return NAN if kind < 0.03 else float(chance.randrange(5)) if kind < 0.5 else chance.gauss(0, 100)

        kind = chance.random()
        with np.errstate(all="ignore"):
            if ahead:
                whisper.update_many(path, [(self.now + ahead, value())], self.now)
            elif kind < 0.02:
                whisper.setAggregationMethod(path, chance.choice(METHODS), chance.choice([0.0, 0.5, 1.0]))
            elif kind < 0.5:
                whisper.update(path, value(), self.now, self.now)
                file.last = self.now
            elif kind < 0.65:  # late
                whisper.update(path, value(), self.now - chance.randrange(self.lag), self.now)
            elif kind < 0.75 and file.last > self.now - self.lag:  # rewritten
                whisper.update(path, value(), file.last, self.now)
            elif kind < 0.85:  # ahead
                whisper.update_many(path, [(self.now + chance.randrange(self.lag), value())], self.now)
            else:  # a batch out of carbon's cache
                times = [self.now - chance.randrange(self.lag) for _ in range(chance.randrange(1, 12))]
                whisper.update_many(path, [(time, value()) for time in times], self.now)
        self.touch(file)

    def live(self, writes: int) -> None:
        """Time passes, with some writes."""
        for _ in range(self.chance.randrange(writes)):
            self.now += self.chance.choice([0, 1, 5, 30, 60, 90])
            self.write()

    # What the tool does

    def backup(self) -> None:
        """One run of backup, carbon and increments beside it."""
        chance = self.chance
        begin, stamp, uptime = self.clock, self.stamp(), self.now - EPOCH
        after = max(self.manifests, default="")
        unconfirmed, lost, last = [], chance.random() < 0.1, 0
        run = manifest.Run(
            stamp=stamp,
            node=NODE,
            prefix=PREFIX,
            begin=begin,
            boot="boot",
            uptime=uptime,
            end=begin,
            status=1,
            is_complete=False,
            after_increment=after,
        )
        some = tuple(key[:-1] for key in self.files if chance.random() < 0.5)
        if some and chance.random() < 0.05:
            run = replace(run, is_partial=True, metrics=some)
        elif some and chance.random() < 0.05:
            run = replace(run, exclude=some)
        self.runs[stamp] = manifest.read_run(run.to_json())
        killed_at = chance.choice(list(self.files)) if chance.random() < 0.05 else ""
        for key, file in list(self.files.items()):
            if key == killed_at:
                lost = True
                break
            self.live(4)
            if (key[:-1] in some) == bool(run.exclude) and (run.metrics or run.exclude):
                continue
            if chance.random() < 0.1:
                self.increment()
            self.now += 1
            if chance.random() < 0.1 or not file.path.exists():
                unconfirmed.append(key)
                continue
            if chance.random() < 0.05:  # by a sender whose clock is ahead
                self.write(key, chance.choice([7200, 86400]))
                file.was_ahead = True
            content = file.path.read_bytes()
            newest = max(file.backups, default="")
            if not newest or file.backups[newest] != content:
                given = next_stamp(moment(self.clock), newest)
                last = max(last, seconds(given))
                file.backups[given] = content
                file.recreated, file.before = False, []  # an old copy that is found unchanged stays one
            # A stamp that is not the moment of reading leaves doubt about an increment at the same time.
            file.is_unsure = max(file.backups) > stamp_of(moment(self.clock))
            self.sequence += 1
            file.expected = (self.sequence, content)
            if chance.random() < 0.04:
                unconfirmed.append(key)  # retention's guard kept an older one
            if chance.random() < 0.1:  # within the same second
                self.write(key)
        if not lost:
            self.now += chance.randrange(3)
            self.runs[stamp] = manifest.read_run(
                replace(
                    run,
                    end=self.clock,
                    last_stamp=last,
                    files=len(self.files),
                    status=1 if unconfirmed else 0,
                    is_complete=True,
                    unconfirmed=None if chance.random() < 0.02 else tuple(unconfirmed),
                ).to_json()
            )
        self.retain()

    def stamp(self) -> str:
        return next_stamp(moment(self.clock), max([*self.manifests, *self.runs], default=""))

    def increment(self) -> None:
        """One run of increment, carbon beside it; killed at times."""
        chance = self.chance
        now = window.Now(self.clock, "boot", self.now - EPOCH)
        chosen = window.choose(self.manifests.values(), self.runs.values(), now, NODE, PREFIX, (), self.lag)
        if chosen is None:
            return
        stamp = self.stamp()
        after = max([run.stamp for run in self.runs.values() if run.is_complete], default="")
        seen: dict[str, tuple[int, bytes]] = {}
        failed, records, points = [], [], 0
        whole = 0
        for key in sorted(self.files):
            file = self.files[key]
            self.live(3)
            if not file.path.exists():
                continue
            self.sequence += 1
            since = chosen.since_of(key)
            if file.mtime < since:
                seen[key] = (self.sequence, file.path.read_bytes())
                continue
            if chance.random() < 0.08:
                failed.append(key)
                continue
            is_whole = file.born >= chosen.begin_of(key) and whole < 2
            whole += is_whole
            taken = record_of(key, self.read(file, since, is_whole))
            found = taken._replace(version=min(file.mtime, self.clock), read=self.clock)
            content = record.encode(found)
            assert record.decode(content) == found
            records.append((key, found.points, content))
            points += found.points
            seen[key] = (self.sequence, file.path.read_bytes())
        self.live(3)
        if chance.random() < 0.1:
            return  # killed
        parts = []
        for each, content in part.parts_of(part.frames_of(records)):
            self.store[manifest.increment_key(stamp, each.name)] = content
            parts.append(each)
        made = manifest.Manifest(
            stamp=stamp,
            node=NODE,
            prefix=PREFIX,
            begin=now.time,
            boot=now.boot,
            uptime=now.uptime,
            end=self.clock,
            files=len(self.files),
            since=chosen.since,
            lag=self.lag,
            reference=chosen.reference,
            reference_files=chosen.reference_files,
            after_run=after,
            records=len(records),
            all_records=len(records),
            points=points,
            owed=window.still_owed(chosen, failed, (), set(seen) | set(failed), now.time).window,
            parts=tuple(parts),
        )
        self.manifests[stamp] = manifest.read_manifest(made.to_json())
        for key, (sequence, content) in seen.items():
            file = self.files[key]
            if file.expected is None or file.expected[0] < sequence:
                file.expected = (sequence, content)
                file.is_unsure = bool(self.skew)

    def read(self, file: File, since: int, is_whole: bool) -> fresh.Raw:
        """The file's fresh slots, read in one way or the other."""
        fd = os.open(file.path, os.O_RDONLY)
        try:
            until = self.clock + self.lag
            taken, absent = None, list[int]()
            if not is_whole and self.chance.random() < 0.7:
                status = os.fstat(fd)
                reader = quick.Quick(since, until - int(time.time()))
                taken = reader.read(fd, status.st_size, status.st_mtime_ns, absent)
                if taken is not None:
                    return taken
            taken = fresh.read_whole(fd) if is_whole else fresh.read_fresh(fd, since, until, absent=absent)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock is free again
            return taken
        finally:
            os.close(fd)

    def retain(self) -> None:
        """Delete increments as retention has it."""
        for judged in retention.judge(list(self.manifests.values()), list(self.runs.values()), self.clock, self.keep):
            old = judged.increment
            held: list[tuple[str, int, bytes]] = []
            if judged.doubtful is not None:
                for key, content in reader.read(old, self.fetch(old.stamp), sorted(judged.doubtful.entries)):
                    if judged.doubtful.cover(key.decode()):
                        held.append((key.decode(), record.decode(content).points, content))
            action = retention.settle(judged, len(held), self.clock, self.keep, 10**9)
            if action is retention.Action.DELETE:
                del self.manifests[old.stamp]
                for file in self.files.values():
                    file.before = []  # docs/limits.md: what a dead disk had is restored within these days
            elif action is retention.Action.REWRITE:
                parts = []
                for each, content in retention.rewritten_parts(old, held):
                    self.store[manifest.increment_key(old.stamp, each.name)] = content
                    parts.append(each)
                made = retention.rewritten(old, parts, sum(points for _, points, _ in held))
                self.manifests[old.stamp] = manifest.read_manifest(made.to_json())

    def fetch(self, stamp: str) -> reader.Fetch:
        return lambda name, offset, size: self.store[manifest.increment_key(stamp, name)][offset : offset + size]

    # What must hold

    def images(self) -> dict[str, image.Image | None]:
        """What a restore gives."""
        made = [self.manifests[stamp] for stamp in sorted(self.manifests)]

        def fail(error: Exception) -> None:
            raise error

        streams = [reader.read(one, self.fetch(one.stamp)) for one in made]
        shares = {metric.key: metric.shares for metric in merge.join(streams, fail)}
        images = {}
        for key, file in self.files.items():
            stamp = max(file.backups, default="")
            records = [(record.decode(content), made[number]) for number, content in shares.get(key, [])]
            orders = order.orders(records, stamp, list(self.runs.values()), math.inf)
            found = order.Sorted.by(orders, [each for each, _ in records])
            file.is_blurred = file.was_ahead and (bool(found.earlier) or any(each.is_whole for each in found.later))
            laid = image.lay(file.backups.get(stamp), found, 10**7)
            file.is_filled = bool(found.unsure) or bool(laid and laid.earlier)
            file.has_earlier = bool(found.earlier)
            for earlier in laid.earlier if laid else ():
                content = bytearray(laid.content)
                image.heal_in(content, bytearray(earlier), self.now)
                laid = laid._replace(content=bytes(content))
            images[key] = laid
        return images

    def compare(self) -> list[str]:
        """What is wrong about what a restore gives now."""
        wrong = []
        for key, made in self.images().items():
            file = self.files[key]
            if file.expected is None or file.is_unsure:
                continue
            self.compared += 1
            expected = file.expected[1]
            if made is None:
                wrong.append(f"{key} nothing")
            elif not made.is_based:
                if file.backups:
                    wrong.append(f"{key} has no base")
            elif (
                not (file.recreated or file.is_filled or file.is_blurred)
                and file.path.exists()
                and not are_same(expected, made.content)
            ):
                wrong.append(f"{key} differs: {differences(expected, made.content)}")
            elif file.layouts > 1 and parse_header(made.content).archives != parse_header(expected).archives:
                if lost := missing_elsewhere(expected, made.content, self.now):  # an earlier layout has more room
                    wrong.append(f"{key} lacks {lost} in an earlier layout")
            elif file.is_filled and file.layouts == 1:  # its points are all there, of the newest maybe an earlier value
                has = points_of(made.content)
                lost = [(number, t) for number, t in missing(expected, made.content, 1) if t not in has[number]]
                if lost:
                    wrong.append(f"{key} lacks {lost}")
            elif lost := missing(expected, made.content, file.layouts):
                wrong.append(f"{key} lacks {lost}")
            else:
                layout = parse_header(expected).archives
                lacks = [
                    missing(old, made.content, 1, expected)
                    for old in file.before
                    if parse_header(old).archives == layout and not (file.was_ahead or file.has_earlier)
                ]
                lacks = [[(number, t) for number, t in lost if t <= self.now] for lost in lacks]  # not what was ahead
                wrong += [f"{key} lacks {lost} of what it held before it was made anew" for lost in lacks if lost]
        return wrong


def record_of(key: str, raw: fresh.Raw) -> record.Record:
    (made,) = slots.encode([(key, raw)])
    assert made.content is not None
    return record.decode(made.content)


def moment(time: int) -> datetime:
    return datetime.fromtimestamp(time, UTC)


def points_of(content: bytes) -> list[dict[int, bytes]]:
    """Each archive's points in place, their values as bytes."""
    archives = []
    for offset, step, count in parse_header(content).archives:
        slots = list(struct.iter_unpack(">L8s", content[offset : offset + 12 * count]))
        base = slots[0][0]
        archives.append(
            {t: v for i, (t, v) in enumerate(slots) if base and t and t % step == 0 and (t - base) // step % count == i}
        )
    return archives


def are_same(expected: bytes, made: bytes) -> bool:
    """Whether they are equal, but that an archive may begin at another of its slots.

    That is so where its first point came to no increment but one that did not read its slot 0.
    """
    archives = parse_header(expected).archives
    end = archives[0].offset
    if len(expected) != len(made) or expected[:end] != made[:end]:
        return False
    for (offset, _, count), wanted, has in zip(archives, points_of(expected), points_of(made), strict=True):
        if expected[offset : offset + 4] == made[offset : offset + 4]:
            if expected[offset : offset + 12 * count] != made[offset : offset + 12 * count]:
                return False
        elif wanted != has:
            return False
    return True


def missing(expected: bytes, made: bytes, layouts: int, later: bytes | None = None) -> list[tuple[int, int]]:
    """Points of `expected` that `made` lacks, as (archive, time), unless something newer is in their place.

    Where the metric had several layouts, its coarser archives were aggregated anew, and healing fills where there is
    NaN.  `later` may have another value.
    """
    if parse_header(expected).archives != parse_header(made).archives:
        return [(-1, 0)]
    lost = []
    for number, (archive, wanted, has) in enumerate(
        zip(parse_header(made).archives, points_of(expected), points_of(made), strict=True)
    ):
        span = archive.step * archive.points
        newer = {t % span: t for t in sorted(has)}
        if number and layouts > 1:
            continue
        known = points_of(later)[number] if later else {}
        lost += [
            (number, t)
            for t, v in wanted.items()
            if has.get(t) != v and newer.get(t % span, 0) <= t and t not in known and not (layouts > 1 and is_nan(v))
        ]
    return lost


def is_nan(value: bytes) -> bool:
    return math.isnan(struct.unpack(">d", value)[0])


def missing_elsewhere(expected: bytes, made: bytes, now: int) -> list[int]:
    """Times within their retention in the finest archive of `expected` for which `made`, of another layout, has none.

    The value is compared where `made` has the same step; a finer archive may hold finer points of that time.
    """
    _, step, count = parse_header(expected).archives[0]
    archives = list(zip(parse_header(made).archives, points_of(made), strict=True))
    same = next((has for archive, has in archives if archive.step == step), None)
    finer = [(archive.step, has) for archive, has in archives if archive.step < step]
    lost = []
    for t, value in points_of(expected)[0].items():
        if not now - step * count < t <= now or is_nan(value):
            continue
        is_there = same is not None and same.get(t) == value
        if not is_there and not any(u in has for fine, has in finer for u in range(t // fine * fine, t + step, fine)):
            lost.append(t)
    return lost


def differences(expected: bytes, made: bytes) -> str:
    if len(expected) != len(made):
        return "size"
    for number, (offset, _, count) in enumerate(parse_header(expected).archives):
        for slot in range(count):
            at = offset + 12 * slot
            if expected[at : at + 12] != made[at : at + 12]:
                return f"archive {number} slot {slot}: {expected[at : at + 12].hex()} {made[at : at + 12].hex()}"
    return "header"


def history(folder: Path, seed: int) -> tuple[World, list[str]]:
    """One random history; what was wrong first."""
    chance = random.Random(seed)
    world = World(folder, chance)
    if chance.random() < 0.5:
        world.now += 2 * world.lag
    if chance.random() < 0.9:
        world.backup()
    for _ in range(chance.randrange(10, 40)):
        kind = chance.random()
        if kind < 0.45:
            world.live(25)
        elif kind < 0.53:
            world.now += chance.choice([600, 3600, 86400, 3 * 86400])
        elif kind < 0.58:
            world.delete(chance.choice(list(world.files)))
        elif kind < 0.65:
            world.create(f"m{chance.randrange(4)}/")
        elif kind < 0.67:
            world.was_set = True
            world.skew = chance.choice([-86400, -600, 600, 86400]) if not world.skew else 0
            for file in world.files.values():  # one that is never written again keeps a time that tells nobody of it
                if file.path.exists():
                    world.touch(file)
        elif kind < 0.77:
            world.backup()
            if not world.skew and (wrong := world.compare()):
                return world, wrong
        else:
            world.increment()
            if not world.skew and (wrong := world.compare()):
                return world, wrong
    return world, []


__all__ = ["Names", "World", "history", "record_of"]
