"""Where the slots of a window lie in every file with one header, and how what is read of them is laid out.

A window begins at `since` and ends at `until` (seconds, included).  Of each archive it has the slots [t, t + step) with
t + step > since and t <= until.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whisperbackup.increments.record import END_OF_TIME, Run
from whisperbackup.whisper.format import POINT_SIZE, parse_header


class Stretch(NamedTuple):
    """The window's share of one archive: `slots` slots from time `first` on, which are `begin` to `end` of the buffer.

    The archive is at `offset` in the file.  `slots` is its `points` where the window has a lap or more; then they begin
    with slot 0.
    """

    offset: int
    step: int
    points: int
    first: int
    slots: int
    last: int
    begin: int
    end: int

    @property
    def is_lap(self) -> bool:
        """Whether all slots are read."""
        return self.slots == self.points


class Layout(NamedTuple):
    """Which slots are fresh: the runs of each archive, and the slots of the buffer that they lie in.

    `packed` are the header, rings without a base, and the runs, as a record has them; `points` is how many slots are
    fresh; `end` is where the newest point of the finest archive ends, 0 without.
    """

    runs: tuple[tuple[Run, ...], ...]
    columns: NDArray[np.intp]
    packed: bytes
    points: int
    end: int


class Plan(NamedTuple):
    """What to read of every file with this header, `size` bytes in all.

    Stretches of less than a lap come first in the buffer; `expected` are the stamps that their slots have if they are
    fresh, big endian as they are stored.  `layouts` are those found so far, by which of these slots were fresh.
    """

    header: bytes
    file_size: int
    stretches: tuple[Stretch, ...]
    size: int
    expected: NDArray[Any]
    layouts: dict[bytes, Layout]


@functools.lru_cache(512)
def plan_of(header: bytes, since: int, until: int) -> Plan:
    """How to read the window [since, until] of a file with this header.  Raises CorruptFile."""
    parsed = parse_header(header)
    windows = []
    for number, (_, step, points) in enumerate(parsed.archives):
        first = max(since // step * step, step)
        last = min(until, END_OF_TIME - 1) // step * step
        count = min(max((last - first) // step + 1, 0), points)
        windows.append((number, first, count, last))
    size = 0
    begins = {}
    for number, _, count, _ in sorted(windows, key=lambda window: window[2] == parsed.archives[window[0]].points):
        begins[number] = size
        size += count * POINT_SIZE
    stretches = tuple(
        Stretch(*parsed.archives[number], first, count, last, begins[number], begins[number] + count * POINT_SIZE)
        for number, first, count, last in windows
    )
    stamps = [
        stretch.first + stretch.step * np.arange(stretch.slots, dtype=np.int64)
        for stretch in stretches
        if not stretch.is_lap
    ]
    expected = np.concatenate([*stamps, np.empty(0, np.int64)]).astype(">u4").view("=u4")
    expected.setflags(write=False)
    return Plan(header, parsed.file_size, stretches, size, expected, {})
