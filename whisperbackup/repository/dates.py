"""What a date on the command line stands for: ISO 8601, a time ago, yesterday."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from whisperbackup.repository.stamps import stamp_of

EXPECTED = "a date in ISO 8601, for example 2026-11-23 or 2026-11-23T18:00:00+01:00, or 36h, 2d, 3w, yesterday"
_UNITS = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_AGO = re.compile(rf"-?(\d{{1,6}})\s*({'|'.join(_UNITS)})(\s+ago)?", re.ASCII | re.I)
_DAY = re.compile(r"(today|yesterday)(?:[\sT]+(.+))?", re.I)
_DAYS_AGO = {"today": 0, "yesterday": 1}


def parse_date(text: str, now: datetime) -> str:
    """The stamp of a moment; without a time it is 00:00, without a zone UTC.  Raises ValueError.

    `36h`, `2d`, `3w` and `90min` are so long before `now`.  `yesterday` is the day before in the zone that is given.
    """
    try:
        moment = _moment(text.strip(), now)
        return stamp_of(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise ValueError(EXPECTED) from None


def _moment(text: str, now: datetime) -> datetime:
    if text.lower() == "now":
        return now
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _UNITS[ago[2].lower()]
    if day := _DAY.fullmatch(text):
        time = _iso(f"{now.astimezone(UTC):%Y-%m-%d}T{day[2]}") if day[2] else datetime.min
        zone = time.tzinfo or UTC
        date = now.astimezone(zone).date() - timedelta(days=_DAYS_AGO[day[1].lower()])
        return datetime.combine(date, time.timetz() if day[2] else time.time(), zone)
    return _iso(text)


def _iso(text: str) -> datetime:
    compact = re.sub(r"\s+(?=[+-]\d\d|Z$)", "", re.sub(r"\s*(UTC|GMT)$", "Z", text, flags=re.I))
    return datetime.fromisoformat(compact.upper())


def shown(stamp: str) -> str:
    """A stamp, with the local time of this machine."""
    return f"{stamp} ({datetime.fromisoformat(stamp).astimezone():%Y-%m-%d %H:%M:%S %Z} here)"
