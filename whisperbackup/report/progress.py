"""The progress of a run: a bar on a terminal, else one line per minute."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from whisperbackup.report.counters import COUNTERS
from whisperbackup.report.run_stats import RunStats
from whisperbackup.runtime.signals import Stopped

logger = logging.getLogger(__name__)

INTERVAL = 60.0  # seconds between progress lines without a terminal


class _Display:
    """The progress bar of this process, or the time of the last progress line."""

    bar: Any = None
    last = 0.0
    cleared = 0.0  # when the bar was last drawn before it was removed


@contextlib.contextmanager
def reporting(stats: RunStats, quiet: bool, expected: Callable[[], int] = lambda: 0) -> Iterator[RunStats]:
    """Show progress, and print the last line even if the run ends early.

    `expected()` is about how much there is to examine, 0 if unknown; a bar then has an end.
    """
    try:
        with bar(stats.command, COUNTERS[stats.command].unit, quiet, expected):
            yield stats
    except Stopped as stop:
        logger.error("%s %s: %s", stats.command, stop, stats.summary())
        raise
    except Exception:
        logger.error("%s ended early: %s", stats.command, stats.summary())
        raise


@contextlib.contextmanager
def bar(command: str, unit: str, quiet: bool, expected: Callable[[], int]) -> Iterator[None]:
    """Show a bar, if standard error is a terminal; `advance` moves it."""
    _Display.last = time.monotonic()
    if quiet or not sys.stderr.isatty():
        yield
        return
    import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    tqdm.tqdm.monitor_interval = 0  # do not start a thread
    with (
        tqdm.tqdm(
            desc=command,
            total=expected() or None,
            unit=f" {unit}",
            dynamic_ncols=True,
            leave=False,
        ) as shown,
        logging_redirect_tqdm(),
    ):
        _Display.bar = shown
        try:
            yield
        finally:
            _Display.bar = None


def tick(stats: RunStats) -> None:
    """Update the progress bar, or log a line if a minute has passed."""
    if _Display.bar is not None:
        advance(stats.examined)
    elif time.monotonic() - _Display.last > INTERVAL:
        _Display.last = time.monotonic()
        logger.info("%s so far: %s", stats.command, stats.summary())


def advance(done: int) -> None:
    """Move the bar, if there is one, to `done`."""
    if _Display.bar is not None:
        _Display.bar.update(done - _Display.bar.n)


def make_room() -> None:
    """Remove the bar before something else is printed on its terminal; it appears again when it advances."""
    if _Display.bar is not None and _Display.bar.last_print_t != _Display.cleared:
        _Display.bar.clear()
        _Display.cleared = _Display.bar.last_print_t
