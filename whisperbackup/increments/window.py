"""Where a run's window begins: at the beginning of the newest increment or backup run that it can build on.

So no state is kept but what the store has: a run that failed, a night without cron, a clock that was ahead, a disk
that was not mounted are made good by the next run.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from whisperbackup.increments.manifest import Manifest, Origin, Run
from whisperbackup.increments.names import ancestors
from whisperbackup.tree.places import Place, Places
from whisperbackup.tree.selection import Selection

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
    """Points from `begin` less `lag` on are in it; `owed` are keys, and folders, for which an earlier run begins it.

    `owed_lag` is the lag of the increment that owes them.  `places` are where the tree's files should be; the newest
    backups may be of other files in the place of those that are `away`.  `waiting` are those that were not there, with
    when a run began that had them.  `known_run` is the newest backup run of the whole tree that all this knows of.
    """

    begin: int
    reference: str
    reference_files: int
    lag: int
    owed: Mapping[str, int] = field(default_factory=dict)
    places: frozenset[Place] = frozenset()
    away: frozenset[Place] = frozenset()
    waiting: Mapping[Place, int] = field(default_factory=dict)
    known_run: str = ""
    owed_lag: int = 0

    @property
    def since(self) -> int:
        """Where it begins for metrics that are not owed."""
        return max(self.begin - self.lag, 0)

    def begin_of(self, key: str) -> int:
        """When the run began that this one builds on for the metric with this key, or for a folder.

        A file born then or later cannot have been read before: its points are taken whole, whatever their times.
        """
        return earliest(self.owed, key, self.begin) if self.owed else self.begin

    def since_of(self, key: str) -> int:
        """Where the window of the metric with this key begins."""
        begin = self.begin_of(key)
        return max(begin - (max(self.lag, self.owed_lag) if begin < self.begin else self.lag), 0)

    def where(self, found: Collection[Place]) -> Window:
        """This window in a walk that has come through these places: what waits for them is owed."""
        back = {place.key: moment for place, moment in self.waiting.items() if place in found}
        return replace(self, owed={**self.owed, **{key: min(back[key], self.begin_of(key)) for key in back}})

    def after(self, runs: Iterable[Run], node: str, prefix: str, exclude: Iterable[str]) -> Window:
        """This window after the backup runs since `known_run`, the newest first; some did not end."""
        excluded = set(exclude)
        window = self
        later = []
        for run in runs:
            if counts(run, node, prefix, excluded):
                window = self._built_on(run)
                break
            if run.node == node and run.prefix == prefix and run.places:
                later.append(run)
        known = self.places | window.places
        lacked = {place for run in later for place in known.difference(run.places) if run.may_hold(place.key)}
        return replace(window, away=window.away | lacked)

    def within(self, selection: Selection) -> Window:
        """This window where not all of what the reference saw is looked at."""
        return replace(self, places=frozenset(p for p in self.places if not p.key or selection.may_hold(p.key)))

    def _built_on(self, run: Run) -> Window:
        """This window after a backup run of the whole tree.

        Where that found less than half of the files, this is no reason to fail any more, but what it missed is owed.
        """
        window = replace(self, known_run=run.stamp)
        if run.places:
            away = (self.away | self.places).difference(run.places)
            window = replace(window, places=frozenset(run.places), away=away)
        if 2 * run.files < self.reference_files and (run.unconfirmed is not None or run.status == 0):
            missed = dict.fromkeys(run.unconfirmed or (), self.begin)
            window = replace(window, reference_files=run.files, owed=missed | dict(self.owed))
        return window


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
    slack = max(lag // 4, 1)  # both clocks are in whole seconds
    fast = {(o.boot, o.begin - o.uptime) for o in (*mine, *runs) if _leapt(o, now) > slack}
    usable = [
        i
        for i in mine
        if now.time - MAX_AGE <= i.begin < now.time
        and _step(i, now) <= slack
        and not _is_one_of(fast, i, slack)
        and i.owed is not None
        and 2 * i.files >= i.reference_files
    ]
    if usable:
        newest = max(usable, key=lambda i: i.stamp)
        # A run that came later and is passed over had another clock: files written under it have times of its own.
        later = [o.begin for o in (*mine, *runs) if o.stamp > newest.stamp and (o.node, o.prefix) == (node, prefix)]
        return Window(
            min([_begin(newest, now), *later]), newest.stamp, newest.files, lag, newest.owed or {},
            frozenset(newest.places), frozenset(newest.away), dict(newest.waiting),
            newest.known_run or newest.after_run, newest.lag,
        )  # fmt: skip
    counting = sorted(
        (
            run
            for run in runs
            if counts(run, node, prefix, excluded)
            and run.begin < now.time
            and not _leapt(run, now)
            and not _is_one_of(fast, run, slack)
        ),
        key=lambda run: run.stamp,
        reverse=True,
    )
    for place, run in enumerate(counting):
        if run.unconfirmed is not None and len(run.unconfirmed) <= MAX_OWED:
            begin = _begin(run, now)
            older = counting[place + 1 :]
            owed = {key: min(_confirmed(key, older, now), begin) for key in run.unconfirmed}
            places = frozenset(run.places)
            away = _away(run, counting, mine, now) if places else frozenset()
            return Window(begin, run.stamp, run.files, lag, owed, places, away, known_run=run.stamp)
    return None


def _away(run: Run, counting: Iterable[Run], mine: Iterable[Manifest], now: Now) -> frozenset[Place]:
    """What backup runs and increments of the last week had, and this run had not."""
    known = {place for each in counting if each.begin >= now.time - MAX_AGE for place in each.places}
    last = max(mine, key=lambda one: one.stamp, default=None)
    if last is None:
        return frozenset(known.difference(run.places))
    away = (known | {*last.places, *last.away}).difference(run.places)
    return frozenset(away.union(last.away) if last.stamp > run.stamp else away)


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


def _is_one_of(fast: Iterable[tuple[str, int]], origin: Origin, slack: int) -> bool:
    """Whether a run of a boot before this one had the clock of one that is known to have been ahead."""
    booted = origin.begin - origin.uptime
    return any(boot == origin.boot and abs(booted - other) <= slack for boot, other in fast)


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


class Looked(NamedTuple):
    """What became of a window's places: as in Manifest, and those to name."""

    places: frozenset[Place]
    away: frozenset[Place]
    waiting: dict[Place, int]
    missed: frozenset[str]
    returned: frozenset[str]


def look_at_places(
    window: Window, seen: Places, still: Collection[Place], unseen: Collection[str], runs: Iterable[Run], begin: int
) -> Looked:
    """What a walk that has `seen` these places says of those of its window.

    `still` are those that are there after it, `unseen` folders that it could not read, `runs` those of backups since
    `known_run`.
    """
    changed = seen.used.difference(still)  # unmounted, or mounted, since the walk came there
    unread = {
        place
        for place in window.places - seen.used
        if any(place.key.startswith(folder) or folder.startswith(place.key) for folder in unseen)
    }
    missed = (window.places - seen.found - unread) | changed
    gone = frozenset(place.key for place in missed)
    used = {place for place in seen.used if place.key not in gone}  # not what is there instead
    returned = used & window.away
    if window.places:
        returned |= used - window.places
    # A backup run that went on while it was not there may have stored other files in its place.
    ends = [run.end if run.is_complete else math.inf for run in runs if run.stamp > window.known_run]
    returned |= {place for place in used if max(ends, default=0) > window.waiting.get(place, math.inf) + 1}
    waiting = {place: moment for place, moment in window.waiting.items() if place not in used}
    # Increments do not wait for longer: what it has from before, if it comes back, a backup has to store.
    expired = {place for place, moment in waiting.items() if moment < begin - MAX_AGE}
    for place in expired:
        del waiting[place]
    for place in missed - waiting.keys():
        below = [moment for key, moment in window.owed.items() if key.startswith(place.key)]
        waiting[place] = min([window.begin_of(place.key), *below])
    return Looked(
        frozenset(used | missed | unread),
        frozenset((window.away - used) | returned | expired),
        waiting,
        gone,
        frozenset(place.key for place in returned),
    )


class Owed(NamedTuple):
    """What a run owes the next one (`window` as in Window.owed; None: too much to name), and what it had to forget."""

    window: dict[str, int] | None
    forgotten: int = 0


def still_owed(
    window: Window, failed: Iterable[str], unseen: Iterable[str], served: Collection[str], begin: int
) -> Owed:
    """What a run with this window owes the next one: keys that `failed`, and beginnings of keys that were `unseen`.

    What was owed below an unseen folder stays owed, and so does for a week what was owed and is not `served`, as
    nothing of it was there: it may have been moved away.
    """
    folders = set(unseen)
    owed: dict[str, int] = {}
    for key in failed:
        owed[key] = window.begin_of(key)
        if len(owed) > MAX_OWED:
            return Owed(None)
    for folder in folders:
        below = [moment for key, moment in window.owed.items() if key.startswith(folder)]
        owed[folder] = min([window.begin_of(folder), *below])
    if len(owed) > MAX_OWED:
        return Owed(None)
    absent = {
        key: min(moment, window.begin)
        for key, moment in window.owed.items()
        if moment >= begin - MAX_AGE and key not in served and key not in owed
    }
    if len(owed) + len(absent) > MAX_OWED:
        return Owed(owed, len(absent))
    return Owed(owed | absent)
