"""Healing: against the oracle over generated pairs, and the cases an operator would name."""

from __future__ import annotations

import io
import math
import random
import struct
from pathlib import Path

import fill_oracle
import pytest
import whisper
from conftest import budget
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from whisperbackup.whisper import healing
from whisperbackup.whisper.format import CorruptFile, parse_header
from whisperbackup.whisper.healing import Healing, heal

EXAMPLES = budget(500)
NOW = 1_700_000_000 - 1_700_000_000 % 3600 + 1234

Schema = list[tuple[int, int]]


# Files made of bytes


def make_file(schema: Schema, rings: list[list[tuple[int, float]]], method: int = 1, xff: float = 0.5) -> bytes:
    """A whisper file whose slots are those of `rings`."""
    offset = 16 + 12 * len(schema)
    head = struct.pack(">2LfL", method, min(max(s * n for s, n in schema), 2**32 - 1), xff, len(schema))
    for step, points in schema:
        head += struct.pack(">3L", offset, step, points)
        offset += 12 * points
    return head + b"".join(struct.pack(">Ld", *slot) for ring in rings for slot in ring)


def slots_of(content: bytes) -> list[list[tuple[int, float]]]:
    return [
        list(struct.iter_unpack(">Ld", content[a.offset : a.offset + 12 * a.points]))
        for a in parse_header(content).archives
    ]


def apply(content: bytes, healing: Healing) -> bytes:
    healed = bytearray(content)
    for offset, piece in healing.writes:
        healed[offset : offset + len(piece)] = piece
    assert len(healed) == len(content)
    return bytes(healed)


def interrupted(content: bytes, healing: Healing, page: int) -> list[bytes]:
    """The file as each write leaves it, and a write that crosses page boundaries at each of them."""
    states = []
    healed = bytearray(content)
    for offset, piece in healing.writes:
        begin = offset
        while begin < offset + len(piece):
            end = min(offset + len(piece), (begin // page + 1) * page)
            healed[begin:end] = piece[begin - offset : end - offset]
            states.append(bytes(healed))
            begin = end
    return states


def same_bits(one: float, other: float) -> bool:
    return struct.pack(">d", one) == struct.pack(">d", other)


# Generated pairs


class Pair:
    """A live file and a backup of about the same metric, with everything in them that can be awkward."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = random.Random(seed)
        self.now = rng.choice([NOW, NOW + rng.randrange(10**4), rng.randrange(1, 5000), 2**32 - 1 - rng.randrange(300)])
        schema = self.schema()
        other = schema if rng.random() < 0.65 else self.altered(schema) if rng.random() < 0.5 else self.schema()
        self.method = rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 1, 2, 9])
        self.xff = rng.choice([0, 0.5, 1, 0.1, 1 / 3, 0.9, rng.random(), 0, 0.5])
        small = [0.0, 1.0, 2.0, 3.0, 5.0]
        self.palette = rng.choice([[1.0], [0.0, 1.0], small, [*small, -0.0, -1.0, -5.0, 0.5], [0.0, -0.0], [], []])
        self.wild = rng.random() < 0.05
        self.truth: dict[tuple[int, int], float] = {}
        self.agreeing = rng.random() < 0.7
        backup_now = self.now - rng.choice([0, 0, rng.randrange(60), -rng.randrange(30), rng.randrange(400)])
        self.live = self.file(schema, self.now, rng.choice([0, 0.1, 0.5, 0.8, 0.95, 1]))
        self.backup = self.file(other, backup_now, rng.choice([0.2, 0.7, 0.95, 1, 1]))

    def schema(self) -> Schema:
        rng = self.rng
        step, schema = rng.choice([1, 1, 2, 3, 5, 7, 10, 60]), []
        for _ in range(rng.choice([1, 2, 2, 2, 3, 3, 4])):
            schema.append((step, rng.choice([1, 2, 3, 5, 8, 12, rng.randrange(1, 30)])))
            step = step * rng.choice([2, 2, 3, 4, 5]) if rng.random() < 0.85 else step + rng.randrange(1, 2 * step + 1)
        return schema

    def altered(self, schema: Schema) -> Schema:
        rng = self.rng
        schema = [(s, max(1, n + rng.randrange(-4, 12))) for s, n in schema if rng.random() < 0.7 or len(schema) == 1]
        return schema or self.schema()

    def value(self) -> float:
        rng = self.rng
        if self.wild and rng.random() < 0.2:
            return rng.choice([math.inf, -math.inf, 1e300, -1e300, 5e-324, 1e-300])
        return rng.choice(self.palette) if self.palette else round(rng.uniform(-9, 99), rng.choice([0, 2, 12]))

    def ring(self, step: int, points: int, now: int, density: float, finer: dict[int, float], fine: int):
        rng = self.rng
        newest = now - now % step
        base = newest - step * rng.randrange(3 * points)
        if rng.random() < 0.02:
            base += rng.randrange(step)  # a base that is no multiple of the step
        ring = [(0, 0.0)] * points
        held: dict[int, float] = {}
        present = rng.random() < density
        sticky = rng.choice([0, 0.5, 0.9, 0.97])
        aggregating = finer and rng.random() < 0.8
        for t in range(newest - step * (points - 1), newest + 1, step):
            if rng.random() >= sticky:
                present = rng.random() < density
            slot = (t - base) // step % points
            below = [finer[u] for u in sorted(finer) if t <= u < t + step] if aggregating else []
            if below and rng.random() < 0.95 and len(below) >= self.xff * max(1, step // fine):
                value = whisper.aggregate(
                    whisper.aggregationTypeToMethod.get(self.method, "average"), below, [*below, *[None] * 1]
                )
                if self.method == 6:
                    value = sum(below) / max(1, step // fine)
                present = rng.random() < 0.9
            elif self.agreeing:
                value = self.truth.setdefault((step, t), self.value())
            else:
                value = self.value()
            chance = rng.random()
            if chance < 0.01:
                t += step * points  # stamped ahead of now
            elif chance < 0.015:
                t = rng.choice([t + 2 * step * points, t + 1, t - step, 2**32 - 1, 1, t + step])
            elif chance < 0.03:
                value = math.nan
            elif not present:
                t -= step * points * rng.choice([1, 1, 2])
                if rng.random() < 0.5:
                    t = 0
            if 0 < t < 2**32:
                ring[slot] = t, value
                if not math.isnan(value):
                    held[t] = value
        if rng.random() < 0.04:
            ring[0] = (0, 0.0)
        elif not ring[0][0] and rng.random() < 0.9 and 0 < base < 2**32:
            ring[0] = base, self.value()
        if rng.random() < 0.15:
            for slot in rng.sample(range(points), rng.randrange(points + 1)):  # lost after it was aggregated
                held.pop(ring[slot][0], 0)
                ring[slot] = (ring[slot][0] - step * points if slot == 0 else 0, 0.0)
                if ring[slot][0] < 0:
                    ring[slot] = (0, 0.0)
        return ring, held

    def file(self, schema: Schema, now: int, density: float) -> bytes:
        rng = self.rng
        rings = []
        finer: dict[int, float] = {}
        fine = 1
        for step, points in schema:
            if rng.random() < 0.06:
                rings.append([(0, 0.0)] * points)
                continue
            level = density if rng.random() < 0.7 else rng.random()
            ring, finer = self.ring(step, points, now, level, finer, fine)
            fine = step
            rings.append(ring)
        return make_file(schema, rings, self.method, self.xff)


def check_pair(live: bytes, backup: bytes, now: int, interruptions: int = 6) -> None:
    result = heal(live, backup, now)
    healed = apply(live, result)
    oracle = fill_oracle.Oracle(live, backup, now)
    expected = oracle.run()
    check_against_oracle(live, now, result, healed, expected)
    assert heal(healed, backup, now)[:2] == ([], 0)
    states = interrupted(live, result, healing.PAGE)
    for state in random.Random(len(states)).sample(states, min(interruptions, len(states))):
        check_interrupted(live, backup, now, healed, state, oracle, expected)


def check_interrupted(
    live: bytes,
    backup: bytes,
    now: int,
    healed: bytes,
    state: bytes,
    oracle: fill_oracle.Oracle,
    expected: fill_oracle.Expected,
) -> None:
    """A killed heal leaves a valid file with every held point; run again it completes; then nothing is left to do."""
    header = parse_header(state)
    assert header == parse_header(live)
    again = apply(state, heal(state, backup, now))
    assert heal(again, backup, now)[:2] == ([], 0)
    finest = expected.levels[0]
    for content in (state, again):
        slots = slots_of(content)[0]
        for t, value in finest.held.items():
            stamp, found = slots[finest.ring.slot_of(t)]
            assert stamp == t and same_bits(found, value)
    for number, (level, wholes) in enumerate(zip(expected.levels, slots_of(healed), strict=True)):
        if not level.after:
            continue
        now_holds = fill_oracle.Ring(again, header.archives[number], now)
        below: fill_oracle.Points | None = None
        for t in {*level.window, *level.held}:
            slot = level.ring.slot_of(t)
            stamp, found = now_holds.slots[slot]
            if (stamp, struct.pack(">d", found)) == (wholes[slot][0], struct.pack(">d", wholes[slot][1])):
                continue
            assert number, "the finest archive is what an uninterrupted run makes it"
            assert stamp == t, (number, slot, stamp, t)
            if below is None:
                below = fill_oracle.Ring(again, header.archives[number - 1], now).points()
            anew = oracle.aggregate(below, t, t + level.step, header.archives[number - 1].step)
            allowed = [level.held.get(t), level.finds.get(t), anew]
            assert any(one is not None and math.isclose(found, one) for one in allowed), (number, t, found, allowed)


def check_against_oracle(
    live: bytes, now: int, healing: Healing, healed: bytes, expected: fill_oracle.Expected
) -> None:
    header = parse_header(live)
    assert healed[: header.archives[0].offset] == live[: header.archives[0].offset]
    assert healing.points == expected.points
    for number, (slots, ring) in enumerate(zip(expected.slots, slots_of(healed), strict=True)):
        for slot, (wanted, found) in enumerate(zip(slots, ring, strict=True)):
            assert found[0] == wanted[0], (number, slot, found, wanted)
            if not same_bits(found[1], wanted[1]):
                assert slot in expected.aggregated[number], (number, slot, found, wanted)
                assert math.isclose(found[1], wanted[1], rel_tol=1e-12), (number, slot, found, wanted)
    finest = expected.levels[0]
    before, after = slots_of(live)[0], slots_of(healed)[0]
    for t in finest.held:
        slot = finest.ring.slot_of(t)
        assert before[slot][0] == after[slot][0] == t and same_bits(before[slot][1], after[slot][1])
    if header.aggregation in whisper.aggregationTypeToMethod:
        for level in expected.levels:
            check_fetch(healed, level, now)


def check_fetch(healed: bytes, level: fill_oracle.Level, now: int) -> None:
    """whisper reads in each archive what is held there now, and nothing else."""
    steps = [a.step for a in parse_header(healed).archives]
    ring = slots_of(healed)[steps.index(level.step)]
    if not ring[0][0]:
        return  # whisper takes it for empty
    fetched = whisper.file_fetch(io.BytesIO(healed), now - level.ring.span, now, now, str(level.step))
    (begin, end, step), values = fetched
    read = {t: v for t, v in zip(range(begin, end, step), values, strict=True) if t > 0 and v is not None}
    wanted = {t: v for t, v in level.after.items() if begin <= t < end}
    assert {t for t, v in read.items() if not math.isnan(v)} == set(wanted)
    for t, value in wanted.items():
        assert read[t] == value or math.isclose(read[t], value, rel_tol=1e-12)


@pytest.mark.parametrize("page", [4096, 64])  # files here are small: with 64, too, many records cross a boundary
@settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate])  # a seed does not shrink
@given(seed=st.integers(0, 2**64 - 1))
def test_generated_pairs_heal_as_the_oracle_says_and_survive_interruption(page: int, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(healing, "PAGE", page)
        pair = Pair(seed)
        check_pair(pair.live, pair.backup, pair.now)


# Cases with a name, in files that whisper made.  NOW is 20 minutes and 34 seconds past an hour.

MINUTE = NOW - NOW % 60
HOUR = NOW - NOW % 3600
DAY_SCHEMA = [(60, 60), (300, 48)]


def whisper_file(
    folder: Path, points: dict[int, float], schema: Schema = DAY_SCHEMA, method: str = "average", xff: float = 0.5
) -> bytes:
    """What carbon would have left: created by whisper, and each point written in turn at its time."""
    path = folder / "metric.wsp"
    path.unlink(missing_ok=True)
    whisper.create(str(path), list(schema), xff, method)
    for t in sorted(points):
        whisper.update(str(path), points[t], t, now=t)
    return path.read_bytes()


def read(content: bytes, step: int, now: int = NOW) -> dict[int, float]:
    """What whisper.fetch has in the archive of that step, over its whole range."""
    span = next(a.step * a.points for a in parse_header(content).archives if a.step == step)
    (begin, end, _), values = whisper.file_fetch(io.BytesIO(content), now - span, now, now, str(step))
    return {t: v for t, v in zip(range(begin, end, step), values, strict=True) if v is not None}


def ramp(begin: int, end: int, step: int = 60) -> dict[int, float]:
    return {t: float(t - begin) / step for t in range(begin, end, step)}


def without(points: dict[int, float], *gone: int) -> dict[int, float]:
    return {t: v for t, v in points.items() if t not in gone}


def healed_file(live: bytes, backup: bytes, now: int = NOW) -> bytes:
    check_pair(live, backup, now, interruptions=100)
    return apply(live, heal(live, backup, now))


@pytest.mark.parametrize(
    "gone",
    [
        [MINUTE - 600],
        list(range(MINUTE - 1800, MINUTE - 600, 60)),
        list(range(MINUTE - 300, MINUTE + 60, 60)),
        list(range(MINUTE - 3540, MINUTE - 3000, 60)),
        [MINUTE],
        [MINUTE - 3540],
        list(range(MINUTE - 3540, MINUTE + 60, 120)),
    ],
    ids=["single", "consecutive", "trailing", "leading", "newest", "oldest", "every other"],
)
def test_gaps_are_filled(tmp_path: Path, gone: list[int]) -> None:
    points = ramp(MINUTE - 3540, MINUTE + 60)
    backup = whisper_file(tmp_path, points)
    healed = healed_file(whisper_file(tmp_path, without(points, *gone)), backup)
    assert read(healed, 60) == points
    reached = range(HOUR - 2100, MINUTE, 300)  # a slot that straddles the end of the finer archive keeps what it holds
    assert {t: read(healed, 300)[t] for t in reached} == {t: read(backup, 300)[t] for t in reached}


def test_identical_files_need_no_writes(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, ramp(MINUTE - 3540, MINUTE + 60))
    assert heal(backup, backup, NOW)[:2] == ([], 0)


def test_an_empty_file_becomes_the_backup_and_keeps_its_header(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, {t: v / 7 for t, v in ramp(HOUR - 4 * 3600, HOUR).items()})
    live = whisper_file(tmp_path, {}, xff=0.25)
    healed = healed_file(live, backup)
    assert healed[:40] == live[:40] != backup[:40]
    for step in (60, 300):
        assert read(healed, step) == read(backup, step) != {}


def test_every_slot_of_an_empty_file_is_a_point_to_count(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, ramp(HOUR, MINUTE + 60))
    assert heal(whisper_file(tmp_path, {}), backup, NOW).points == len(read(backup, 60)) + len(read(backup, 300)) == 25


@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_a_zero_is_a_value_and_is_not_overwritten(tmp_path: Path, zero: float) -> None:
    t = MINUTE - 600
    backup = whisper_file(tmp_path, {t: 7.0}, xff=0)
    healed = healed_file(whisper_file(tmp_path, {t: zero}, xff=0), backup)
    assert same_bits(read(healed, 60)[t], zero)


def test_a_zero_of_the_backup_fills_a_gap(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, {MINUTE - 600: -0.0, MINUTE - 540: 0.0})
    healed = read(healed_file(whisper_file(tmp_path, {MINUTE: 1.0}), backup), 60)
    assert same_bits(healed[MINUTE - 600], -0.0) and same_bits(healed[MINUTE - 540], 0.0)


def test_what_the_live_file_says_otherwise_stays(tmp_path: Path) -> None:
    points = ramp(MINUTE - 3540, MINUTE + 60)
    other = {t: v + 0.5 for t, v in points.items() if t % 180}
    healed = healed_file(whisper_file(tmp_path, other), whisper_file(tmp_path, points))
    assert read(healed, 60) == {t: other.get(t, v) for t, v in points.items()}


def test_newest_points_survive_a_backup_of_an_earlier_lap(tmp_path: Path) -> None:
    yesterday = ramp(MINUTE - 5400, MINUTE - 1800)
    today = {t: 1000.0 + t % 7 for t in range(MINUTE - 1200, MINUTE + 60, 60)}
    healed = read(healed_file(whisper_file(tmp_path, today), whisper_file(tmp_path, yesterday)), 60)
    assert healed == {t: v for t, v in yesterday.items() if t > NOW - 3600} | today


def test_a_now_that_is_old_loses_no_newer_point(tmp_path: Path) -> None:
    points = ramp(MINUTE - 7000 // 60 * 60, MINUTE - 600)
    newer = dict.fromkeys(range(MINUTE - 600, MINUTE + 60, 60), 500.0)
    live = whisper_file(tmp_path, newer)
    healed = healed_file(live, whisper_file(tmp_path, points), NOW - 900)
    assert newer.items() <= read(healed, 60).items()


def test_points_ahead_of_now_are_held(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, ramp(MINUTE - 3540, MINUTE + 60))
    live = whisper_file(tmp_path, {MINUTE + 60 * k: 9.0 for k in range(1, 30)})
    healed = healed_file(live, backup)
    assert all(read(healed, 60, NOW + 1800)[MINUTE + 60 * k] == 9.0 for k in range(1, 30))
    assert read(healed, 60) == {t: v for t, v in read(backup, 60).items() if t > MINUTE - 1800 - 60}


def test_a_nan_is_a_gap(tmp_path: Path) -> None:
    points = ramp(MINUTE - 3540, MINUTE + 60)
    live = whisper_file(tmp_path, points | {MINUTE - 600: math.nan})
    assert read(healed_file(live, whisper_file(tmp_path, points)), 60) == points


def test_a_nan_of_the_backup_fills_nothing(tmp_path: Path) -> None:
    live = whisper_file(tmp_path, {MINUTE: 1.0})
    assert heal(live, whisper_file(tmp_path, {MINUTE - 60: math.nan}), NOW)[:2] == ([], 0)


METHODS = [whisper.aggregationTypeToMethod[number] for number in range(1, 9) if number != 6]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("xff", [0, 0.5, 1])
def test_an_outage_within_a_slot_gives_the_aggregate_of_both_halves(tmp_path: Path, method: str, xff: float) -> None:
    schema = [(60, 120), (300, 60), (900, 40)]
    points = {t: (-1) ** k * (k % 7 + 0.1) for k, t in enumerate(range(MINUTE - 7140, MINUTE + 60, 60))}
    begin, end = MINUTE - 4000 // 60 * 60, MINUTE - 2580
    live = whisper_file(tmp_path, without(points, *range(begin, end, 60)), schema, method, xff)
    backup = whisper_file(tmp_path, {t: v for t, v in points.items() if t < end + 420}, schema, method, xff)
    whole = whisper_file(tmp_path, points, schema, method, xff)
    healed = healed_file(live, backup)
    for step, _ in schema:
        found, wanted = read(healed, step), read(whole, step)
        assert {t: pytest.approx(v, rel=1e-12) for t, v in wanted.items()} == found


def one_slot(fine: dict[int, float], coarse: float | None, method: int) -> bytes:
    """A file with minutes, and of the slot of ten minutes at HOUR the value `coarse` (None: empty)."""
    minutes = [(HOUR + 60 * k, fine[k]) if k in fine else (0, 0.0) for k in range(20)]
    # A point an hour ago is the ring's base, so the slot in question is another than slot 0.
    rest = [(0, 0.0)] * 5 + [(HOUR, coarse) if coarse is not None else (0, 0.0)]
    return make_file([(60, 20), (600, 10)], [minutes, [(HOUR - 3600, 1.0), *rest, *[(0, 0.0)] * 3]], method, 0)


RISING = {k: 100.0 + k for k in range(10)}  # first: 100, avg_zero: 104.5


@pytest.mark.parametrize(("live", "backup", "expected"), [
    (100.0, None, 100.0),  # as it is, as go-whisper's `first` made it
    (104.5, None, 104.5),  # … or as whisper's avg_zero did
    (None, 100.0, 100.0),  # the backup's value
    (42.0, 100.0, 42.0),
    (None, None, None),
])  # fmt: skip
def test_what_may_be_first_or_avg_zero_is_not_aggregated_anew(
    live: float | None, backup: float | None, expected: float | None
) -> None:
    """Both have the number 6, go-whisper's and whisper's."""
    gap = {k: v for k, v in RISING.items() if k not in (3, 4)}
    healed = healed_file(one_slot(gap, live, 6), one_slot(RISING, backup, 6), HOUR + 900)
    assert read(healed, 60, HOUR + 900) == {HOUR + 60 * k: v for k, v in RISING.items()}
    assert read(healed, 600, HOUR + 900).get(HOUR) == expected


def test_where_first_and_avg_zero_come_to_the_same_it_is_aggregated_anew() -> None:
    level = dict.fromkeys(range(10), 7.0)
    live = one_slot({k: v for k, v in level.items() if k > 5}, 2.8, 6)
    healed = healed_file(live, one_slot(level, None, 6), HOUR + 900)
    assert read(healed, 600, HOUR + 900)[HOUR] == 7.0


def test_what_may_be_first_or_avg_zero_is_not_aggregated_from_another_layout() -> None:
    minutes = [(HOUR + 60 * k, v) for k, v in RISING.items()]
    backup = make_file([(60, 20)], [minutes + [(0, 0.0)] * 10], 6, 0)
    live = make_file([(600, 10)], [[(HOUR - 600, 1.0)] + [(0, 0.0)] * 9], 6, 0)
    assert read(healed_file(live, backup, HOUR + 900), 600, HOUR + 900) == {HOUR - 600: 1.0}


@pytest.mark.parametrize("method", [0, 9, 1699996800, 2**32 - 1])
def test_a_file_of_an_unknown_aggregation_gets_the_backups_points_and_nothing_is_aggregated(method: int) -> None:
    gap = {k: v for k, v in RISING.items() if k not in (3, 4)}
    healed = healed_file(one_slot(gap, 5.0, method), one_slot(RISING, 100.0, method), HOUR + 900)
    assert slots_of(healed)[0][:10] == [(HOUR + 60 * k, v) for k, v in RISING.items()]
    assert slots_of(healed)[1][6] == (HOUR, 5.0)
    healed = healed_file(one_slot(gap, None, method), one_slot(RISING, 100.0, method), HOUR + 900)
    assert slots_of(healed)[1][6] == (HOUR, 100.0)


def test_a_slow_metric_gets_both_halves_though_its_slots_are_never_complete(tmp_path: Path) -> None:
    points = {t: float(k) for k, t in enumerate(range(HOUR - 2400, HOUR, 120))}
    live = without(points, *range(HOUR - 1200, HOUR - 840, 120))
    backup = {t: v for t, v in points.items() if t < HOUR - 780}
    files = [whisper_file(tmp_path, p, [(60, 120), (600, 40)], xff=0) for p in (live, backup, points)]
    assert read(healed_file(*files[:2]), 600) == read(files[2], 600)


def test_a_coarser_value_richer_than_what_is_left_of_its_points_stays() -> None:
    """Of the ten points that made the average 7 most are lost in both files."""
    t = HOUR
    live = make_file([(60, 20), (600, 10)], [[(t, 1.0)] + [(0, 0.0)] * 19, [(t, 7.0)] + [(0, 0.0)] * 9], xff=0)
    backup = make_file([(60, 20), (600, 10)], [[(t + 60, 2.0)] + [(0, 0.0)] * 19, [(t, 2.0)] + [(0, 0.0)] * 9], xff=0)
    healed = healed_file(live, backup, t + 900)
    assert read(healed, 60, t + 900) == {t: 1.0, t + 60: 2.0}
    assert read(healed, 600, t + 900) == {t: 7.0}


def test_a_restore_over_an_older_copy_aggregates_the_slot_that_the_copy_had_half(tmp_path: Path) -> None:
    points = ramp(HOUR - 3600, HOUR)
    backup = whisper_file(tmp_path, points)
    live = whisper_file(tmp_path, {t: v for t, v in points.items() if t < HOUR - 1620})
    assert read(healed_file(live, backup), 300) == read(backup, 300)


def test_a_sum_of_too_few_points_does_not_appear(tmp_path: Path) -> None:
    live = whisper_file(tmp_path, {HOUR: 1.0}, method="sum", xff=1)
    backup = whisper_file(tmp_path, {HOUR + 60: 1.0}, method="sum", xff=1)
    healed = healed_file(live, backup)
    assert len(read(healed, 60)) == 2 and read(healed, 300) == {}


def test_x_files_factor_is_the_stored_32_bit_float(tmp_path: Path) -> None:
    """3 of 5 points are not enough for 0.6 stored as 0.60000002384."""
    live = whisper_file(tmp_path, {HOUR: 1.0}, xff=0.6)
    backup = whisper_file(tmp_path, {HOUR + 60: 1.0, HOUR + 120: 1.0}, xff=0.6)
    assert read(healed_file(live, backup), 300) == {}


# Other layouts


def test_where_only_the_second_archive_of_the_live_file_reaches_it_is_filled_from_the_finest(tmp_path: Path) -> None:
    points = ramp(HOUR - 7200, HOUR)
    backup = whisper_file(tmp_path, points, [(60, 240)])
    live = whisper_file(tmp_path, {}, [(60, 30), (300, 100)])
    healed = healed_file(live, backup)
    assert read(healed, 60) == {t: v for t, v in points.items() if t > NOW - 1800}
    assert read(healed, 300) == {t: points[t] + 2 for t in range(HOUR - 7200, HOUR, 300)}


def test_a_backup_older_than_its_finest_archive_is_long_is_still_condensed(tmp_path: Path) -> None:
    points = ramp(HOUR - 86400, HOUR - 86400 + 3600)
    healed = healed_file(whisper_file(tmp_path, {}, [(300, 1000)]), whisper_file(tmp_path, points, [(60, 60)]))
    assert read(healed, 300) == {t: points[t] + 2 for t in range(HOUR - 86400, HOUR - 86400 + 3600, 300)}


def test_a_coarser_point_goes_where_nothing_finer_is(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, ramp(HOUR - 7200, HOUR, 300), [(300, 100)])
    live = whisper_file(tmp_path, {HOUR - 1860: 5.0}, [(60, 300), (900, 30)], xff=0)
    healed = healed_file(live, backup)
    assert read(healed, 60) == without(ramp(HOUR - 7200, HOUR, 300), HOUR - 2100) | {HOUR - 1860: 5.0}
    assert read(healed, 900)[HOUR - 6300] == 4.0
    assert read(healed, 900)[HOUR - 2700] == 5.0


def test_steps_that_do_not_divide_each_other_are_resampled(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, ramp(HOUR - 3600, HOUR, 40), [(40, 200)])
    live = whisper_file(tmp_path, {}, [(60, 100)])
    healed = read(healed_file(live, backup), 60)
    assert healed == {t: (0.5 if k % 2 == 0 else 2.0) + k // 2 * 3 for k, t in enumerate(range(HOUR - 3600, HOUR, 60))}


# The ring's base


def test_an_archive_without_base_keeps_what_its_slots_hold() -> None:
    ring = [(0, 0.0)] + [(HOUR + 60 * k, float(k)) for k in range(1, 5)] + [(0, 0.0)] * 5
    full = [(HOUR + 60 * k, 100.0 + k) for k in range(10)]
    now = HOUR + 599
    live = make_file([(60, 10)], [ring])
    healed = healed_file(live, make_file([(60, 10)], [full]), now)
    assert read(healed, 60, now) == {HOUR + 60 * k: float(k) if 0 < k < 5 else 100.0 + k for k in range(10)}
    assert read(live, 60, now) == {}  # whisper took it for empty


def test_a_base_that_gets_no_point_is_a_time_that_nothing_reads() -> None:
    ring = [(0, 0.0)] + [(HOUR + 60 * k, float(k)) for k in range(1, 5)] + [(0, 0.0)] * 5
    now = HOUR + 599
    live = make_file([(60, 10)], [ring])
    healed = healed_file(live, make_file([(60, 10)], [[(0, 0.0)] * 10]), now)
    (base, value), *others = slots_of(healed)[0]
    assert (base, others) == (HOUR - 1200, ring[1:])
    assert math.isnan(value)
    points = {HOUR + 60 * k: float(k) for k in range(1, 5)}
    assert read(healed, 60, now) == points
    longer = make_file([(60, 100)], [[(0, 0.0)] * 100])
    assert read(healed_file(longer, healed, now), 60, now) == points, "nor does a restore into a longer layout"


def test_a_really_empty_archive_begins_with_the_oldest_point(tmp_path: Path) -> None:
    backup = whisper_file(tmp_path, ramp(HOUR, MINUTE))
    healed = healed_file(whisper_file(tmp_path, {}), backup)
    assert [ring[0][0] for ring in slots_of(healed)] == [HOUR, HOUR]


# Headers


@pytest.mark.parametrize("broken", [b"", b"x", b"\0" * 40, b"\xff" * 400, b"whisper_compressed" + b"\0" * 100])
def test_a_broken_header_is_said(tmp_path: Path, broken: bytes) -> None:
    good = whisper_file(tmp_path, {})
    for pair in [(good, broken), (broken, good), (good, good[:-1]), (good + b"x", good)]:
        with pytest.raises(CorruptFile):
            heal(*pair, NOW)


@pytest.mark.parametrize("now", [1, 59, NOW, 2**32 - 1])
def test_steps_of_any_size_cost_no_more_than_the_file(now: int) -> None:
    schemas: list[Schema] = [[(1, 1), (2**32 - 1, 1)], [(1, 200), (2**31 + 1, 2), (2**32 - 1, 7)], [(2**31, 300)]]
    for one in schemas:
        for other in schemas:
            files = []
            for schema in (one, other):
                stamps = [[max(now - now % s - s * k, 0) for k in reversed(range(n))] for s, n in schema]
                rings = [[(t if t % 3 else 0, 1.0) for t in ring] for ring in stamps]
                files.append(make_file(schema, rings, xff=0))
            healing = heal(files[0], files[1], now)
            assert heal(apply(files[0], healing), files[1], now)[:2] == ([], 0)


# The writes


def test_the_coarsest_archive_is_written_first_and_slot_0_first_in_each(tmp_path: Path) -> None:
    schema = [(60, 500), (300, 500), (900, 200)]
    backup = whisper_file(tmp_path, ramp(MINUTE - 30000, MINUTE), schema)
    live = whisper_file(tmp_path, {}, schema)
    begins = [offset for offset, _ in heal(live, backup, NOW).writes]
    archives = parse_header(live).archives
    number_of = [max(k for k, a in enumerate(archives) if a.offset <= offset) for offset in begins]
    assert number_of == sorted(number_of, reverse=True)
    for number, archive in enumerate(archives):
        assert begins[number_of.index(number)] == archive.offset


def test_only_changed_records_are_written_and_neighbours_in_one_write() -> None:
    ring = [(HOUR + 60 * k, float(k)) for k in range(20)]
    gone = [(t, v) if k not in (3, 4, 5, 9) else (0, 0.0) for k, (t, v) in enumerate(ring)]
    healing = heal(make_file([(60, 20)], [gone]), make_file([(60, 20)], [ring]), HOUR + 1199)
    assert [(offset, len(piece)) for offset, piece in healing.writes] == [(28 + 36, 36), (28 + 108, 12)]
    assert healing.points == 4


def test_a_record_across_a_page_boundary_gets_its_value_before_its_stamp() -> None:
    ring = [(HOUR + 60 * k, float(k + 1)) for k in range(1000)]
    live = make_file([(60, 1000)], [[ring[0]] + [(0, 0.0)] * 999])
    healing = heal(live, make_file([(60, 1000)], [ring]), HOUR + 60000 - 1)
    assert [(offset, len(piece)) for offset, piece in healing.writes] == [
        (40, 8148),
        (8192, 4),
        (8196, 4),
        (8192, 4),
        (8188, 4),
        (8200, 3828),
    ]


def test_a_held_value_across_a_page_boundary_is_never_half_of_another() -> None:
    schema = [(60, 1020), (600, 200)]
    offset = parse_header(make_file(schema, [[(0, 0.0)] * 1020, [(0, 0.0)] * 200])).archives[1].offset
    assert offset % 4096 == 4088  # the boundary is in the middle of slot 0's value
    fine = [(HOUR + 60 * k, float(k)) for k in range(10)] + [(0, 0.0)] * 1010
    coarse = [(0, 0.0)] * 199
    live = make_file(schema, [[*fine[:5], *[(0, 0.0)] * 1015], [(HOUR, 2.0), *coarse]])
    backup = make_file(schema, [fine, [(HOUR, 4.5), *coarse]])
    healing = heal(live, backup, HOUR + 700)
    stages = [read(state, 600, HOUR + 700)[HOUR] for state in interrupted(live, healing, 4096)]
    assert [offset for offset, _ in healing.writes[:4]] == [12284, 12288, 12284, 12280]
    assert math.isnan(stages[0]) and math.isnan(stages[1]) and stages[2] == stages[3] == 4.5
    check_pair(live, backup, HOUR + 700, interruptions=100)
