"""A model of what the store must hold, against any sequence of changes, backups, purges, clock steps and kills."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import struct
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from conftest import budget
from hypothesis import Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from whisperbackup import main
from whisperbackup.repository import backups
from whisperbackup.repository.catalog import Catalog, Metric
from whisperbackup.repository.future_stamps import horizon, misdated
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.runtime import clock
from whisperbackup.runtime.budget import Budget
from whisperbackup.storage import disk
from whisperbackup.tree.selection import select

KEEP = 3
METRICS = st.sampled_from(["a", "a.b", "a-b", "web1.cpu", "x%25.y"])
DAYS = st.sampled_from([-1, 0, 2, 45])
REACH = 2**32 // 10 * 10
HEADER = struct.pack(">2LfL3L", 1, REACH, 0.5, 1, 28, REACH // 10, 10)
OLD_POINT = struct.pack(">Ld", 60, 1.0)  # of the time before all backups: none is kept as the first of a recreated file
EXAMPLES = budget(25)
PARTS = 4  # which pytest-xdist's workers share
SEED = int(os.environ.get("MODEL_SEED", "0"))


def path_of(metric: str) -> str:
    return metric.replace(".", "/").replace("%25", "%") + ".wsp"


BEGIN = datetime(2026, 11, 23, tzinfo=UTC)
LEAPS = st.sampled_from([-3650, -20, -1.25, 400, 3650])  # days
UNNOTICED = timedelta(days=2)  # small steps of the clock


class Clock:
    """`now` is what this machine's clock shows; `true` is the time, which no program can see."""

    now = BEGIN
    true = BEGIN

    @classmethod
    def advance(cls, time: timedelta) -> None:
        cls.now += time
        cls.true += time


class Kill:
    """A worker killed at its n-th write to the store, between the two halves of a backup or amid one."""

    left: ClassVar[int | None] = None
    write = disk.Disk._write
    parent = 0

    @staticmethod
    def killing_write(self: disk.Disk, path: bytes, body: bytes, *settings: Any) -> None:
        if Kill.left is not None and os.getpid() != Kill.parent:  # which is this test
            Kill.left -= 1
            if Kill.left < 0:
                folder = os.path.dirname(path)
                os.makedirs(folder, exist_ok=True)
                Path(os.fsdecode(os.path.join(folder, disk._temporary_name()))).write_bytes(body[:7])
                os.kill(os.getpid(), signal.SIGKILL)
        Kill.write(self, path, body, *settings)


class Store(RuleBasedStateMachine):
    """`history`: each metric's complete backups, the oldest first; the newest KEEP of them must be there."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.prefix, self.store = self.home / "tree", self.home / "store"
        self.prefix.mkdir()
        self.files: dict[str, bytes] = {}
        self.history: dict[str, list[tuple[str, bytes]]] = {}
        self.tombstones: dict[str, str] = {}
        self.gone: dict[str, datetime] = {}  # when a file truly disappeared
        self.last_run = self.steady = BEGIN  # true times; since `steady` no clock leapt, and no pause was long
        self.is_doubtful = self.run_is_doubtful = False  # the next run, the last run
        self.foreign: dict[str, bytes] = {}
        Clock.now = Clock.true = BEGIN

    def teardown(self) -> None:
        shutil.rmtree(self.home)

    # what happens

    @initialize()
    def begin(self) -> None:
        for metric in ("always.there", "a", "a.b", "web1.cpu"):
            self.write(metric)
        self.backup(45)

    @rule(metrics=st.sets(METRICS), days=DAYS)
    def nights_pass_and_metrics_change(self, metrics: set[str], days: int) -> None:
        for _ in range(KEEP + 1):
            Clock.advance(timedelta(days=1))
            for metric in sorted(metrics & set(self.files)):
                self.write(metric)
            self.backup(days)

    @rule(metric=METRICS, days=st.sampled_from([2, 45]), is_purge=st.booleans())
    def a_metric_goes_and_its_grace_runs_out(self, metric: str, days: int, is_purge: bool) -> None:
        self.remove(metric)
        self.backup(days)
        Clock.advance(timedelta(days=1))
        self.backup(days)
        pause, left = timedelta(days=1.9), timedelta(days=days, seconds=-1)
        while left:
            Clock.advance(min(pause, left))
            self.backup(days)
            left -= min(pause, left)
            pause *= 1.9
        Clock.advance(timedelta(seconds=1))
        if is_purge:
            self.purge(days)
        else:
            self.backup(days)
        assert metric not in self.history or not self.is_due(metric, days), "its grace is over"

    @rule(metric=METRICS)
    def write(self, metric: str) -> None:
        path = self.prefix / path_of(metric)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.files[metric] = HEADER + OLD_POINT + os.urandom(108)
        path.write_bytes(self.files[metric])

    @rule(metric=METRICS)
    def remove(self, metric: str) -> None:
        if self.files.pop(metric, None):
            (self.prefix / path_of(metric)).unlink()
            self.gone[metric] = Clock.true

    @rule(metric=METRICS)
    def bring_back(self, metric: str) -> None:
        if metric not in self.files and self.history.get(metric):
            self.write(metric)
            self.files[metric] = self.history[metric][-1][1]
            (self.prefix / path_of(metric)).write_bytes(self.files[metric])

    @rule(hours=st.sampled_from([0.0003, 1, 25, 24 * 3, 24 * 50]))
    def let_time_pass(self, hours: float) -> None:
        Clock.advance(timedelta(hours=hours))

    @rule(days=LEAPS)
    def the_clock_leaps(self, days: float) -> None:
        Clock.now += timedelta(days=days)
        self.steady = Clock.true
        self.is_doubtful = True

    @rule(
        metrics=st.sets(METRICS, min_size=1), leap=LEAPS, days=st.sampled_from([2, 45]), nights=st.integers(1, 3),
        is_marked=st.booleans(), is_purge=st.booleans(),
    )  # fmt: skip
    def a_clock_is_wrong_for_some_nights_while_files_are_away(
        self, metrics: set[str], leap: float, days: int, nights: int, is_marked: bool, is_purge: bool
    ) -> None:
        contents = {metric: self.files[metric] for metric in metrics & set(self.files)}
        for metric in contents:
            self.remove(metric)
        if is_marked:
            self.backup(days)
            Clock.advance(timedelta(days=1))
        self.the_clock_leaps(leap)
        for _ in range(nights):
            self.purge(days) if is_purge else self.backup(days)
            Clock.advance(timedelta(days=1))
        self.the_clock_leaps(-leap)
        self.backup(days)
        for metric, content in contents.items():
            self.write(metric)
            self.files[metric] = content
            (self.prefix / path_of(metric)).write_bytes(content)

    @rule(
        key=st.sampled_from(["README", "a/notes.txt", "other/deep/file", "a..b/x", "a/2026-11-23T00:00:00+00:00.tar"])
    )
    def put_something_foreign(self, key: str) -> None:
        path = self.store / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
        self.foreign[key] = b"mine"

    @rule(metrics=st.sets(METRICS, min_size=1), writes=st.integers(0, 8))
    def a_run_is_killed_and_two_nights_pass(self, metrics: set[str], writes: int) -> None:
        for metric in sorted(metrics):
            self.write(metric)
        self.killed_backup(writes)
        Clock.advance(timedelta(days=2))
        self.backup(-1)

    @rule(
        metrics=st.sets(METRICS), nights=st.integers(1, 2), is_killed=st.booleans(), writes=st.integers(0, 8),
        days=st.sampled_from([-1, 2, 45]),
    )  # fmt: skip
    def a_clock_is_years_ahead_for_a_run_or_two(
        self, metrics: set[str], nights: int, is_killed: bool, writes: int, days: int
    ) -> None:
        self.the_clock_leaps(3650)
        for _ in range(nights):
            Clock.advance(timedelta(days=1))
            for metric in sorted(metrics):
                self.write(metric)
            self.backup(days)
        self.the_clock_leaps(-3650)
        Clock.advance(timedelta(days=1))
        if is_killed:
            self.killed_backup(writes)
        self.backup(-1)
        for _ in range(3):  # a week after the clock was in doubt, without a pause that puts it in doubt
            Clock.advance(timedelta(days=2.9))
            self.backup(-1)
        stored = self.catalog()
        assert not any(misdated(stored[metric].backups, Clock.now) for metric in self.files if metric in stored)

    @rule(days=DAYS)
    def backup(self, days: int) -> None:
        if self.run("backup", days) == 0:
            self.note_backups(is_complete=True)
            self.note_purge(days)
        else:
            assert not self.files

    @rule(days=DAYS)
    def purge(self, days: int) -> None:
        if self.store.exists() and self.run("purge", days) == 0:
            self.note_purge(days)

    @rule(days=DAYS)
    def noop(self, days: int) -> None:
        before = self.objects()
        self.run("backup", days, "-n")
        assert self.objects() == before

    @rule(writes=st.integers(0, 8))
    def killed_backup(self, writes: int) -> None:
        Kill.left = writes
        status = self.run("backup", -1)
        Kill.left = None
        if status == 0:
            self.note_backups(is_complete=True)
            self.note_purge(-1)
        else:
            self.note_backups(is_complete=False)
            stored = self.catalog()
            for metric in self.files:  # it came back, which the run may have noted
                if metric not in stored or not stored[metric].tombstones:
                    self.tombstones.pop(metric, None)

    # the model

    def run(self, command: str, days: int, *options: str) -> int:
        if Clock.true - self.last_run > timedelta(days=3):
            self.is_doubtful = True
        self.run_is_doubtful = self.is_doubtful
        if self.is_doubtful:
            self.steady = Clock.true
        if command == "backup" and "-n" not in options:  # it leaves a record
            self.last_run = Clock.true.replace(microsecond=0)  # as in a record
            self.is_doubtful = False
        files = ["--nolog", "--nolock", "--nostamp", "-q", "-f", "1"]
        where = ["-p", str(self.prefix), "-b", str(self.store)]
        return main.main([*files, *where, "-r", str(KEEP), "-x", str(days), *options, command, "disk"])

    def note_backups(self, is_complete: bool) -> None:
        """Which backups the run made; one that was not completed may have made some, but none that is wrong."""
        stored = self.catalog()
        for metric, content in self.files.items():
            self.note_new_stamps(metric, stored.get(metric))
            known = self.history.setdefault(metric, [])
            made = stored[metric].backups[-1].stamp if metric in stored and stored[metric].backups else ""
            if not known or known[-1][1] != content:
                if made > (known[-1][0] if known else ""):
                    known.append((made, content))
                else:
                    assert not is_complete, f"{metric} was not backed up"
                if is_complete:
                    groups = [list(same) for _, same in itertools.groupby(known, lambda pair: pair[1])]
                    known[:] = itertools.chain(*groups[-KEEP:])  # a copy that a kill left beside its original
            elif made and made != known[-1][0]:  # late: a prune elsewhere may be deleting what it listed
                assert metric in self.tombstones, f"{metric} was backed up again"
                known.append((made, content))
            if not known:  # a kill left a half
                del self.history[metric]

    def note_new_stamps(self, metric: str, stored: Metric | None) -> None:
        """Which backups of a clock that was far ahead have stamps of the present now: contents and order stay."""
        known = self.history.get(metric, [])
        there = {backup.stamp: backup for backup in stored.backups} if stored else {}
        driver = disk.open(str(self.store), False, []) if there else None
        contents = {content for stamp, content in known if stamp > horizon(Clock.now)}
        last = max((stamp for stamp, _ in known if stamp <= horizon(Clock.now)), default="")
        copies = []
        for stamp, backup in there.items():
            if last < stamp <= horizon(Clock.now) and driver:
                content = backups.load(driver, f"{metric}/", backup, 1 << 20, Budget(), 1, bytes)
                if content in contents:
                    copies.append((stamp, content))
        copied = {content for _, content in copies}
        moved = [pair for pair in known if pair[0] > horizon(Clock.now) and pair[0] not in there and pair[1] in copied]
        before = [content for _, content in known]
        self.history[metric] = sorted({*known, *copies} - set(moved))
        assert [content for content, _ in itertools.groupby(content for _, content in self.history[metric])] == [
            content for content, _ in itertools.groupby(before)
        ]

    def note_purge(self, days: int) -> None:
        stored = self.catalog()
        for metric in list(self.history):
            tombstones = stored[metric].tombstones if metric in stored else ()
            if metric in self.files:
                self.tombstones.pop(metric, None)
            elif metric not in stored or not (stored[metric].backups or tombstones):
                assert days == 0 or self.may_be_purged(metric, days), f"{metric} was purged"
                del self.history[metric]
                self.tombstones.pop(metric, None)
            elif metric in self.tombstones:
                is_over = days == 0 or (self.is_due(metric, days) and self.is_steady_for(days))
                assert not is_over, f"{metric} should have been purged"
            elif tombstones:
                assert tombstones[-1] > (self.history[metric] or [("", b"")])[-1][0]
                assert tombstones[-1] >= stamp_of(Clock.now)
                self.tombstones[metric] = tombstones[-1]
            else:
                assert days < 0 or self.run_is_doubtful, f"{metric} should have a tombstone"
        for metric in stored.values():
            for half in metric.orphans:
                is_old = half.stamp <= stamp_of(Clock.now - timedelta(days=1))
                assert not (is_old and self.is_steady_for(1)), "old debris was left"

    def may_be_purged(self, metric: str, days: int) -> bool:
        is_missing_for = Clock.true - self.gone[metric]
        return days > 0 and metric in self.tombstones and is_missing_for >= timedelta(days=days) - UNNOTICED

    def is_steady_for(self, days: int) -> bool:
        """By a clock that may have been set back by a little, for which a deletion is late by as much."""
        return Clock.true - self.steady >= timedelta(days=days) + UNNOTICED

    def is_due(self, metric: str, days: int) -> bool:
        return days > 0 and self.tombstones.get(metric, "9") <= stamp_of(Clock.now - timedelta(days=days))

    def catalog(self) -> dict[str, Metric]:
        if not self.store.exists():
            return {}
        driver = disk.open(str(self.store), False, [])
        return {metric.name: metric for metric in Catalog(driver, "", select(["*"]))}

    def objects(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.store)): path.read_bytes()
            for path in self.store.rglob("*")
            if path.is_file() and path.name != disk.MARKER
        }

    @invariant()
    def every_backup_that_must_be_there_is_there_and_nothing_else(self) -> None:
        stored = self.catalog()
        objects = self.objects()
        for key, content in self.foreign.items():
            assert objects.pop(key) == content
        for name, known in self.history.items():
            there = {backup.stamp: backup for backup in (stored[name].backups if name in stored else ())}
            for stamp, content in known[-KEEP:]:
                assert stamp in there, f"{name} lost {stamp}"
                driver = disk.open(str(self.store), False, [])
                assert backups.load(driver, f"{name}/", there[stamp], 1 << 20, Budget(), 1, bytes) == content
            assert set(there) <= {stamp for stamp, _ in known}, f"{name} has more than was made"
        for name in stored:
            if name not in self.history:
                assert not stored[name].backups, f"{name} should have been purged"
            assert set(stored[name].tombstones) <= {self.tombstones.get(name)}
        ours = re.compile(
            r"[^/]+/(\.whisper-backup-)?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00[.-](sha1|wsp\.gz|missing|[0-9a-f]+)"
        )
        assert all(ours.fullmatch(key) for key in objects if not key.startswith(".runs/"))


@pytest.fixture(autouse=True)
def _world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "utc_now", lambda: Clock.now)
    monkeypatch.setattr(clock, "boot_id", lambda: "")  # so that the uptime tells nothing
    monkeypatch.setattr(disk, "_temporary_name", lambda: _temporary(Clock.now))
    monkeypatch.setattr(Kill, "parent", os.getpid())
    monkeypatch.setattr(disk.Disk, "_write", Kill.killing_write)
    for sync in ("fsync", "fdatasync"):  # most of the time; a process that is killed loses nothing that it wrote
        monkeypatch.setattr(os, sync, lambda fd: None)


def _temporary(now: datetime) -> bytes:
    return disk.TEMPORARY + f"{stamp_of(now)}-{os.urandom(8).hex()}".encode()


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.soak) for part in range(1, PARTS))])
def test_nothing_that_should_stay_is_ever_deleted(part: int) -> None:
    """`MODEL_SEED=1000 EFFORT=10 pytest tests/test_model.py` plays other and longer lives."""
    from hypothesis.stateful import run_state_machine_as_test

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    phases = [phase for phase in Phase if phase is not Phase.shrink]  # that takes minutes, and 25 steps can be read
    budget = settings(max_examples=-(-EXAMPLES // PARTS), stateful_step_count=25, phases=phases, print_blob=True)
    try:
        run_state_machine_as_test(seed(SEED + part)(lambda: Store()), settings=budget)
    finally:
        for number, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), before, strict=True):
            signal.signal(number, handler)
