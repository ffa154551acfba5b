"""Backups with a stamp ahead of the clock: which of them come from a clock that was wrong, and their new stamps.

A metric's stamps are in the order in which its backups were made, so after a stamp that is years ahead all later stamps
must be later still.  One stamp does not show whether the clock was wrong then or is wrong now, but a history does: a
clock that was far ahead leaves a gap in it, and a clock that is behind now shows a time in the middle of it.  After a
leap of the clock a week must pass first.
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
from whisperbackup.storage.base import Driver, Exists, NotFound, Unreadable, create_all, holds
from whisperbackup.whisper.format import CorruptFile

TOLERANCE = timedelta(days=1)  # errors of clocks and time zones are smaller
LEAP = timedelta(days=60)
SURE = timedelta(days=7)  # a clock that has leapt is believed after so long
TIMES = 10


def horizon(now: datetime) -> str:
    """Stamps later than this one are ahead of the clock."""
    return stamp_of(now + TOLERANCE)


def misdated(history: Sequence[Backup], now: datetime) -> int:
    """How many of the newest of `history`, the oldest first, have the stamp of a clock that was far ahead.

    They begin more than sixty days ahead of `now`, and more than ten times as far as any two earlier backups, or the
    last of these and `now`, are apart.  Without an earlier backup this cannot be determined, and the result is 0.
    """
    if len(history) < 2 or history[-1].stamp[:10] <= f"{now:%Y-%m-%d}":
        return 0  # the usual case, found without parsing
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

    The stamp need not be later than tombstones and orphans ahead of the clock, as long as it does not reach them.
    Raises ValueError if no later stamp exists.
    """
    latest = horizon(now)
    if not metric.backups or metric.backups[-1].stamp <= latest:
        stamp = next_stamp(now, max((stamp for stamp in _stamps(metric) if stamp <= latest), default=""))
        if stamp <= latest:
            return stamp
    return next_stamp(now, metric.last_stamp)


def _stamps(metric: Metric) -> list[str]:
    backups, orphans = (backup.stamp for backup in metric.backups), (half.stamp for half in metric.orphans)
    return [*backups, *orphans, *metric.tombstones]


def stamp_anew(driver: Driver, key: str, metric: Metric, now: datetime, max_size: int) -> tuple[Metric, int]:
    """Give the misdated backups of `metric` (its keys begin with `key`) stamps up to the present.

    Returns the changed metric and the number of backups moved.  All are moved by the same time, so that calendar rules
    keep the same ones.  They are moved one by one, the oldest first, and each is copied before it is deleted: after a
    stop at any point no content is missing and the order is right.  Content of more than `max_size` bytes is not read.
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
            if not create_all(driver, objects):  # a run without the lock may have replaced them meanwhile
                _check(driver, objects)
        except (BadBackup, CorruptPayload, CorruptFile, NotFound, Unreadable, Exists):
            # This backup cannot be moved; that must not prevent a new backup.
            return metric._replace(backups=(*kept, *metric.backups[len(kept) :])), number
        driver.delete([key + suffix for suffix in backup.suffixes()])
        kept.append(backup._replace(stamp=stamp))
    return metric._replace(backups=tuple(kept)), count


def _check(driver: Driver, objects: Sequence[tuple[str, bytes]]) -> None:
    """Raise Exists unless all `objects` are stored with this content."""
    for key, body in objects:
        if not holds(driver, key, body):
            raise Exists(key)


def _copied(driver: Driver, key: str, backup: Backup, stamp: str, max_size: int) -> list[tuple[str, bytes]]:
    """The objects of `backup` under another stamp, mark last.  Verified, since the caller deletes the originals.

    Raises BadBackup, CorruptPayload, CorruptFile, StorageError.
    """
    sha1 = backups.read_mark(driver, key, backup)
    objects = []
    for codec, _ in backup.payloads:
        payload = driver.get(keys.payload(key, backup.stamp, codec))
        backups.proven_size(codec, payload, max_size, sha1.__eq__)
        objects.append((keys.payload(key, stamp, codec), payload))
    notes = [(keys.recreated(key, stamp), b"")] if backup.is_recreated else []
    return [*notes, *objects, (keys.mark(key, stamp), sha1.encode())]
