"""A worker's share of an increment: some neighbouring files to read, and what was read of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from whisperbackup.increments.part import PackedFrame
from whisperbackup.report.counters import Count
from whisperbackup.runtime.pool import Job
from whisperbackup.whisper.throttle import Throttle

LATENESS_STEP = 5  # seconds; the lateness of metrics is counted in steps of this


class Limits(NamedTuple):
    """The window of a batch's metrics, from `since` on; of what is `owed`, where it begins, and `new_from`."""

    since: int
    lag: int
    owed: Mapping[str, tuple[int, int]]

    def since_of(self, key: str) -> int:
        """Where the window of the metric with this key begins."""
        return self.owed[key][0] if key in self.owed else self.since

    def new_from(self, key: str) -> int:
        """Since when the metric's file must have been born to be taken whole."""
        return self.owed[key][1] if key in self.owed else self.since + self.lag


@dataclass
class Taken:
    """What was read of a batch.

    `failed`: paths and reasons; `owed`: keys to be read again from where their window began; `lateness`: how many
    metrics had their newest point written so late, in steps; `new_left`: files born in the window that were not taken
    whole, since there were too many; `large_left`: those that would have been too many bytes at once.
    """

    number: int
    frames: list[PackedFrame] = field(default_factory=list)
    counts: Counter[Count] = field(default_factory=Counter)
    failed: list[tuple[str, str]] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)
    lateness: Counter[int] = field(default_factory=Counter)
    new_left: int = 0
    large_left: int = 0


class Batch(NamedTuple):
    """Read these files, as (key, path), ascending; take at most `whole` of them whole."""

    number: int
    files: tuple[tuple[str, bytes], ...]
    limits: Limits
    whole: int
    examines: bool = True

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.files[0][0][:-1]} and {len(self.files) - 1} more"

    def run(self, throttle: Throttle) -> Taken:
        """Read them; a file that cannot be read is a part of the result."""
        from whisperbackup.increments.take import take  # it brings numpy, which only the workers need

        return take(self, throttle)


def all_failed(batch: Job[Throttle, Taken], error: Exception) -> Taken:
    """The result of a batch that raised `error`."""
    assert isinstance(batch, Batch)
    reason = f"{type(error).__name__}: {error}"
    failed = [(key[:-1], reason) for key, _ in batch.files]
    counts = Counter({Count.EXAMINED: len(batch.files)})
    return Taken(batch.number, counts=counts, failed=failed, owed=[key for key, _ in batch.files])
