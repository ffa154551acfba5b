"""Stop signals: the first one becomes an exception where the run can bear it, the second ends it at once.

A run that is blocked after the first one, because nobody reads what it writes, is ended by a timer.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType

STOP_LIMIT = 10.0  # seconds within which a run that is stopped is to be gone
HARD_LIMIT = 20.0  # seconds after which it ends itself, whatever it waits for; work in flight gets its time before
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A stop signal came.  Not an Exception, so that no library takes it for a failure to retry."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class _State:
    received: int | None = None
    received_at = 0.0  # time.monotonic()
    is_shielded = False


def install() -> None:
    """Turn the stop signals into Stopped, raised in the main thread."""
    _State.received, _State.is_shielded = None, False
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup's wish
            signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _give_up)


def _handle(number: int, _: FrameType | None) -> None:
    if _State.received is not None:
        os._exit(128 + number)  # the workers die with their parent
    _State.received, _State.received_at = number, time.monotonic()
    # A write that blocks is interrupted by a signal only for as long as its handler runs; the handler must end it.
    signal.setitimer(signal.ITIMER_REAL, HARD_LIMIT)
    if not _State.is_shielded:
        raise Stopped(number)


def _give_up(*_: object) -> None:
    number = _State.received or signal.SIGTERM
    text = f"ERROR: stopped by {signal.Signals(number).name}, and ended after {HARD_LIMIT:g} seconds of waiting\n"
    with contextlib.suppress(Exception):
        if select.select([], [sys.stderr], [], 0)[1]:  # it may be what everything waits for
            os.write(sys.stderr.fileno(), text.encode())
    os._exit(128 + number)  # the workers die with their parent


def check() -> None:
    """Raise the Stopped that was lost where Python ignores exceptions, as in a destructor or a hook of fork."""
    if _State.received is not None:
        raise Stopped(_State.received)


@contextlib.contextmanager
def shield() -> Iterator[None]:
    """Do something short that an exception in the middle would spoil; a signal that comes meanwhile is raised after."""
    before, was_shielded = _State.received, _State.is_shielded
    _State.is_shielded = True
    try:
        yield
    finally:
        _State.is_shielded = was_shielded
    if _State.received is not None and before is None and not was_shielded:
        raise Stopped(_State.received)


def disregard() -> None:
    """From now on, the work being over, a first signal changes nothing any more; the second still ends at once."""
    _State.is_shielded = True


def left_of(seconds: float) -> float:
    """What is left of `seconds` since the stop signal; all of them if none came."""
    return seconds if _State.received is None else seconds - (time.monotonic() - _State.received_at)
