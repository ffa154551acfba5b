"""How far the days of grace can be trusted: since when runs have followed one another without a leap of the clock.

Each run compares its clock with the record of the run before it.  Within one boot the kernel's uptime tells how much
time passed.  Otherwise a run is doubtful if it began more than a day before the last one, or after a pause that is
much longer than the pause before.  A doubtful run marks and deletes no missing metric, and gives no backup a
new stamp; after it the days of grace are counted anew: a wrong clock can only make a deletion later.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import NamedTuple

DAY = timedelta(days=1)
SHORT = 3 * DAY  # a pause of a long weekend is no leap
TIMES = 2


class Moment(NamedTuple):
    """When a run began: by the clock, and by seconds of `uptime` since the boot with this id (empty: unknown)."""

    now: datetime
    boot: str = ""
    uptime: int = 0


class Last(NamedTuple):
    """What the record of the last run has: seconds of Unix time, and of uptime."""

    begin: int
    boot: str
    uptime: int
    steady_since: int
    pause: int


class Steady(NamedTuple):
    """`doubt` says why the clock of this run cannot be trusted; empty: it can.

    `since` is when the runs without a leap began, in Unix time, 0 if no leap is known; `pause` are the seconds
    that usually pass between two runs: those since the last one, or half of the pause before, 0 if that is unknown.
    Runs that become much rarer are doubtful until it has doubled, run by run, to their pause.  `latest` is when a
    doubtful run or the one before began, by whichever clock says later.
    """

    now: datetime
    since: int = 0
    pause: int = 0
    doubt: str = ""
    latest: datetime | None = None

    def covers(self, age: timedelta) -> bool:
        """Whether so much time has passed without a leap of the clock."""
        return not self.doubt and self.now.timestamp() - self.since >= age.total_seconds()

    def has_shown(self, days: int) -> bool:
        """Whether `days` of grace can be trusted to be over; 0 days need no clock."""
        return days <= 0 or self.covers(timedelta(days=days))

    @property
    def remark(self) -> str:
        """Why what is due is kept, for a message."""
        if self.doubt:
            return self.doubt
        since = datetime.fromtimestamp(self.since, self.now.tzinfo)
        return f"the clock leapt on {since:%Y-%m-%d}, and the days of grace are counted anew since then"


def judge(last: Last | None, moment: Moment) -> Steady:
    """Compare the clock of a run that begins at `moment` with the record of the `last` run, if there is one."""
    now = moment.now
    if last is None:
        return Steady(now)
    begin = datetime.fromtimestamp(last.begin, now.tzinfo)
    step = now - begin
    half = last.pause // 2  # a run between two others is no pace
    pause = max(int(step.total_seconds()), half)
    if doubt := _doubt(last, moment, begin, step):
        # The next leap may be as long: that must be no usual pause yet.
        pause = max(half, min(pause, max(2 * last.pause, int(DAY.total_seconds()))))
        return Steady(now, int(now.timestamp()), pause, doubt, max(now, begin))
    return Steady(now, last.steady_since, pause)


def _doubt(last: Last, moment: Moment, begin: datetime, step: timedelta) -> str:
    shows = f"this machine's clock shows {moment.now:%Y-%m-%d %H:%M}, but the last run of backup began"
    if moment.boot and moment.boot == last.boot:
        passed = timedelta(seconds=moment.uptime - last.uptime)
        if abs(step - passed) > DAY:
            return f"{shows} {begin:%Y-%m-%d %H:%M}, {_days(passed)} before: the clock was changed"
        return ""
    if step < -DAY:
        return f"{shows} {_days(-step)} later, {begin:%Y-%m-%d %H:%M}: the clock is behind, or was ahead then"
    if step > max(SHORT, TIMES * timedelta(seconds=last.pause)):
        return f"{shows} {_days(step)} before, {begin:%Y-%m-%d %H:%M}: the clock is ahead, or there was no run"
    return ""


def _days(time: timedelta) -> str:
    return f"{time / DAY:.0f} days" if time >= 2 * DAY else f"{time / timedelta(hours=1):.0f} hours"
