"""Stamps: the UTC second in an object's key, in one form, so that they compare as strings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta


def stamp_of(moment: datetime) -> str:
    """The stamp of an aware datetime."""
    moment = moment.astimezone(UTC)
    return f"{moment.year:04}" + moment.strftime("-%m-%dT%H:%M:%S+00:00")  # %Y does not pad


def next_stamp(now: datetime, last: str) -> str:
    """A stamp for `now` that is later than `last` (empty: none), whatever the clock did.

    Raises ValueError at the end of time.
    """
    stamp = stamp_of(now)
    if stamp > last:
        return stamp
    try:
        return stamp_of(datetime.fromisoformat(last) + timedelta(seconds=1))
    except OverflowError:
        raise ValueError(f"the store holds an object stamped {last}, and no later stamp can be made") from None
