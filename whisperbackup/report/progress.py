"""How far a run has come: a bar on a terminal, else a line a minute."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import Any

from whisperbackup.report.counters import COUNTERS
from whisperbackup.report.run_stats import RunStats
from whisperbackup.runtime.signals import Stopped

logger = logging.getLogger(__name__)

INTERVAL = 60.0  # seconds between progress lines where there is no terminal


class _Display:
    """The progress bar of this process, or the time of the last progress line."""

    bar: Any = None
    last = 0.0


@contextlib.contextmanager
def reporting(stats: RunStats, quiet: bool) -> Iterator[RunStats]:
    """Show progress meanwhile, and print the last line also for a run that ends early."""
    try:
        with _bar(stats, quiet):
            yield stats
    except Stopped as stop:
        logger.error("%s %s: %s", stats.command, stop, stats.summary())
        raise
    except Exception:
        logger.error("%s ended early: %s", stats.command, stats.summary())
        raise


@contextlib.contextmanager
def _bar(stats: RunStats, quiet: bool) -> Iterator[None]:
    _Display.last = time.monotonic()
    if quiet or not sys.stderr.isatty():
        yield
        return
    import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    tqdm.tqdm.monitor_interval = 0  # no thread beside ours
    with (
        tqdm.tqdm(desc=stats.command, unit=f" {COUNTERS[stats.command].unit}", dynamic_ncols=True, leave=False) as bar,
        logging_redirect_tqdm(),
    ):
        _Display.bar = bar
        try:
            yield
        finally:
            _Display.bar = None


def tick(stats: RunStats) -> None:
    """Show how far the run has come, if it is time."""
    if _Display.bar is not None:
        _Display.bar.update(stats.examined - _Display.bar.n)
    elif time.monotonic() - _Display.last > INTERVAL:
        _Display.last = time.monotonic()
        logger.info("%s so far: %s", stats.command, stats.summary())
