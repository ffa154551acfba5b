"""The increments of a store, read for a restore: manifests first, then each metric's records beside its backups.

What cannot be read is named, makes status 3, and the rest is used.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple, TypeVar

from whisperbackup.increments import history, merge, reader
from whisperbackup.increments.manifest import Manifest, Part, Run, increment_key, read_manifest, read_run, run_key
from whisperbackup.increments.merge import Share
from whisperbackup.increments.names import Names, is_folder
from whisperbackup.increments.record import CorruptIncrement, moment_of
from whisperbackup.increments.window import counts
from whisperbackup.repository.catalog import Backup, Metric
from whisperbackup.repository.stamps import seconds, stamp_at
from whisperbackup.runtime.threads import passing_threads
from whisperbackup.storage.base import Driver, NotFound, Unreadable, get_range
from whisperbackup.tree.selection import Selection

T = TypeVar("T")
K = TypeVar("K", Manifest, Run)

Whose = tuple[str, str, tuple[str, ...]]
DAY = 86400

OnDamage = Callable[[str, str], None]
"""Hears of what cannot be read: its name, and why."""

DELETED = "it was deleted or rewritten during this run: run it again"


class Chain(NamedTuple):
    """The increments of one tree: since when, up to a date, they have all that was written (infinite: never).

    `last` is the stamp of the newest one, whatever the date; `is_over`: one that began after the date was seen.
    """

    begin: float = math.inf
    last: str = ""
    is_over: bool = False


class Overlay(NamedTuple):
    """Increments in their order (those that began by a date, if one is given), and the records of backup runs."""

    increments: tuple[Manifest, ...]
    runs: tuple[Run, ...]
    chains: Mapping[Whose, Chain]

    def without_frames(self) -> Overlay:
        """What a worker needs to judge records."""
        return self._replace(increments=tuple(replace(one, parts=(), owed=None) for one in self.increments))

    def has_gap(self, stamp: str) -> bool:
        """Whether some increment between the backup of `stamp` and the date is not kept, or not whole any more."""
        moment = seconds(stamp)
        chains = [chain for chain in self.chains.values() if chain.last > stamp]
        return any(moment < chain.begin or not self.increments for chain in chains)

    def has_gap_after(self, increment: Manifest) -> bool:
        """Whether some increment of the same tree between this one and the date is not kept, or not whole any more."""
        chain = self.chains.get(_whose(increment), Chain())
        return chain.last > increment.stamp and increment.begin < chain.begin


def _whose(one: Manifest) -> Whose:
    return one.node, one.prefix, tuple(sorted({*one.exclude}))


NO_OVERLAY = Overlay((), (), {})


class Unread(NamedTuple):
    """A manifest or a run's record that cannot be used, and why."""

    key: str
    reason: str


def open_overlay(
    driver: Driver, storage_path: str, until: int | None, selection: Selection, now: int, on_damage: OnDamage
) -> Overlay:
    """The increments that began at or before `until`; what is lost of a selection is named.  Raises StorageError."""
    found = history.look_at_all(driver, storage_path)
    if not found.stamps:
        return NO_OVERLAY

    def read(key: str, parse: Callable[[bytes], T]) -> T | Unread:
        try:
            return parse(driver.get(storage_path + key))
        except NotFound:
            return Unread(key, DELETED)
        except CorruptIncrement as error:
            return Unread(key, f"it is damaged: {error}")
        except Unreadable as error:
            return Unread(key, f"it cannot be read: {error}")

    def manifest_of(stamp: str) -> Manifest | Unread:
        return _checked(stamp, increment_key(stamp), read(increment_key(stamp), read_manifest))

    def run_of(stamp: str) -> Run | Unread:
        return _checked(stamp, run_key(stamp), read(run_key(stamp), read_run))

    with passing_threads(driver.threads) as pool:  # the workers are forked after this
        manifests = list(pool.map(manifest_of, found.stamps))
        runs = list(pool.map(run_of, found.runs))
    unlisted = {increment_key(stamp) for stamp in set(found.stamps).difference(found.complete)}
    for each in (*manifests, *runs):
        # What is not listed was not written, or the listing lags behind (Swift).
        if isinstance(each, Unread) and not (each.key in unlisted and each.reason == DELETED):
            on_damage(*each)
    known_runs = tuple(run for run in runs if isinstance(run, Run))
    known = [one for one in manifests if isinstance(one, Manifest)]
    increments = [one for one in known if until is None or one.begin <= until]
    chains = _chains(known, found, known_runs, now, until, selection, on_damage)
    return Overlay(tuple(increments), known_runs, chains)


def _chains(
    increments: Iterable[Manifest],
    found: history.Found,
    runs: Sequence[Run],
    now: int,
    until: int | None,
    selection: Selection,
    on_damage: OnDamage,
) -> dict[Whose, Chain]:
    """The chain of each tree up to `until`; what is lost since it begins is named.

    That is an increment which others began at, if backup runs that ended by `until` did not store all its metrics.  If
    others did later, and none is older or it was old, retention may have deleted it: the chain begins after it.  So it
    does after one that retention has rewritten: that lacks the records of which backups were made.
    """
    ended = runs if until is None else [run for run in runs if run.end <= until]
    chains: dict[Whose, Chain] = {}
    there = {*found.complete, *(one.stamp for one in increments)}
    for one in increments:
        chain = chains.get(_whose(one), Chain())
        begin = chain.begin
        since = one.since + one.lag
        # One that is the newest run is a run: it may have no record any more, and its points are in backups.
        is_run = one.reference in ("", one.known_run, one.after_run, *found.runs)
        lost = Names(()) if one.reference in there or is_run else _not_backed_up(one, ended, now)
        if one.reference in there:
            begin = min(begin, since)
        else:
            may_be_deleted = begin == math.inf or any(_may_delete(run, one, now) for run in runs)
            if lost.entries and not (may_be_deleted and not _not_backed_up(one, runs, now).entries):
                _name_lost(one, lost, until, selection, on_damage)
            begin = since
        if one.records < one.all_records:
            begin = math.inf
        if until is None or one.begin <= until:
            chains[_whose(one)] = Chain(begin, one.stamp)
        elif not chain.is_over:
            is_gone = one.reference not in there and not is_run  # what came before the date, or reached up to it
            begins_later = chain.begin if chain.last else 0
            chains[_whose(one)] = Chain(math.inf if is_gone else begins_later, one.stamp, True)
        else:
            chains[_whose(one)] = chain._replace(last=one.stamp)
    return chains


def _name_lost(one: Manifest, lost: Names, until: int | None, selection: Selection, on_damage: OnDamage) -> None:
    """Name the increment that `one` begins at, if it had something of the selection by `until`."""
    named = sorted(f"{name}*" if is_folder(name) else name[:-1] for name in lost.entries if _may_be(name, selection))
    if named and one.reference < one.stamp and (until is None or one.reference <= stamp_at(until)):
        first, *others = named
        more = f" and {len(others)} more" if others else ""
        on_damage(
            f"the increment of {one.reference}",
            f"it is not in the store, though that of {one.stamp} begins where it did: its points are lost"
            + (f", of what no backup run has stored since ({first}{more})" if first != "*" else ""),
        )


def _may_delete(run: Run, one: Manifest, now: int) -> bool:
    """Whether a run may have deleted the increment that `one` begins at, or a prune before the next run.

    Retention does if the increment has nothing of what was not confirmed.
    """
    day = min(now, run.begin + DAY) - run.keep_increments * DAY
    return one.reference <= run.after_increment and one.since + one.lag <= day and _counts(run, one)


def _counts(run: Run, one: Manifest) -> bool:
    return counts(run, one.node, one.prefix, set(one.exclude))


def _not_backed_up(one: Manifest, runs: Iterable[Run], now: int) -> Names:
    """The metrics of which no backup run has what the increment had that `one` begins at; the empty name for all."""
    lost = Names([""])
    for run in runs:
        if one.reference <= run.after_increment and _counts(run, one):
            if _may_delete(run, one, now):
                return Names(())
            if run.unconfirmed is not None:
                lost &= run.names
    return lost


def _may_be(name: str, selection: Selection) -> bool:
    """Whether a key, or a folder, may be of the selection."""
    return selection.may_hold(name) if is_folder(name) else name[:-1] in selection


def _checked(stamp: str, key: str, found: K | Unread) -> K | Unread:
    return found if isinstance(found, Unread) or found.stamp == stamp else Unread(key, f"it is that of {found.stamp}")


class Reading:
    """The records of a selection's metrics, joined with the metrics that have backups; iterate once."""

    def __init__(
        self,
        overlay: Overlay,
        driver: Driver,
        storage_path: str,
        selection: Selection,
        until: int | None,
        on_damage: OnDamage,
    ) -> None:
        self._overlay, self._driver, self._path = overlay, driver, storage_path
        self._selection, self._until, self._on_damage = selection, until, on_damage
        self._waiting: dict[str, tuple[Share, ...]] = {}
        self._named: set[tuple[str, str]] = set()
        self.left_alone = 0  # metrics whose records are not used

    def has_records(self, name: str) -> bool:
        """Whether the metric just yielded has any."""
        return name in self._waiting

    def take(self, metric: Metric, candidates: list[Backup]) -> tuple[Share, ...]:
        """The records of the metric just yielded; no later ones if increments between its backup and the date are gone.

        That can be where a date chooses another than the newest backup: one between may be thinned out.
        """
        shares = self._waiting.pop(metric.name, ())
        is_older = self._until is not None and candidates and candidates[0].stamp != metric.backups[-1].stamp
        if is_older and self._overlay.has_gap(candidates[0].stamp):
            self.left_alone += 1
            increments = self._overlay.increments
            return tuple(share for share in shares if increments[share.number].stamp <= candidates[0].stamp)
        return shares

    def beside(self, catalog: Iterable[Metric]) -> Iterator[Metric]:
        """The metrics of the catalog and those that only increments have, ascending by key."""
        records = self._records()
        record = next(records, None)
        for metric in catalog:
            while record is not None and record.key < metric.key:
                yield self._alone(record)
                record = next(records, None)
            if record is not None and record.key == metric.key:
                self._waiting[metric.name] = tuple(record.shares)
                record = next(records, None)
            yield metric
        while record is not None:
            yield self._alone(record)
            record = next(records, None)

    def _alone(self, record: merge.Metric) -> Metric:
        name = record.key[:-1]
        self._waiting[name] = tuple(record.shares)
        return Metric(name, (), (), (), "")

    def _records(self) -> Iterator[merge.Metric]:
        size = merge.request_size(len(self._overlay.increments))
        streams = [self._stream(increment, size) for increment in self._overlay.increments]
        with ThreadPoolExecutor(self._driver.threads) as pool:  # the first requests of all streams at once
            firsts = list(pool.map(lambda stream: list(itertools.islice(stream, 1)), streams))
        whole = [itertools.chain(first, stream) for first, stream in zip(firsts, streams, strict=True)]
        for metric in merge.join(whole, lambda error: self._on_damage("an increment", str(error))):
            if metric.key[:-1] not in self._selection:
                continue
            if self._until is not None:
                shares = [share for share in metric.shares if moment_of(share.content) <= self._until]
                if not shares:
                    continue
                metric = metric._replace(shares=shares)
            yield metric

    def _stream(self, increment: Manifest, request: int) -> Iterator[reader.Stored]:
        fetch = functools.partial(fetch_part, self._driver, self._path, increment.stamp)

        def on_damage(error: CorruptIncrement) -> None:
            if (increment.stamp, str(error)) not in self._named:
                self._named.add((increment.stamp, str(error)))
                self._on_damage(f"the increment of {increment.stamp}", f"{error}; the rest of it is used")

        return reader.read(increment, fetch, self._selection.prefixes, on_damage, request)


def fetch_part(driver: Driver, storage_path: str, stamp: str, name: str, offset: int, length: int) -> bytes:
    """A piece of an increment's part.  Raises CorruptIncrement for one that is not there, StorageError."""
    try:
        return get_range(driver, storage_path + increment_key(stamp, name), offset, length)
    except NotFound:
        raise CorruptIncrement(missing(driver, storage_path, stamp, name)) from None
    except Unreadable as error:
        raise CorruptIncrement(f"part {name} cannot be read: {error}") from error


def missing(driver: Driver, storage_path: str, stamp: str, name: str) -> str:
    """What to report of a part that is not in the store."""
    try:
        made = read_manifest(driver.get(storage_path + increment_key(stamp)))
    except NotFound:
        return DELETED
    except CorruptIncrement as error:
        return f"part {name} is missing, and the manifest is damaged: {error}"
    return f"part {name} is missing" if name in [part.name for part in made.parts] else DELETED


def parts_of(overlay: Overlay, selection: Selection) -> Iterator[tuple[str, Part, str]]:
    """The parts that can have selected metrics: the increment's stamp, the part, and the first key of the next one."""
    for increment in overlay.increments:
        wanted = {part.name for part, _ in reader.wanted_frames(increment, selection.prefixes)}
        for part, after in itertools.zip_longest(increment.parts, increment.parts[1:]):
            if part.name in wanted:
                yield increment.stamp, part, after.frames[0].first if after else ""
