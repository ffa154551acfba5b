"""What a command takes that only lists: over a large store, and over none."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

from timing import Case, Command, Run, Target, compare
from tools import PROGRAM, empty

STARTS = 20


def _list(store: Path) -> Command:
    return Command([*PROGRAM, "-b", store, "list", "disk"])


def catalog(_root: Path | None, scratch: Path, rounds: int) -> list[Target]:
    """`list` over stores of ten objects a metric, one ten times as large as the other: is memory bounded?"""
    cases = []

    def peak(taken: Run) -> dict[str, float | None]:
        return {"peak MB": taken.peak / 1e6}

    for metrics in (2_000, 20_000):
        store = scratch / f"wide-{metrics}"
        for number in range(metrics):
            folder = store / f"servers.host{number // 50:04}.plugin.metric-{number}"
            folder.mkdir(parents=True)
            for day in range(1, 6):
                for end in ("sha1", "wsp.gz"):
                    (folder / f"2026-11-{day:02}T00:00:00+00:00.{end}").touch()
        cases.append(Case(f"{metrics * 10:,} objects", lambda: None, functools.partial(_list, store), peak))
    compare("list disk", cases, rounds)
    return []


def start(_root: Path | None, scratch: Path, _rounds: int) -> list[Target]:
    """`list` of an empty directory, from start to finish, beside an interpreter that does nothing."""
    store, case = scratch / "nothing", "list disk, an empty directory"
    empty(store)
    nothing = Command([sys.executable, "-c", "pass"])
    cases = [
        Case(case, lambda: None, lambda: _list(store)),
        Case("python -c pass", lambda: None, lambda: nothing),
    ]
    table = compare(f"start to finish, median of {STARTS}", cases, STARTS)
    return [Target("seconds of list disk on an empty directory", table.seconds(case), 0.15)]
