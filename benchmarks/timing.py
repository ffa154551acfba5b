"""What commands take, in tables of medians: wall time, and the CPU time of all their processes."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

METER = Path(__file__).with_name("meter.py")


class Command(NamedTuple):
    """A command line, what it adds to the environment, and the folder to start it in."""

    words: Sequence[object]
    environment: Mapping[str, str] = {}
    folder: Path | None = None


class Run(NamedTuple):
    """What one run took: seconds of wall time, seconds of CPU, bytes that its largest process held."""

    seconds: float
    user: float
    system: float
    peak: int


def run(command: Command) -> Run:
    """Run it, its output thrown away.  Raises CalledProcessError unless it succeeds."""
    words = [str(word) for word in command.words]
    environment = {**os.environ, **command.environment}
    metered = [sys.executable, "-I", "-S", str(METER), *words]
    told = subprocess.run(metered, cwd=command.folder, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    seconds, user, system, peak, status = told.stdout.split()
    if int(status):
        raise subprocess.CalledProcessError(int(status), words)
    return Run(float(seconds), float(user), float(system), int(peak))


class Table:
    """Runs of several cases; the case that was added first is the measure of the ratios."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._runs: dict[str, list[Run]] = {}
        self._figures: dict[str, Mapping[str, float | None]] = {}

    def add(self, case: str, run: Run, figures: Mapping[str, float | None] | None = None) -> None:
        """Take in one run; `figures` are further columns, of which the last run's are shown."""
        self._runs.setdefault(case, []).append(run)
        self._figures[case] = figures or {}

    def seconds(self, case: str) -> float:
        """The median of the case's wall times."""
        return statistics.median(run.seconds for run in self._runs[case])

    def user(self, case: str) -> float:
        """The median of its CPU times in user mode."""
        return statistics.median(run.user for run in self._runs[case])

    def figure(self, case: str, name: str) -> float | None:
        """One of its further columns."""
        return self._figures[case].get(name)

    def __contains__(self, case: str) -> bool:
        return case in self._runs

    def show(self) -> None:
        """Print it, as Markdown."""
        further = list(dict.fromkeys(name for figures in self._figures.values() for name in figures))
        columns = [self.title, "median s", "least-most", "ratio", "user s", "system s", *further]
        print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        measure = self.seconds(next(iter(self._runs)))
        for case, runs in self._runs.items():
            walls = [run.seconds for run in runs]
            system = statistics.median(run.system for run in runs)
            cells = [case, f"{self.seconds(case):.2f}", f"{min(walls):.2f}-{max(walls):.2f}"]
            cells += [f"{self.seconds(case) / measure:.2f}", f"{self.user(case):.2f}", f"{system:.2f}"]
            cells += [_shown(self.figure(case, name)) for name in further]
            print(f"| {' | '.join(cells)} |", flush=True)


def _shown(figure: float | None) -> str:
    if figure is None:
        return "-"
    return f"{figure:.0f}" if figure == int(figure) or figure >= 100 else f"{figure:.2f}"


class Case(NamedTuple):
    """Something to time: `before` makes ready what `command` needs; `figures` tells afterwards what came of it."""

    name: str
    before: Callable[[], object]
    command: Callable[[], Command]
    figures: Callable[[Run], Mapping[str, float | None]] = lambda _: {}


def compare(title: str, cases: Sequence[Case], rounds: int) -> Table:
    """Time the cases in turn, `rounds` times, each with nothing left to be written to the disk; print the table."""
    table = Table(title)
    for _ in range(rounds):
        for case in cases:
            case.before()
            command = case.command()
            os.sync()
            taken = run(command)
            table.add(case.name, taken, case.figures(taken))
    table.show()
    return table


class Target(NamedTuple):
    """What a figure should not exceed."""

    text: str
    figure: float
    limit: float


def show_targets(targets: Sequence[Target]) -> None:
    """Print them, as Markdown."""
    if targets:
        print("\n| target | at most | measured | |\n|---|---|---|---|")
    for target in targets:
        verdict = "met" if target.figure <= target.limit else "MISSED"
        print(f"| {target.text} | {target.limit:g} | {target.figure:.2f} | {verdict} |", flush=True)
