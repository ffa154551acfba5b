"""Which increments may be deleted: those whose every point is known to be in a backup.

A backup run *counts* for an increment of the same node and prefix if it began when the increment was complete, came
to its end, saw the whole tree, and excluded nothing that the increment did not.  It does not count for what it names
as unconfirmed: failed, vanished, unseen, missing, kept by the guard on size.

An increment older than `--keep-increments` is judged in two steps, because to know which of its keys are unconfirmed
takes reading some of its frames: `judge` says what to look for, `settle` what to do.
"""

from __future__ import annotations

import enum
import random
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from whisperbackup.increments.manifest import INCREMENTS, MANIFEST, Manifest, Part, Run
from whisperbackup.increments.names import Names
from whisperbackup.increments.part import PART_NUMBERS, frames_of, parts_of
from whisperbackup.increments.window import counts
from whisperbackup.repository.stamps import stamp_of

DAY = 86400
SPARE = 1000  # numbers: frames are made again, maybe of other sizes


class Action(enum.Enum):
    """What to do about an increment."""

    KEEP = "keep"
    DELETE = "delete"
    REWRITE = "rewrite to its unconfirmed records"
    GIVE_UP = "delete, and name the keys that no backup confirmed"


class Judgement(NamedTuple):
    """An increment that is old enough, and the metrics that no run has confirmed; None: no run counts for it at all."""

    increment: Manifest
    doubtful: Names | None


def counting(increment: Manifest, runs: Iterable[Run]) -> list[Run]:
    """The runs that count for an increment: by the store's order, and by the clock."""
    excluded = set(increment.exclude)
    return [
        run
        for run in runs
        if increment.stamp <= run.after_increment
        and increment.end <= run.begin
        and run.unconfirmed is not None
        and counts(run, increment.node, increment.prefix, excluded)
    ]


def judge(increments: Iterable[Manifest], runs: Collection[Run], now: int, keep: int) -> list[Judgement]:
    """The increments that ended more than `keep` seconds ago, and what is doubtful of each."""
    judgements = []
    for increment in increments:
        if increment.end > now - keep:
            continue
        confirming = counting(increment, runs)
        if not confirming:
            judgements.append(Judgement(increment, None))
            continue
        first, *others = [run.names for run in confirming]
        for other in others:
            first &= other
        judgements.append(Judgement(increment, first))
    return judgements


def is_mostly_held(increment: Manifest, held: int) -> bool:
    """Whether more than half of an increment is unconfirmed."""
    return 2 * held > (increment.all_records or increment.records)


def settle(judgement: Judgement, held: int, now: int, keep: int, beyond: int) -> Action:
    """What to do, `held` being how many records of doubtful keys it holds that are still in the store as metrics.

    An increment of which more than half is unconfirmed stays until runs confirm it, however long that takes; of others
    the unconfirmed rest is kept for `beyond` seconds more.
    """
    increment, doubtful = judgement
    if doubtful is None:
        return Action.KEEP
    if not held:
        return Action.DELETE
    if is_mostly_held(increment, held):
        return Action.KEEP
    if increment.end <= now - keep - beyond:
        return Action.GIVE_UP
    return Action.REWRITE if held < increment.records else Action.KEEP


class Orphan(NamedTuple):
    """A part that no manifest names."""

    key: str
    size: int


def orphans(listing: Iterable[tuple[str, int]], complete: Collection[str], now: int) -> list[Orphan]:
    """What killed runs left below `.increments/`, a day old and more.

    `listing` are keys below the storage path, with sizes; `complete` the stamps that have a manifest.  Parts beside a
    manifest that does not name them may be those of a run that is rewriting the increment: their age is not known, and
    they stay as long as it does.
    """
    limit = stamp_of(datetime.fromtimestamp(now - DAY, UTC))
    found = []
    for key, size in listing:
        stamp, _, name = key.removeprefix(INCREMENTS).partition("/")
        if name and name != MANIFEST and stamp < limit and stamp not in complete:
            found.append(Orphan(key, size))
    return found


def rewritten_parts(increment: Manifest, held: Iterable[tuple[str, int, bytes]]) -> Iterator[tuple[Part, bytes]]:
    """The parts of an increment with these records only, as (key, points, encoded), ascending.

    Store the parts, then the manifest, then delete the parts that the old manifest names: its names are not used again.
    The new ones are random: a prune and a backup that rewrite it at once must not replace each other's parts.
    """
    taken = {int(part.name[:6]) for part in increment.parts}
    number = random.randrange(PART_NUMBERS) + 1
    while not taken.isdisjoint(range(number, number + len(taken) + SPARE)):
        number = random.randrange(PART_NUMBERS) + 1
    return parts_of(frames_of(held), number)


def rewritten(increment: Manifest, parts: Iterable[Part], points: int) -> Manifest:
    """The manifest of a rewritten increment."""
    parts = tuple(parts)
    return replace(
        increment,
        records=sum(frame.records for part in parts for frame in part.frames),
        points=points,
        all_records=increment.all_records or increment.records,
        parts=parts,
    )
