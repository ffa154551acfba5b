"""The counters of one run, its failures, and its last line."""

from __future__ import annotations

import collections
import logging
import time
from typing import TYPE_CHECKING

from whisperbackup.report import json_lines
from whisperbackup.report.counters import FIGURES, IN_A_DRY_RUN, key_of
from whisperbackup.runtime.outcome import Outcome

if TYPE_CHECKING:  # what only lists need not load it
    pass


logger = logging.getLogger(__name__)
BYTES = " bytes"  # figures whose name ends so are printed as kB, MB …


class Tally:
    """The figures of one run of a `command` that figures.py knows."""

    def __init__(self, command: str, as_json: bool = False, noop: bool = False) -> None:
        self.command = command
        self._shown = IN_A_DRY_RUN if noop else {}
        self.figures: collections.Counter[str] = collections.Counter(dict.fromkeys(FIGURES[command].always, 0))
        self.failed = 0
        self._printer = json_lines.Printer() if as_json else None
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
