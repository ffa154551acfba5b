"""Which records of a metric are later than one of its backups, and which are earlier.

What was complete in the store when the other began is earlier, whatever the clocks were.  Only of a backup run and an
increment at the same time, or where a run left no record, it is told by the clock: a backup's stamp is the moment of
its reading, unless it had to be later than an older one.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from whisperbackup.increments.manifest import Manifest, Run
from whisperbackup.increments.record import Record
from whisperbackup.repository.stamps import seconds


class Order(enum.Enum):
    """How a record is to a backup."""

    EARLIER = "earlier"
    UNKNOWN = "unknown"
    LATER = "later"


class Sorted(NamedTuple):
    """Records of a metric, in the order of their increments, by how they are to its backup."""

    later: tuple[Record, ...] = ()
    unsure: tuple[Record, ...] = ()
    earlier: tuple[Record, ...] = ()

    @classmethod
    def by(cls, orders: Iterable[Order], records: Iterable[Record]) -> Sorted:
        """These records, of each of which the order is given."""
        found: dict[Order, list[Record]] = {order: [] for order in Order}
        for order, record in zip(orders, records, strict=True):
            found[order].append(record)
        return cls(*(tuple(found[order]) for order in (Order.LATER, Order.UNKNOWN, Order.EARLIER)))


def orders(
    records: Sequence[tuple[Record, Manifest]], stamp: str, runs: Sequence[Run], newest_until: float = -1
) -> list[Order]:
    """How each of a metric's records is to its backup `stamp` (empty: there is none).

    The records come with their increments, and in the order of these, in which they were read.  So what comes after a
    later one is later, and what comes before an earlier one is earlier.  `runs` are all of the store, ascending, of
    whatever node: one that did not see the metric does not confirm it.  Until `newest_until` there was no newer backup:
    what runs that ended by then found in the file was the same.
    """
    if not stamp or not records:
        return [Order.LATER] * len(records)
    moment = seconds(stamp)
    witnesses = _witnesses(moment, records[0][0].key, runs, newest_until)
    found = []
    for record, increment in records:
        told = {_order_by(record, increment, moment, witness) for witness in witnesses}
        found.append(told.pop() if len(told) == 1 else Order.UNKNOWN)
    first = found.index(Order.LATER) if Order.LATER in found else len(found)
    rest = len(found) - found[::-1].index(Order.EARLIER) if Order.EARLIER in found else 0
    begin, end = min(first, rest), max(first, rest)
    return [Order.EARLIER] * begin + [Order.UNKNOWN] * (end - begin) + [Order.LATER] * (len(found) - end)


def _witnesses(moment: int, key: str, runs: Sequence[Run], newest_until: float) -> list[Run | None]:
    """The runs of which one last found that the file held what its backup of this moment has; None: one without record.

    While there is no newer backup, that is the last run that confirms the metric and came to its end.  Else it is the
    run that made the backup: more than one is possible where the clock was set, since no backup is stamped earlier than
    the one before, and a run under a fast clock leaves its stamps to those after it.  A run that did not end has not
    told which stamps it gave, but made none after the next one had begun.
    """
    # The cheap comparisons come first: there can be hundreds of runs for each of a million metrics.
    inside = [
        run
        for run in runs
        if run.is_complete and run.earliest <= moment <= max(run.end, run.last_stamp) and run.selects(key)
    ]
    # One made it, even if it names the metric: retention's guard may have kept an older backup, too.
    inside = [run for run in inside if not run.doubts(key)] or inside
    last = max((run.stamp for run in runs if run.is_complete and run.begin <= moment), default="")
    ended = next(
        (run for run in reversed(runs) if run.is_complete and run.end <= newest_until and run.confirms(key)), None
    )
    found: list[Run | None] = [*inside]
    if ended is not None and (ended.stamp >= inside[-1].stamp if inside else moment <= ended.end):
        found, last = [ended], max(last, ended.stamp)
    found += [
        run for run in runs if not run.is_complete and run.stamp > last and run.begin <= moment and run.confirms(key)
    ]
    return found or [None]


def _order_by(record: Record, increment: Manifest, moment: int, witness: Run | None) -> Order:
    if witness is not None:
        if increment.stamp <= witness.after_increment:
            return Order.EARLIER
        if witness.stamp <= increment.after_run:
            return Order.LATER
        if witness.was_set_back:
            return Order.UNKNOWN
    if record.version >= moment:
        return Order.LATER
    if witness is None or not witness.is_complete:
        return Order.UNKNOWN  # the clock may have been set back since
    if moment <= witness.end or record.version < witness.begin:
        return Order.EARLIER
    return Order.LATER if record.version >= witness.end else Order.UNKNOWN
