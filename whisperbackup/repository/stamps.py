"""Stamps: the UTC second in an object's key, all in one format, so that they compare as strings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def stamp_of(moment: datetime) -> str:
    """The stamp of an aware datetime."""
    moment = moment.astimezone(UTC)
    return f"{moment.year:04}" + moment.strftime("-%m-%dT%H:%M:%S+00:00")  # %Y does not pad


def stamp_at(moment: float) -> str:
    """The stamp of a Unix time."""
    return stamp_of(datetime.fromtimestamp(max(moment, 0), UTC))


def seconds(stamp: str) -> int:
    """A stamp as Unix time."""
    return int(datetime.fromisoformat(stamp).timestamp())


def next_stamp(now: datetime, last: str) -> str:
    """A stamp for `now` that is later than `last` (empty: none), even if the clock was set back.

    Raises ValueError if no later stamp exists.
    """
    stamp = stamp_of(now)
    if stamp > last:
        return stamp
    try:
        return stamp_of(datetime.fromisoformat(last) + timedelta(seconds=1))
    except OverflowError:
        raise ValueError(f"the store holds an object stamped {last}, and no later stamp can be made") from None
