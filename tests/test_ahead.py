"""Stamps of a clock that was years ahead are named and replaced; a clock that is behind costs nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from conftest import Program, add_point
from hypothesis import given
from hypothesis import strategies as st
from test_purge import age
from test_restore_increments import newest_points, settle

from whisperbackup import main
from whisperbackup.repository.catalog import Backup, Payload, look_up
from whisperbackup.repository.future_stamps import misdated, stamp_anew
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.runtime import clock
from whisperbackup.storage import disk
from whisperbackup.storage.base import Driver

pytestmark = pytest.mark.slow

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def history(*days: float) -> list[Backup]:
    """Backups that were made so many days ago."""
    return [Backup(stamp_of(NOW - timedelta(days=day)), (Payload("gz", 1),), None) for day in days]


def test_what_leaps_out_of_a_history_is_misdated() -> None:
    assert misdated(history(3, 2, 1), NOW) == 0
    assert misdated(history(3, 2, 1, -3650), NOW) == 1
    assert misdated(history(3, 2, 1, -3650, -3651), NOW) == 2
    assert misdated(history(3, 2, 1, -0.9), NOW) == 0
    assert misdated(history(3, 2, 1, -9), NOW) == 0, "the clock will be there soon"
    assert misdated(history(0.04, -56.9), NOW) == 0, "a clock that fell back to just after the first of two"
    assert misdated(history(-3650), NOW) == 0, "nothing to tell it by"
    assert misdated(history(-3650, -3651), NOW) == 0
    assert misdated(history(400, 30, 2, 1, -3650), NOW) == 0, "a history with a pause as long"
    assert misdated([], NOW) == 0


@given(
    spacing=st.sampled_from([1 / 24, 1.0, 7.0, 30.0]),
    count=st.integers(1, 30),
    jitter=st.lists(st.floats(0, 0.9), min_size=30, max_size=30),
    behind=st.floats(0, 4000),
)
def test_a_clock_that_is_behind_calls_no_regular_history_misdated(
    spacing: float, count: int, jitter: list[float], behind: float
) -> None:
    made = sorted((spacing * (number + jitter[number]) for number in range(count)), reverse=True)
    assert misdated(history(*(day - behind for day in made)), NOW) == 0


@pytest.fixture
def nightly(program: Program) -> Program:
    """Four nights' backups."""
    path = program.write("a.b")
    program.write("idle", 1)
    for night in range(3):
        program("backup")
        age(program, 1)
        add_point(path, 10.0 + night)
    program("backup")
    assert len(program.stamps("a.b")) == 4
    return program


def shift_newest(program: Program, metric: str, years: int) -> str:
    """Give its newest backup the stamp of a clock that is ahead; the stamp."""
    newest = program.stamps(metric)[-1]
    ahead = stamp_of(datetime.fromisoformat(newest) + timedelta(days=365 * years))
    for path in (program.store / metric).glob(newest + "*"):
        path.rename(path.with_name(path.name.replace(newest, ahead)))
    return ahead


def contents_of(program: Program, metric: str) -> list[bytes]:
    return [(program.store / metric / f"{stamp}.wsp.gz").read_bytes() for stamp in program.stamps(metric)]


def today(stamp: str) -> bool:
    return abs(datetime.now(UTC) - datetime.fromisoformat(stamp)) < timedelta(minutes=5)


@pytest.mark.parametrize("is_changed", [True, False])
def test_a_stamp_that_is_years_ahead_is_brought_into_the_present(nightly: Program, is_changed: bool) -> None:
    before = contents_of(nightly, "a.b")
    ahead = shift_newest(nightly, "a.b", 10)
    assert contents_of(nightly, "a.b") == before
    if is_changed:
        add_point(nightly.prefix / "a/b.wsp", 7.0)
    said = nightly("backup", "disk", "-r", "9")
    assert (
        f"WARNING: 1 backups have a stamp more than a day ahead of this machine's clock, for example a.b of {ahead}"
        in said
    )
    assert "1 stamped anew" in said
    assert contents_of(nightly, "a.b")[: len(before)] == before
    assert len(contents_of(nightly, "a.b")) == len(before) + is_changed
    assert today(nightly.stamps("a.b")[-1])
    said = nightly("backup", "disk", "-r", "9")
    assert "ahead" not in said
    assert "0 backed up" in said
    nightly("verify", "disk", "--all")
    tomorrow = stamp_of(datetime.now(UTC) + timedelta(hours=1))
    target = nightly.home / "target"
    target.mkdir()
    assert "2 created" in nightly("restore", "disk", "-p", target, "-c", tomorrow)
    assert (target / "a/b.wsp").read_bytes() == (nightly.prefix / "a/b.wsp").read_bytes()


def test_several_of_them_keep_their_order_and_calendar_rules_work_again(nightly: Program) -> None:
    add_point(nightly.prefix / "a/b.wsp", 7.0)
    nightly("backup")
    before = contents_of(nightly, "a.b")
    for years in (11, 10):  # the newest first, so that the order stays
        newest = nightly.stamps("a.b")[-1] if years == 11 else nightly.stamps("a.b")[-2]
        ahead = stamp_of(datetime.fromisoformat(newest) + timedelta(days=365 * years))
        for path in (nightly.store / "a.b").glob(newest + "*"):
            path.rename(path.with_name(path.name.replace(newest, ahead)))
    assert contents_of(nightly, "a.b") == before
    assert "2 stamped anew" in nightly("backup", "disk", "-r", "9")
    assert contents_of(nightly, "a.b") == before
    add_point(nightly.prefix / "a/b.wsp", 8.0)
    nightly("backup", "disk", "-r", "1", "--keep-daily", "3")
    days = [stamp[:10] for stamp in nightly.stamps("a.b")]
    assert len(set(days)) == len(days) == 3


def test_a_dry_run_and_readers_only_name_them(nightly: Program) -> None:
    ahead = shift_newest(nightly, "a.b", 10)
    before = nightly.objects()
    for command in (
        ["backup", "disk", "-n"],
        ["list", "disk"],
        ["verify", "disk"],
        ["list", "disk", "-c", "2030-01-01"],
    ):
        said = nightly(*command)
        assert re.search(r"WARNING: .*1 backups have a stamp more than a day ahead", said), command
        assert ahead in said
    assert nightly.objects() == before


def test_where_all_are_ahead_the_order_is_kept_and_nothing_is_deleted(nightly: Program) -> None:
    """As a machine sees it whose own clock is years behind."""
    age(nightly, -3650)
    before = nightly.objects()
    add_point(nightly.prefix / "a/b.wsp", 7.0)
    newest = nightly.stamps("a.b")[-1]
    said = nightly("backup", "disk", "-r", "9", "--keep-daily", "9")
    assert "more than a day ahead" in said
    assert "stamped anew" not in said
    assert before.items() <= nightly.objects().items()
    assert nightly.stamps("a.b")[-1] > newest


def test_one_whose_payload_is_gone_is_no_reason_not_to_back_up(nightly: Program) -> None:
    ahead = shift_newest(nightly, "a.b", 10)
    (nightly.store / "a.b" / f"{ahead}.sha1").unlink()
    (nightly.store / "a.b" / f"{ahead}.sha1").mkdir()
    add_point(nightly.prefix / "a/b.wsp", 7.0)
    assert "1 backed up" in nightly("backup", "disk", "-r", "9")


def test_a_stop_in_between_loses_neither_content_nor_order(nightly: Program, tmp_path: Path) -> None:
    before = contents_of(nightly, "a.b")
    ahead = shift_newest(nightly, "a.b", 10)
    copied = stamp_of(datetime.now(UTC))  # copied, and not deleted
    for end in ("wsp.gz", "sha1"):
        body = (nightly.store / "a.b" / f"{ahead}.{end}").read_bytes()
        (nightly.store / "a.b" / f"{copied}.{end}").write_bytes(body)
    assert "1 stamped anew" in nightly("backup", "disk", "-r", "9")
    assert contents_of(nightly, "a.b") == [*before, before[-1]]


def test_months_under_a_wrong_clock_are_kept_as_the_months_that_they_were(nightly: Program) -> None:
    path = nightly.prefix / "a/b.wsp"
    for night in range(4):
        age(nightly, 31)  # two that are 30 days apart may be of one month
        add_point(path, 20.0 + night)
        nightly("backup", "disk", "-r", "9")
    for stamp in reversed(nightly.stamps("a.b")[4:]):
        ahead = stamp_of(datetime.fromisoformat(stamp) + timedelta(days=7300))
        for found in (nightly.store / "a.b").glob(stamp + "*"):
            found.rename(found.with_name(found.name.replace(stamp, ahead)))
    before = contents_of(nightly, "a.b")
    assert len(before) == 8
    assert "4 stamped anew" in nightly("backup", "disk", "-r", "1", "--keep-monthly", "12")
    assert contents_of(nightly, "a.b")[-4:] == before[-4:]
    assert len({stamp[:7] for stamp in nightly.stamps("a.b")[-4:]}) == 4
    assert today(nightly.stamps("a.b")[-1])
    nightly("verify", "disk", "--all")


class Replacing:
    """A driver where another run's copy replaces each payload that is created, since no put has a condition."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.list, self.get, self.delete = driver.list, driver.get, driver.delete

    def put(self, key: str, body: bytes) -> None:
        self._driver.put(key, b"another run's" if ".wsp." in key else body)


def test_the_original_stays_where_the_copy_was_replaced_by_another_run(nightly: Program) -> None:
    ahead = shift_newest(nightly, "a.b", 10)
    driver = disk.open(str(nightly.store), False, [])
    metric = look_up(driver, "", "a.b")
    after, moved = stamp_anew(cast(Driver, Replacing(driver)), "a.b/", metric, datetime.now(UTC), 10**9)
    assert moved == 0
    assert after.backups == metric.backups
    assert ahead in nightly.stamps("a.b")


def test_a_misdated_bomb_is_not_expanded_to_the_end(nightly: Program) -> None:
    ahead = shift_newest(nightly, "a.b", 10)
    bomb = gzip.compress(bytes(20_000_000))
    (nightly.store / "a.b" / f"{ahead}.wsp.gz").write_bytes(bomb)
    (nightly.store / "a.b" / f"{ahead}.sha1").write_text(hashlib.sha1(bytes(20_000_000)).hexdigest())
    said = nightly("backup", "disk", "-r", "9", "--max-file-size", "1M")
    assert "stamped anew" not in said
    assert ahead in nightly.stamps("a.b")


def test_no_new_stamp_hides_increments_where_the_file_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The increments of the day before would count as earlier than the backup's new stamp."""
    program = Program(tmp_path)
    path = program.write("a.one")
    program.write("b.two")
    program("backup", "disk")
    settle()
    add_point(path, 11.0)
    with monkeypatch.context() as ahead:
        ahead.setattr(clock, "utc_now", lambda: datetime.now(UTC) + timedelta(days=3650))
        assert main.main([*program.words("backup", "disk", "--nolock", "-f", "1")[3:]]) == 0
    settle()
    program("backup", "disk")
    settle()
    add_point(path, 7777.0)
    program("increment", "disk")
    settle()

    def break_and_restore() -> None:
        path.write_bytes(path.read_bytes()[:200])
        os.utime(path, (time.time() - 100, time.time() - 100))
        assert "stamped anew" not in program("backup", "disk", status=3)
        path.unlink()
        program("restore", "disk", "-m", "a.one")
        assert 7777.0 in newest_points(path)

    break_and_restore()
    assert "stamped anew" not in program("backup", "disk"), "within a week"
    for record in (program.store / ".runs").iterdir():
        record.write_text(json.dumps(json.loads(record.read_text()) | {"steady_since": 0}))
    settle()
    break_and_restore()
    assert "2 stamped anew" in program("backup", "disk")
    path.unlink()
    program("restore", "disk", "-m", "a.one")
    assert 7777.0 in newest_points(path)


def test_increments_after_a_run_under_a_fast_clock_are_deleted_when_they_are_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their stamps follow that run's by a second each, for years."""
    program = Program(tmp_path)
    path = program.write("a.one")
    with monkeypatch.context() as ahead:
        ahead.setattr(clock, "utc_now", lambda: datetime.now(UTC) + timedelta(days=3650))
        assert main.main([*program.words("backup", "disk", "--nolock", "-f", "1")[3:]]) == 0
    program("backup", "disk")
    settle()
    add_point(path, 7.0)
    program("increment", "disk")
    settle()
    program("backup", "disk")
    assert list(program.store.glob(".increments/*/manifest.json"))
    add_point(path, 8.0)
    settle()
    now = datetime.now(UTC)
    uptime = clock.uptime()
    for day in range(1, 10):
        monkeypatch.setattr(clock, "utc_now", lambda day=day: now + timedelta(days=day))
        monkeypatch.setattr(clock, "uptime", lambda day=day: uptime + day * 86400)
        assert main.main([*program.words("backup", "disk", "--nolock", "-f", "1")[3:]]) == 0
    assert not list(program.store.glob(".increments/*/*"))
