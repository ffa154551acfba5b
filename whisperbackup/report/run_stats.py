"""The counters of one run, its failures, and its last line."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from whisperbackup.report import json_lines
from whisperbackup.report.counters import COUNTERS, IN_A_DRY_RUN, Count, key_of

logger = logging.getLogger(__name__)
BYTES = " bytes"  # counters whose names end like this are printed in kB, MB …


class RunStats:
    """The counters and the number of failures of one run of a command in COUNTERS."""

    def __init__(self, command: str, as_json: bool = False, noop: bool = False) -> None:
        self.command = command
        self.failed = 0
        self._labels: Mapping[Count, str] = IN_A_DRY_RUN if noop else {}
        self._counts: dict[Count, int] = dict.fromkeys(COUNTERS[command].always, 0)
        self._printer = json_lines.Printer() if as_json else None
        self.start()

    def start(self) -> None:
        """Start measuring the seconds now."""
        self._started = time.monotonic()

    def count(self, name: Count, number: int = 1) -> None:
        """Add to one counter."""
        if number:
            self._counts[name] = self._counts.get(name, 0) + number

    def add(
        self,
        name: str,
        counts: Mapping[Count, int],
        errors: Sequence[str] = (),
        backup: str | None = None,
        is_logged: bool = True,
    ) -> None:
        """Count the result of one job, and report its errors (only in JSON unless `is_logged`).

        `backup` is the stamp of the backup, for a job that handles exactly one.
        """
        for count, number in counts.items():
            self.count(count, number)
        for error in errors:
            if is_logged:
                logger.error("%s: %s", name, error)
            self.emit({"metric": name, "error": error, **({"backup": backup} if backup else {})})
        self.failed += bool(errors)

    def fail(self, name: str, reason: str, is_logged: bool = True) -> None:
        """Count and report a failure that no worker reported."""
        self.add(name, {}, (reason,), is_logged=is_logged)

    def emit(self, fields: dict[str, object]) -> None:
        """Print a line of JSON, if --json is set."""
        if self._printer:
            self._printer.emit(fields)

    @property
    def examined(self) -> int:
        """The number of things examined, for the progress bar."""
        return self._counts[Count.EXAMINED]

    def summary(self) -> str:
        """Counters, failures and seconds, for the last line."""
        parts = [_shown(self._labels.get(name, name), number) for name, number in self._counts.items()]
        return ", ".join([*parts, f"{self.failed} failed", f"{self._seconds:.1f} s"])

    def by_key(self) -> dict[str, float]:
        """Seconds, failures and all counters of the command, including zeros, for JSON and carbon."""
        names = (*COUNTERS[self.command].seldom, *self._counts)
        counts = {name.key: self._counts.get(name, 0) for name in names}
        return {"seconds": round(self._seconds, 3), "failed": self.failed, **counts}

    def whole_numbers(self) -> dict[str, int]:
        """Failures and all counters of the command, for what the store records of the run."""
        return {name: int(number) for name, number in self.by_key().items() if name != "seconds"}

    @property
    def key(self) -> str:
        """The command's name in JSON and carbon."""
        return key_of(self.command)

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


def _shown(name: str, number: int) -> str:
    return f"{shown_size(number)} {name.removesuffix(BYTES)}" if name.endswith(BYTES) else f"{number} {name}"


def shown_size(size: float) -> str:
    """A size in bytes, kB, MB, GB or TB (powers of 1000)."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
