"""Backups with a stamp ahead of the clock: which of them a clock that was wrong has stamped, and their new stamps.

The order of a metric's stamps is the order in which its backups were made, so one stamp that is years ahead forces all
later ones behind it.  Whether the clock was wrong then or is wrong now cannot be told from one stamp; from a history it
can: a clock that was far ahead leaves a leap in it, a clock that is behind now stands in the middle of it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import datetime, timedelta

from whisperbackup.repository import backups, keys
from whisperbackup.repository.backups import BadBackup
from whisperbackup.repository.catalog import Backup, Metric
from whisperbackup.repository.compression import CorruptPayload
from whisperbackup.repository.stamps import next_stamp, stamp_of
from whisperbackup.storage.base import Driver, Exists, NotFound, create_all, holds
from whisperbackup.whisper.format import CorruptFile

TOLERANCE = timedelta(days=1)  # clocks and time zones are off by less than that
LEAP = timedelta(days=60)
TIMES = 10


def horizon(now: datetime) -> str:
    """Stamps later than this one are ahead of the clock."""
    return stamp_of(now + TOLERANCE)


def misdated(history: Sequence[Backup], now: datetime) -> int:
    """How many of the newest of `history`, the oldest first, have the stamp of a clock that was far ahead.

    They begin more than sixty days ahead of `now`, and more than ten times as far as any two earlier backups, or the
    last of these and `now`, are apart.  Where there is no earlier one nothing can be told, and it is none.
    """
    if len(history) < 2 or history[-1].stamp[:10] <= f"{now:%Y-%m-%d}":
        return 0  # as nearly always, and at no cost
    latest = horizon(now)
    count = sum(backup.stamp > latest for backup in history)
    if not 0 < count < len(history):
        return 0
    moments = [datetime.fromisoformat(backup.stamp) for backup in history]
    earlier = [*moments[:-count], now]
    pause = max(abs(later - before) for before, later in itertools.pairwise(earlier))
    return count if moments[-count] - now > max(LEAP, TIMES * pause) else 0


def later_stamp(metric: Metric, now: datetime) -> str:
    """The stamp of the metric's next backup: the present, and later than its newest backup.

    Tombstones and debris that are ahead of the clock force nothing behind them, as long as they are not met.
    Raises ValueError at the end of time.
    """
    latest = horizon(now)
    if not metric.backups or metric.backups[-1].stamp <= latest:
        stamp = next_stamp(now, max((stamp for stamp in _stamps(metric) if stamp <= latest), default=""))
        if stamp <= latest:
            return stamp
    return next_stamp(now, metric.last_stamp)


def _stamps(metric: Metric) -> list[str]:
    backups, debris = (backup.stamp for backup in metric.backups), (half.stamp for half in metric.debris)
    return [*backups, *debris, *metric.tombstones]


def stamp_anew(driver: Driver, key: str, metric: Metric, now: datetime, max_size: int) -> tuple[Metric, int]:
    """Give the misdated backups of `metric` (its keys begin with `key`) stamps up to the present.

    The metric after that, and how many there were.  All are moved by the same time, so that calendar rules keep of them
    what they would have kept.  One after the other, the oldest first, each copied before it is deleted: wherever a
    stop comes, every content is there and the order is right.  No content of more than `max_size` bytes is read.
    Raises StorageError.
    """
    count = misdated(metric.backups, now)
    if not count or any(payload.size > max_size for backup in metric.backups[-count:] for payload in backup.payloads):
        return metric, 0
    latest = horizon(now)
    kept = list(metric.backups[:-count])
    taken = {stamp for stamp in _stamps(metric) if stamp <= latest}
    ahead = datetime.fromisoformat(metric.backups[-1].stamp) - now
    for number, backup in enumerate(metric.backups[-count:]):
        moment = datetime.fromisoformat(backup.stamp) - ahead
        stamp = next_stamp(moment, kept[-1].stamp)
        while stamp in taken:
            stamp = next_stamp(moment, stamp)
        try:
            objects = _copied(driver, key, backup, stamp, max_size)
            if not create_all(driver, objects):  # a run without our lock may have replaced them meanwhile
                _check(driver, objects)
        except (BadBackup, CorruptPayload, CorruptFile, NotFound, Exists):
            # It cannot be moved, and is no reason not to back up.
            return metric._replace(backups=(*kept, *metric.backups[len(kept) :])), number
        driver.delete([key + suffix for suffix in backup.suffixes()])
        kept.append(backup._replace(stamp=stamp))
    return metric._replace(backups=tuple(kept)), count


def _check(driver: Driver, objects: Sequence[tuple[str, bytes]]) -> None:
    """Raises Exists unless all `objects` are stored as they are."""
    for key, body in objects:
        if not holds(driver, key, body):
            raise Exists(key)


def _copied(driver: Driver, key: str, backup: Backup, stamp: str, max_size: int) -> list[tuple[str, bytes]]:
    """The objects of `backup` under another stamp, the mark last, proved by it: the originals are deleted afterwards.

    Raises BadBackup, CorruptPayload, CorruptFile, StorageError.
    """
    sha1 = backups.read_mark(driver, key, backup)
    objects = []
    for codec, _ in backup.payloads:
        payload = driver.get(keys.payload(key, backup.stamp, codec))
        backups.proven_size(codec, payload, max_size, sha1)
        objects.append((keys.payload(key, stamp, codec), payload))
    return [*objects, (keys.mark(key, stamp), sha1.encode())]
