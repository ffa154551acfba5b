"""How far a run has come: a bar on a terminal, else a line a minute."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from whisperbackup.report.counters import FIGURES
from whisperbackup.runtime.signals import Stopped

if TYPE_CHECKING:  # what only lists need not load it
    pass
from whisperbackup.report.run_stats import Tally

logger = logging.getLogger(__name__)


INTERVAL = 60.0  # seconds between progress lines where there is no terminal


@contextlib.contextmanager
def told(tally: Tally, quiet: bool) -> Iterator[Tally]:
    """Print the last line also for a run that ends early, and keep progress on the screen meanwhile."""
    try:
        with _bar(tally, quiet):
            yield tally
    except Stopped as stop:
        logger.error("%s %s: %s", tally.command, stop, tally.summary())
        raise
    except Exception:
        logger.error("%s ended early: %s", tally.command, tally.summary())
        raise


class _Display:
    """The progress bar of this process, or the time of the last progress line."""

    bar: Any = None
    last = 0.0


@contextlib.contextmanager
def _bar(tally: Tally, quiet: bool) -> Iterator[None]:
    _Display.last = time.monotonic()
    if quiet or not sys.stderr.isatty():
        yield
        return
    import tqdm
    from tqdm.contrib.logging import logging_redirect_tqdm

    tqdm.tqdm.monitor_interval = 0  # no thread beside ours
    with (
        tqdm.tqdm(desc=tally.command, unit=f" {FIGURES[tally.command].unit}", dynamic_ncols=True, leave=False) as bar,
        logging_redirect_tqdm(),
    ):
        _Display.bar = bar
        try:
            yield
        finally:
            _Display.bar = None


def tick(tally: Tally) -> None:
    """Show how far the run has come, if it is time."""
    if _Display.bar is not None:
        _Display.bar.update(tally.figures["examined"] - _Display.bar.n)
    elif time.monotonic() - _Display.last > INTERVAL:
        _Display.last = time.monotonic()
        logger.info("%s so far: %s", tally.command, tally.summary())
