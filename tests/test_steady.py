"""A clock that is wrong for some runs never makes a deletion earlier, in whichever direction and for how long it is."""

from __future__ import annotations

import json
import os
import struct
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from whisperbackup import main
from whisperbackup.repository.steady import Last, Moment, Steady, judge
from whisperbackup.runtime import clock

DAY = timedelta(days=1)
BEGIN = datetime(2026, 11, 23, 3, tzinfo=UTC)
HEADER = struct.pack(">2LfL3L", 1, 600, 0.5, 1, 28, 60, 10)
NAMES = [f"m{number:02}" for number in range(20)]
MISSING = NAMES[:6]  # fewer than half


class World:
    """A tree of twenty metrics, its store, and a clock that can be set."""

    def __init__(self, home: Path) -> None:
        self.tree, self.store = home / "tree", home / "store"
        self.tree.mkdir()
        self.now, self.uptime, self.boot = BEGIN, 1000, ""
        for name in NAMES:
            self.write(name)

    def write(self, name: str) -> None:
        (self.tree / f"{name}.wsp").write_bytes(HEADER + os.urandom(120))

    def remove(self) -> None:
        for name in MISSING:
            (self.tree / f"{name}.wsp").unlink()

    def run(self, command: str = "backup", *options: str) -> int:
        files = ["--nolog", "--nolock", "--nostamp", "--nostate", "-f", "1"]
        tree = [] if command == "prune" else ["-p", str(self.tree)]
        return main.main([*files, *tree, "-b", str(self.store), "-x", "45", *options, command, "disk"])

    def nights(self, count: int, command: str = "backup") -> None:
        for _ in range(count):
            self.now += DAY
            assert self.run(command) == 0

    def stored(self) -> set[str]:
        return {path.name for path in self.store.iterdir() if list(path.glob("*.sha1"))}

    def marked(self) -> set[str]:
        return {path.name for path in self.store.iterdir() if list(path.glob("*.missing"))}


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path)
    monkeypatch.setattr(clock, "utc_now", lambda: made.now)
    monkeypatch.setattr(clock, "boot_id", lambda: made.boot)
    monkeypatch.setattr(clock, "uptime", lambda: made.uptime)
    return made


@pytest.mark.parametrize("command", ["backup", "purge", "prune"])
@pytest.mark.parametrize("nights", [1, 3])
def test_a_clock_that_is_far_ahead_purges_nothing(
    world: World, capfd: pytest.CaptureFixture[str], command: str, nights: int
) -> None:
    world.nights(2)
    world.remove()
    world.nights(2)
    assert world.marked() == set(MISSING)
    world.now += 400 * DAY
    world.nights(nights, command)
    assert world.stored() == set(NAMES)
    assert "401 days before" in capfd.readouterr().err
    world.now -= 400 * DAY
    world.nights(2)
    assert world.stored() == set(NAMES)


@pytest.mark.parametrize("command", ["backup", "purge"])
def test_a_clock_that_is_behind_marks_nothing_with_a_time_long_past(
    world: World, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    world.nights(2)
    world.remove()
    world.now -= 3650 * DAY
    world.nights(1, command)
    assert "the clock is behind" in capfd.readouterr().err
    assert not world.marked()
    world.now += 3650 * DAY
    world.nights(2)
    assert world.stored() == set(NAMES)


def test_after_a_leap_the_days_of_grace_are_counted_anew_and_end(world: World) -> None:
    world.nights(2)
    world.remove()
    world.nights(1)
    world.now += 400 * DAY
    world.nights(1)
    world.now -= 400 * DAY
    world.nights(1)
    pause = DAY
    for _ in range(4):
        pause *= 2
        world.now += pause
        world.run()
    assert world.stored() == set(NAMES), "30 days after the leap"
    world.nights(16)
    assert world.stored() == set(NAMES) - set(MISSING)


def test_a_pause_without_runs_is_no_grace_but_the_uptime_can_show_that_it_passed(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    world.boot = "a boot"
    world.nights(2)
    world.remove()
    world.uptime = 2 * 86400
    world.nights(1)
    world.now += 50 * DAY
    assert world.run() == 0
    assert world.stored() == set(NAMES), "the clock says so, the kernel does not"
    assert "the clock was changed" in capfd.readouterr().err
    world.now += 50 * DAY
    world.uptime += 50 * 86400
    assert world.run() == 0
    assert world.stored() == set(NAMES) - set(MISSING)


def test_who_knows_better_can_purge_anyway(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    world.nights(2)
    world.remove()
    world.nights(1)
    world.now += 50 * DAY
    assert world.run() == 0
    assert world.run() == 0
    assert "6 metrics that are missing for long enough are kept: the clock leapt on" in capfd.readouterr().err
    assert world.run("prune", "-n") == 0
    assert "6 metrics that are missing for long enough are kept: the clock leapt on" in capfd.readouterr().err
    assert world.stored() == set(NAMES)
    assert world.run("prune", "--purge-anyway") == 0
    assert world.stored() == set(NAMES) - set(MISSING)


def test_a_wrong_tree_is_remembered_also_by_a_run_whose_clock_is_in_doubt(world: World) -> None:
    """A node was off for long, and boots with another tree."""
    world.nights(2)
    for name in NAMES:
        (world.tree / f"{name}.wsp").rename(world.tree / f"other{name}.wsp")
        world.write(f"more{name}")
    world.now += 30 * DAY
    for _ in range(3):
        assert world.run("backup", "-x", "0") == 3
        assert world.stored() >= set(NAMES)
        world.now += DAY


def test_what_is_refused_under_a_clock_that_is_behind_keeps_its_days_of_grace(world: World) -> None:
    for _ in range(20):  # its files are idle
        world.now += 3 * DAY
        assert world.run() == 0
    for name in NAMES[:12]:
        (world.tree / f"{name}.wsp").rename(world.tree / f"{name}.away")
    world.now -= 50 * DAY
    assert world.run("purge", "-x", "0") == 3
    world.now += 50 * DAY
    for name in NAMES[:6]:
        (world.tree / f"{name}.away").rename(world.tree / f"{name}.wsp")
    world.nights(3)
    assert world.stored() == set(NAMES)


def test_a_clock_that_is_behind_gives_no_backup_another_stamp(world: World) -> None:
    world.nights(2)
    world.write(NAMES[0])
    world.nights(1)
    world.now += 400 * DAY
    world.write(NAMES[0])
    world.nights(1)
    before = sorted(path.name for path in (world.store / NAMES[0]).iterdir())
    assert len(before) == 6
    world.now -= 399 * DAY
    world.nights(7)
    assert sorted(path.name for path in (world.store / NAMES[0]).iterdir()) == before


def test_a_week_after_a_clock_was_ahead_its_backups_get_present_stamps(world: World) -> None:
    world.nights(2)
    world.now += 400 * DAY
    world.write(NAMES[0])
    world.nights(1)
    world.now -= 400 * DAY

    def newest() -> str:
        return max(path.name for path in (world.store / NAMES[0]).iterdir())[:10]

    world.nights(7)
    assert newest() > f"{world.now + 300 * DAY:%Y-%m-%d}"
    world.nights(1)
    assert newest() == f"{world.now:%Y-%m-%d}"


@pytest.mark.parametrize("field", ["begin", "end", "uptime", "steady_since", "pause", "last_stamp"])
def test_a_record_with_an_absurd_number_stops_no_run(
    world: World, capfd: pytest.CaptureFixture[str], field: str
) -> None:
    world.nights(2)
    (*_, newest) = sorted((world.store / ".runs").iterdir())
    newest.write_text(json.dumps(json.loads(newest.read_text()) | {field: 2**60}))
    world.write(NAMES[0])
    world.nights(1)
    assert f"{newest.name} is damaged and ignored: '{field}' is {2**60}" in capfd.readouterr().err
    assert len(list((world.store / NAMES[0]).glob("*.sha1"))) == 2


def last(days: float, pause: float = 1, boot: str = "", uptime: float = 0) -> Last:
    """The record of a run so many days ago."""
    begin = int((BEGIN - days * DAY).timestamp())
    return Last(begin, boot, int(uptime * 86400), 7, int(pause * 86400))


@pytest.mark.parametrize(
    ("before", "boot", "uptime", "is_trusted"),
    [
        (None, "", 0, True),
        (last(1), "", 0, True),
        (last(3), "", 0, True),  # a long weekend
        (last(3.1), "", 0, False),
        (last(14, pause=7), "", 0, True),
        (last(14.1, pause=7), "", 0, False),
        (last(-0.9), "", 0, True),
        (last(-1.1), "", 0, False),
        (last(400, pause=0), "", 0, False),
        (last(30, boot="b", uptime=1), "b", 31, True),
        (last(30, boot="b", uptime=1), "c", 31, False),
        (last(2, boot="b", uptime=1), "b", 1.5, False),
        (last(0.5, boot="b", uptime=3), "b", 3.5, True),
        (last(-0.5, boot="b", uptime=3), "b", 4, False),
    ],
)
def test_what_shows_that_a_clock_leapt(before: Last | None, boot: str, uptime: float, is_trusted: bool) -> None:
    steady = judge(before, Moment(BEGIN, boot, int(uptime * 86400)))
    assert (not steady.doubt) == is_trusted, steady
    assert steady.since == (0 if before is None else 7 if is_trusted else int(BEGIN.timestamp()))
    assert steady.covers(DAY) == is_trusted
    assert steady.has_shown(0)


@pytest.mark.parametrize("leap", [5, 20, 31, 400, 3650])
def test_no_leap_makes_the_next_one_usual(leap: int) -> None:
    begin, steady = int(BEGIN.timestamp()), Steady(BEGIN, pause=86400)
    for _ in range(2):
        before = Last(begin, "", 0, steady.since, steady.pause)
        begin += leap * 86400
        steady = judge(before, Moment(datetime.fromtimestamp(begin, UTC)))
        assert steady.doubt


@pytest.mark.parametrize("days", [7, 30, 90, 365])
def test_runs_that_are_rare_are_trusted_in_the_end(days: int) -> None:
    begin, steady = int(BEGIN.timestamp()), Steady(BEGIN)
    for _ in range(10):
        before = Last(begin, "", 0, steady.since, steady.pause)
        begin += days * 86400
        steady = judge(before, Moment(datetime.fromtimestamp(begin, UTC)))
    assert not steady.doubt


def test_an_additional_run_does_not_make_the_usual_pause_a_leap() -> None:
    monthly = judge(last(30, pause=30), Moment(BEGIN))
    again = judge(Last(int(BEGIN.timestamp()), "", 0, 0, monthly.pause), Moment(BEGIN + timedelta(hours=1)))
    later = Last(int(BEGIN.timestamp()) + 3600, "", 0, 0, again.pause)
    assert not judge(later, Moment(BEGIN + 30 * DAY)).doubt


def anew(world: World, points: int) -> None:
    step = 2**32 // points  # so the first of them is older than all backups: none is known to be of a recreated file
    header = struct.pack(">2LfL3L", 1, step * points, 0.5, 1, 28, step, points)
    (world.tree / "a.wsp").write_bytes(header + struct.pack(">Ld", 60, 1.0) + os.urandom(12 * points - 12))


@pytest.mark.parametrize("command", ["backup", "prune"])
def test_the_last_backup_of_an_old_file_goes_after_a_year_by_a_clock_that_can_tell(world: World, command: str) -> None:
    def night(days: float) -> int:
        """Backups of the metric that are left."""
        world.now += days * DAY
        anew(world, 900)
        assert world.run("backup", "-r", "1", *(["--no-delete"] if command == "prune" else [])) == 0
        assert command == "backup" or world.run("prune", "-r", "1") == 0
        return len(list((world.store / "a").glob("*.sha1")))

    for points in (1000, 10):
        anew(world, points)
        world.now += DAY
        assert world.run("backup", "-r", "1") == 0
    assert night(1) == 3
    for leap in (400, -400, 3650, -3650):
        assert night(leap) == 3
        assert night(1) == 3
    for _ in range(9):  # the pause doubles
        assert night(1) == 3
    for pause in (2, 3, 6, 12, 24, 48, 96, 164):
        assert night(pause) == 3
    assert night(20) == 1
