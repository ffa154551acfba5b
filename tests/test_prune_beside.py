"""Backups and prunes of one store at once: their requests are interleaved at random, and nothing is lost."""

from __future__ import annotations

import gzip
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import budget
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whisperbackup import commands, options
from whisperbackup.commands import backup, context, known_store, prune
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository import backups
from whisperbackup.repository.catalog import look_up
from whisperbackup.repository.outcome import failed
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.runtime import clock
from whisperbackup.runtime.budget import Budget
from whisperbackup.runtime.pool import Done
from whisperbackup.storage import disk

NOW = datetime(2026, 11, 23, tzinfo=UTC)
DAYS, KEEP = 10, 2
HEADER = struct.pack(">2LfL3L", 1, 600, 0.5, 1, 28, 60, 10)


class Turns:
    """Threads of which one runs at a time, from one request to the store to its next."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str, str]] = []  # who, which request, of which key
        self._may_go: dict[str, threading.Semaphore] = {}
        self._stopped = threading.Semaphore(0)
        self._left: list[str] = []
        self._errors: list[BaseException] = []

    def request(self, call: str, key: str) -> None:
        """Wait for a turn; the caller's thread bears the actor's name."""
        name = threading.current_thread().name
        self._stopped.release()
        self._may_go[name].acquire()
        self.done.append((name, call, key))

    def run(self, actors: dict[str, Callable[[], int]], order: Iterable[str]) -> None:
        """Run `actors` to their ends; `order` names who comes next, while it lasts."""
        for name, act in actors.items():
            self._may_go[name] = threading.Semaphore(0)
            self._left.append(name)
            threading.Thread(target=self._act, name=name, args=[act], daemon=True).start()
            self._stopped.acquire()  # at its first request
        for name in order:
            self._go(name)
        while self._left:
            self._go(self._left[0])
        if self._errors:
            raise self._errors[0]

    def _go(self, name: str) -> None:
        if name in self._left:
            self._may_go[name].release()
            self._stopped.acquire()

    def _act(self, act: Callable[[], int]) -> None:
        try:
            assert act() == 0
        except BaseException as error:  # noqa: BLE001  (raised by the thread of the test)
            self._errors.append(error)
        self._left.remove(threading.current_thread().name)
        self._stopped.release()


class Stepping(disk.Disk):
    """A directory store whose requests wait for their turn."""

    turns: Turns

    def list_range(self, prefix: str, after: str, until: str) -> Iterator[Any]:
        self.turns.request("list", prefix)
        yield from list(super().list_range(prefix, after, until))  # a page, as a service gives it

    def get(self, key: str) -> bytes:
        self.turns.request("get", key)
        return super().get(key)

    def create_all(self, objects: Sequence[tuple[str, bytes]]) -> bool:
        for one in objects:
            self.turns.request("create", one[0])
            super().create_all([one])
        return True

    def delete(self, keys: Iterable[str]) -> None:
        for key in sorted(keys):
            self.turns.request("delete", key)
            super().delete([key])


class NoPool:
    """The jobs of a run, one after another in its own thread."""

    def __init__(self, settings: options.Options, driver: Any) -> None:
        self.context = context.Context(settings)

    def __enter__(self) -> NoPool:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def run(self, jobs: Iterable[Any]) -> Iterator[Done[Any]]:
        for job in jobs:
            try:
                outcome = job.run(self.context)
            except Exception as error:  # noqa: BLE001  (as in a worker)
                outcome = failed(job, error)
            yield Done(outcome, 0.0, 0.0)


class State(NamedTuple):
    """A metric as the runs find it: backups a day apart, its tombstone's age in days, and its file."""

    backups: int
    tombstone: float | None
    file: str | None  # "same" as the newest backup, "changed", or None


class World:
    """A tree and a store with metrics in given states, and the runs over them."""

    def __init__(self, home: Path, states: Sequence[State], keeps_all: bool) -> None:
        self.prefix, self.store = home / "tree", home / "store"
        self.driver = disk.open(str(self.store), True, [])
        self.driver.mark()  # type: ignore[attr-defined]
        self.states = {f"m{number}": state for number, state in enumerate(states)}
        self.states["always"] = State(1, None, "same")
        self.stored: dict[str, dict[str, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.keeps_all = keeps_all
        for name, state in self.states.items():
            self.stored[name] = {}
            for age in range(state.backups, 0, -1):
                content, stamp = HEADER + os.urandom(120), stamp_of(NOW - timedelta(days=20 + age))
                sha1 = backups.sha1_of(content)
                backups.store(self.driver, f"{name}/", stamp, "gz", gzip.compress(content), sha1)
                self.stored[name][stamp] = content
            if state.tombstone is not None:
                self.driver.put(f"{name}/{stamp_of(NOW - timedelta(days=state.tombstone))}.missing", b"")
            if state.file:
                self.files[name] = content if state.file == "same" else HEADER + os.urandom(120)
                self.prefix.mkdir(exist_ok=True)
                (self.prefix / f"{name}.wsp").write_bytes(self.files[name])
                os.utime(self.prefix / f"{name}.wsp", (NOW.timestamp() - 9000,) * 2)

    def command(self, name: str) -> Callable[[], int]:
        words = ["-q", "--nolog", "--nostate", "-r", str(KEEP), "-x", str(DAYS), "--purge-anyway"]
        words += ["-p", str(self.prefix), "-b", str(self.store), name, "disk"]
        words += ["--no-delete"] if name == "backup" and self.keeps_all else []
        run = {"backup": backup.run, "prune": prune.run}[name]
        return lambda: run(options.parse(words), RunStats(name))

    def check(self, turns: Turns) -> None:
        """What must be there after the runs: each file's content, and all that was neither due nor surplus."""
        for name, state in self.states.items():
            there = {old.stamp: old for old in look_up(self.driver, "", name).backups}
            for stamp, content in self.stored[name].items():
                if stamp in there:
                    assert self.load(name, there[stamp]) == content
            if state.file:
                assert there, f"{name} lost all"
                assert self.load(name, there[max(there)]) == self.files[name], f"{name} lost its newest content"
            is_due = state.tombstone is not None and state.tombstone >= DAYS
            if not is_due or self.was_back_before_any_look(turns, name):
                kept = {*sorted({*self.stored[name], *there})[-KEEP:]} if state.backups else set()
                assert kept <= set(there), f"{name} lost {kept - set(there)}"

    def was_back_before_any_look(self, turns: Turns, name: str) -> bool:
        """Whether the backup run had made a returned metric safe before a prune listed it or looked at it."""
        if not self.states[name].file:
            return False
        who = [actor for actor, *_ in turns.done]
        end = len(who) - 1 - who[::-1].index("backup")
        return not any(call == ("list", f"{name}/") for _, *c in turns.done[:end] for call in [tuple(c)])

    def load(self, name: str, found: Any) -> bytes:
        return backups.load(self.driver, f"{name}/", found, 1 << 20, Budget(), 1, bytes)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "utc_now", lambda: NOW)
    for module in (backup, prune):
        monkeypatch.setattr(module, "open_pool", NoPool)
    for module in (commands, context, known_store):
        monkeypatch.setattr(
            module, "open_driver", lambda settings, create=False: Stepping(os.fsencode(settings.bucket))
        )


METRIC = st.builds(
    State,
    st.integers(1, KEEP + 2),
    st.sampled_from([None, 0.5, DAYS - 0.5, DAYS + 1]),
    st.sampled_from(["same", "changed", None]),
)
ACTORS = ("backup", "prune 1", "prune 2")
GONE_AND_BACK = State(KEEP, DAYS + 1, "same")


@settings(max_examples=budget(60), deadline=None)
@given(
    st.lists(METRIC, min_size=1, max_size=3),
    st.lists(st.tuples(st.sampled_from(ACTORS), st.integers(1, 8)), max_size=12),
    st.booleans(),
)
@example([GONE_AND_BACK], [("prune 1", 2), ("backup", 99)], True)
@example([GONE_AND_BACK], [("prune 1", 3), ("backup", 99)], False)
def test_backups_and_prunes_at_once_lose_nothing(
    states: list[State], turns: list[tuple[str, int]], keeps_all: bool
) -> None:
    with tempfile.TemporaryDirectory() as home:
        play(World(Path(home), states, keeps_all), [name for name, times in turns for _ in range(times)])


@pytest.mark.parametrize("keeps_all", [True, False])
def test_a_metric_that_comes_back_at_any_moment_of_a_prune_is_safe(tmp_path: Path, keeps_all: bool) -> None:
    for step in range(30):
        (tmp_path / str(step)).mkdir()
        world = World(tmp_path / str(step), [GONE_AND_BACK], keeps_all)
        if len(play(world, ["prune 1"] * step + ["backup"] * 99).done) < step:
            break


def play(world: World, order: list[str]) -> Turns:
    turns = Stepping.turns = Turns()
    turns.run({name: world.command(name.split()[0]) for name in ACTORS}, order)
    world.check(turns)
    return turns
