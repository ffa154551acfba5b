"""The story of a run: figures added up, failures named, progress, the last line."""

from __future__ import annotations

import collections
import contextlib
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from whisperbackup import jsonlines
from whisperbackup.figures import FIGURES, IN_A_DRY_RUN, key_of
from whisperbackup.outcome import Outcome
from whisperbackup.signals import Stopped
from whisperbackup.storage.base import Unavailable

if TYPE_CHECKING:  # what only lists need not load it
    from whisperbackup.workers import Pool

logger = logging.getLogger(__name__)

PATIENCE = 20  # failures of the store in a row, each after the driver's own retries, that end a run
SILENCE = 50.0  # seconds that such failures last, two or more of them and nothing else, after which they do
INTERVAL = 60.0  # seconds between progress lines where there is no terminal
BYTES = " bytes"  # figures whose name ends so are printed as kB, MB …


class Tally:
    """The figures of one run of a `command` that figures.py knows."""

    def __init__(self, command: str, as_json: bool = False, noop: bool = False) -> None:
        self.command = command
        self._shown = IN_A_DRY_RUN if noop else {}
        self.figures: collections.Counter[str] = collections.Counter(dict.fromkeys(FIGURES[command].always, 0))
        self.failed = 0
        self._printer = jsonlines.Printer() if as_json else None
        self.start()

    def start(self) -> None:
        """Count the seconds from now on."""
        self._started = time.monotonic()

    def add(self, outcome: Outcome, is_logged: bool = True) -> None:
        """Count what became of a metric, and name it if it failed (in JSON alone unless `is_logged`)."""
        self.figures.update(outcome.figures)
        for error in outcome.errors:
            if is_logged:
                logger.error("%s: %s", outcome.metric, error)
            about = {"backup": outcome.stamp} if outcome.stamp else {}
            self.tell({"metric": outcome.metric, "error": error, **about})
        self.failed += bool(outcome.errors)

    def fail(self, name: str, reason: str, is_logged: bool = True) -> None:
        """Count and name a failure outside of any worker (in JSON alone unless `is_logged`)."""
        self.add(Outcome(name, {}, (reason,)), is_logged)

    def tell(self, fields: dict[str, object]) -> None:
        """Print a line of JSON, if JSON is wanted."""
        if self._printer:
            self._printer.say(fields)

    def summary(self) -> str:
        """Figures, failures and seconds, as the last line says them."""
        parts = [_figure(self._shown.get(name, name), count) for name, count in self.figures.items()]
        return ", ".join([*parts, f"{self.failed} failed", f"{self._seconds:.1f} s"])

    def figures_by_key(self) -> dict[str, float]:
        """The same for programs: all figures of the command, whether zero or not."""
        counts = {key_of(name): self.figures[name] for name in (*FIGURES[self.command].seldom, *self.figures)}
        return {"seconds": round(self._seconds, 3), "failed": self.failed, **counts}

    @property
    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def finish(self) -> int:
        """Print the last line; the exit status: 0, or 3 if anything failed."""
        if self.failed:
            logger.error("%s incomplete: %s", self.command, self.summary())
            return 3
        logger.info("%s complete: %s", self.command, self.summary())
        return 0


def _figure(name: str, count: int) -> str:
    if not name.endswith(BYTES):
        return f"{count} {name}"
    return f"{shown_size(count)} {name.removesuffix(BYTES)}"


def shown_size(size: float) -> str:
    """Bytes as people read them, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


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


def work_through(pool: Pool, jobs: Iterable[Any], tally: Tally, take: Callable[[Outcome], None] | None = None) -> None:
    """Have `pool` do `jobs`; adds every outcome to `tally`, then hands it to `take`.

    When a stop signal comes, what is in flight is waited for and counted before the signal goes on its way.
    Raises Unavailable when the store does nothing but fail.  How long it has done so is measured from when the first
    failed job began to when the last one ended, or from a later success: while the parent passes over what is
    unchanged, nothing is asked of the store, so that nothing can succeed.
    """
    in_a_row, failing_since, succeeded = 0, 0.0, 0.0
    try:
        for outcome in pool.run(jobs):
            tally.add(outcome)
            if take is not None:
                take(outcome)
            tick(tally)
            if not outcome.store_failed:
                in_a_row, succeeded = 0, max(succeeded, outcome.ended)
                continue
            in_a_row += 1
            if in_a_row == 1:
                failing_since = max(succeeded, outcome.began)
            if in_a_row == PATIENCE or (in_a_row > 1 and outcome.ended - failing_since > SILENCE):
                raise Unavailable(f"the store failed {in_a_row} times in a row, so this run ends here; start it again")
    except Stopped:
        for outcome in pool.drain():
            tally.add(outcome)
            if take is not None:
                take(outcome)
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
