"""Where a run's window begins: at the beginning of the newest increment or backup run that it can build on.

So no state is kept but what the store has: a run that failed, a night without cron, a clock that was ahead, a disk
that was not mounted are made good by the next run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from whisperbackup.increments.manifest import Manifest, Origin, Run
from whisperbackup.increments.names import ancestors

MAX_AGE = 7 * 86400  # seconds; beyond that an increment is no reference
MAX_OWED = 10_000


@dataclass(frozen=True)
class Now:
    """The moment at which a run begins, taken before its walk: Unix time, and what `Origin` has of it."""

    time: int
    boot: str = ""
    uptime: int = 0


@dataclass(frozen=True)
class Window:
    """`since` in seconds; `owed` are keys (or beginnings of keys, ending in ".") whose window begins earlier.

    `owed_lag` is the lag that these moments were computed with.  `mounts` are folders where a file system should be
    mounted; the newest backups are of files that were there without it where it was `away`.  `known_run` is the newest
    backup run that all this knows of.
    """

    since: int
    reference: str
    reference_files: int
    lag: int
    owed: Mapping[str, int] = field(default_factory=dict)
    owed_lag: int = 0
    mounts: frozenset[str] = frozenset()
    away: frozenset[str] = frozenset()
    known_run: str = ""

    def new_from(self, key: str) -> int:
        """A file born then or later cannot have been read before: its points are taken whole, whatever their times.

        It was born after the reference began; earlier ones are in the reference, or owed.
        """
        begin = self.since + self.lag
        return min(begin, earliest(self.owed, key, begin - self.owed_lag) + self.owed_lag)

    def since_of(self, key: str) -> int:
        """Where the window of the metric with this key begins."""
        return earliest(self.owed, key, self.since) if self.owed else self.since

    def after(self, runs: Iterable[Run], node: str, prefix: str, exclude: Iterable[str]) -> Window:
        """This window where these are the newest backup runs that ended, the newest first.

        Where the one that counts found less than half of the files, that is no reason to fail any more, but what it
        missed is owed.
        """
        run = next((run for run in runs if counts(run, node, prefix, set(exclude))), None)
        if run is None or run.stamp <= self.known_run:
            return self
        given_up = self.mounts.difference(run.mounts)
        window = replace(self, mounts=self.mounts - given_up, away=(self.away | given_up).difference(run.mounts))
        if 2 * run.files < self.reference_files and run.unconfirmed is not None:
            missed = dict.fromkeys(run.unconfirmed, self.since)
            window = replace(window, reference_files=run.files, owed=missed | dict(self.owed))
        return window

    def without(self, folders: Collection[str]) -> Window:
        """This window for the files that are in these folders while what is owed there is not."""
        return replace(self, owed={key: moment for key, moment in self.owed.items() if key not in folders})


def choose(
    increments: Iterable[Manifest],
    runs: Iterable[Run],
    now: Now,
    node: str,
    prefix: str,
    exclude: Iterable[str],
    lag: int,
) -> Window | None:
    """The window of a run that begins `now`; None if there is nothing to build on: "run backup first".

    `increments` and `runs` are all complete ones of the store, in any order; `lag` is in seconds.
    """
    excluded = set(exclude)
    runs = list(runs)
    mine = [i for i in increments if (i.node, i.prefix, set(i.exclude)) == (node, prefix, excluded)]
    usable = [
        i
        for i in mine
        if now.time - MAX_AGE <= i.begin < now.time
        and _step(i, now) <= max(lag // 4, 1)  # both are whole seconds
        and i.owed is not None
        and 2 * i.files >= i.reference_files
    ]
    if usable:
        newest = max(usable, key=lambda i: i.stamp)
        # A run that came later and is passed over had another clock: files written under it have times of its own.
        later = [o.begin for o in (*mine, *runs) if o.stamp > newest.stamp and (o.node, o.prefix) == (node, prefix)]
        since = min([_begin(newest, now), *later]) - lag
        return Window(
            since, newest.stamp, newest.files, lag, newest.owed or {}, newest.lag,
            frozenset(newest.mounts), frozenset(newest.away), newest.after_run,
        )  # fmt: skip
    counting = sorted(
        (run for run in runs if counts(run, node, prefix, excluded) and run.begin < now.time and not _leapt(run, now)),
        key=lambda run: run.stamp,
        reverse=True,
    )
    for place, run in enumerate(counting):
        if run.unconfirmed is not None and len(run.unconfirmed) <= MAX_OWED:
            since = _begin(run, now) - lag
            older = counting[place + 1 :]
            owed = {key: max(min(_confirmed(key, older, now) - lag, since), 0) for key in run.unconfirmed}
            recent = [each for each in counting if each.begin >= now.time - MAX_AGE]
            away = frozenset(key for each in recent for key in each.mounts if key not in run.mounts)
            return Window(since, run.stamp, run.files, lag, owed, lag, frozenset(run.mounts), away, run.stamp)
    return None


def counts(run: Run, node: str, prefix: str, excluded: set[str]) -> bool:
    """Whether a backup run saw all that an increment of this node, prefix and `--exclude` sees, and came to its end."""
    is_same = run.node == node and run.prefix == prefix
    return is_same and run.is_complete and not run.is_partial and set(run.exclude) <= excluded


def _step(origin: Origin, now: Now) -> int:
    """By how many seconds the clock was set, either way, since a run began.

    To an increment under a clock that was ahead every point was late, by as much: it may have missed some.  If there
    was a boot in between, no more is known than that it began before that.
    """
    if not now.boot or not origin.boot:
        return 0
    if origin.boot != now.boot:
        return _leapt(origin, now)
    return abs((now.time - now.uptime) - (origin.begin - origin.uptime))


def _leapt(origin: Origin, now: Now) -> int:
    """By how many seconds the clock of a run before this boot was ahead, at least; 0 where that is not known."""
    if not now.boot or origin.boot in ("", now.boot):
        return 0
    return max(origin.begin - (now.time - now.uptime), 0)


def _begin(origin: Origin, now: Now) -> int:
    """When a run began, by the clock of today or by that of then, whichever says earlier."""
    if not now.boot or origin.boot != now.boot:
        return origin.begin
    return min(origin.begin, now.time - max(now.uptime - origin.uptime, 0))


def _confirmed(key: str, older: Sequence[Run], now: Now) -> int:
    """When the newest run began that confirmed all of `key`; 0 if there is none."""
    return next((_begin(run, now) for run in older if not run.doubts(key)), 0)


def earliest(owed: Mapping[str, int], key: str, since: int) -> int:
    """The earliest of `since` and what is owed for `key`, or for a folder that it lies below."""
    return min([since, owed.get(key, since), *[owed[folder] for folder in ancestors(key) if folder in owed]])


class Owed(NamedTuple):
    """What a run owes the next one (`window` as in Window.owed; None: too much to name), and what it had to forget."""

    window: dict[str, int] | None
    forgotten: int = 0


def still_owed(
    window: Window, failed: Iterable[str], unseen: Iterable[str], served: Collection[str], begin: int
) -> Owed:
    """What a run with this window owes the next one: keys that `failed`, and beginnings of keys that were `unseen`.

    What was owed below an unseen folder stays owed, and so does for a week what was owed and is not `served`, as
    nothing of it was there: its disk may not be mounted.
    """
    folders = set(unseen)
    owed: dict[str, int] = {}
    for key in failed:
        owed[key] = window.since_of(key)
        if len(owed) > MAX_OWED:
            return Owed(None)
    for folder in folders:
        below = [moment for key, moment in window.owed.items() if key.startswith(folder)]
        owed[folder] = min([window.since_of(folder), *below])
    if len(owed) > MAX_OWED:
        return Owed(None)
    absent = {
        key: min(moment, window.since)
        for key, moment in window.owed.items()
        if moment >= begin - MAX_AGE and key not in served and key not in owed
    }
    if len(owed) + len(absent) > MAX_OWED:
        return Owed(owed, len(absent))
    return Owed(owed | absent)
