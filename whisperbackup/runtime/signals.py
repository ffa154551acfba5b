"""Stop signals: the first one raises an exception where that is safe, the second ends the run at once.

If a run blocks after the first one, because nobody reads its output, a timer ends it.
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

STOP_LIMIT = 10.0  # seconds within which a stopped run should exit
HARD_LIMIT = 20.0  # seconds after which a stopped run exits in any case, even if it is blocked
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A stop signal arrived.  Not an Exception, so that no library handles it as a failure to retry."""

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
        if signal.getsignal(number) is not signal.SIG_IGN:  # not where nohup ignores it
            signal.signal(number, _handle)
    signal.signal(signal.SIGALRM, _give_up)


def _handle(number: int, _: FrameType | None) -> None:
    if _State.received is not None:
        os._exit(128 + number)  # the workers die with their parent
    _State.received, _State.received_at = number, time.monotonic()
    # A blocked write is interrupted only while the handler runs, so the timer's handler must end the process.
    signal.setitimer(signal.ITIMER_REAL, HARD_LIMIT)
    if not _State.is_shielded:
        raise Stopped(number)


def _give_up(*_: object) -> None:
    number = _State.received or signal.SIGTERM
    text = f"ERROR: stopped by {signal.Signals(number).name}, and still blocked after {HARD_LIMIT:g} seconds\n"
    with contextlib.suppress(Exception):
        if select.select([], [sys.stderr], [], 0)[1]:  # stderr itself may block
            os.write(sys.stderr.fileno(), text.encode())
    os._exit(128 + number)  # the workers die with their parent


def check() -> None:
    """Raise Stopped again if Python ignored it, for example in a destructor or a fork hook."""
    if _State.received is not None:
        raise Stopped(_State.received)


@contextlib.contextmanager
def shield() -> Iterator[None]:
    """Delay Stopped until the end of a short block that must not be interrupted."""
    before, was_shielded = _State.received, _State.is_shielded
    _State.is_shielded = True
    try:
        yield
    finally:
        _State.is_shielded = was_shielded
    if _State.received is not None and before is None and not was_shielded:
        raise Stopped(_State.received)


def disregard() -> None:
    """Ignore a first signal from now on, because the work is over; a second one still ends the run at once."""
    _State.is_shielded = True


def left_of(seconds: float) -> float:
    """The rest of `seconds` since the stop signal; all of them if there was none."""
    return seconds if _State.received is None else seconds - (time.monotonic() - _State.received_at)
