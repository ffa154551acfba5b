"""From the slots that were read to records: many files at a time.

A point counts if its slot is in place (it is where whisper looks for this t, on whatever lap) and t is in the window.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from whisperbackup.increments.fresh import Raw
from whisperbackup.increments.plan import Layout, Plan, Stretch
from whisperbackup.increments.record import Run, assemble, pack_pairs
from whisperbackup.whisper.format import POINT_SIZE

SLOT = np.dtype([("t", ">u4"), ("v", ">f8")])
VALUE = np.dtype("<f8")
MAX_LAYOUTS = 256  # of one plan


class Encoded(NamedTuple):
    """A file's record, as bytes; None for one that is too large to be read again."""

    raw: Raw
    layout: Layout
    content: bytes | None


def encode(read: Sequence[tuple[str, Raw]]) -> list[Encoded]:
    """The records of what was read, by key; files with the same plan are decoded together."""
    together: dict[int, list[int]] = {}
    for number, (_, raw) in enumerate(read):
        together.setdefault(id(raw.plan), []).append(number)
    found: dict[int, Encoded] = {}
    for numbers in together.values():
        _encode_alike(read, numbers, found)
    return [found[number] for number in range(len(read))]


def _encode_alike(read: Sequence[tuple[str, Raw]], numbers: list[int], found: dict[int, Encoded]) -> None:
    """`encode` for the `numbers` of those with the same plan."""
    plan = read[numbers[0]][1].plan
    fields = len(plan.expected)
    width = plan.size // POINT_SIZE
    content = b"".join([read[number][1].content for number in numbers])
    slots = np.frombuffer(content, SLOT).reshape(len(numbers), width)
    stamps = np.frombuffer(content, "=u4").reshape(len(numbers), 3 * width)[:, : 3 * fields : 3]
    fresh = (stamps == plan.expected).tobytes()
    alike: dict[bytes, list[int]] = {}
    for place, number in enumerate(numbers):
        mask = fresh[place * fields : (place + 1) * fields]
        if fields < width:  # a lap: its runs depend on its base
            layout = _layout(plan, mask, read[number][1].bases, slots["t"][place])
            _assemble(read, [number], layout, _values(slots[place], layout), found)
        else:
            alike.setdefault(mask, []).append(place)
    for mask, places in alike.items():
        known = plan.layouts.get(mask)
        if known is None:
            if len(plan.layouts) >= MAX_LAYOUTS:
                plan.layouts.clear()
            raw = read[numbers[places[0]]][1]
            known = plan.layouts[mask] = _layout(plan, mask, raw.bases, slots["t"][places[0]])
        values = _values(slots if len(places) == len(numbers) else slots[places], known)
        _assemble(read, [numbers[place] for place in places], known, values, found)


def _assemble(
    read: Sequence[tuple[str, Raw]], numbers: list[int], layout: Layout, all_values: bytes, found: dict[int, Encoded]
) -> None:
    """Make the records of files with the same layout; `all_values` has those of one file after the other."""
    size = len(all_values) // len(numbers)
    archives = len(layout.runs)
    for place, number in enumerate(numbers):
        key, raw = read[number]
        packed = _packed(raw.plan, layout.runs, raw.told_bases) if raw.has_base else layout.packed
        values = all_values[place * size : (place + 1) * size]
        try:
            content = assemble(key, archives, raw.version, raw.moment, raw.is_whole, packed, values)
        except ValueError:
            found[number] = Encoded(raw, layout, None)
        else:
            found[number] = Encoded(raw, layout, content)


def _values(slots: NDArray[Any], layout: Layout) -> bytes:
    """The values of all runs of a file, or of several files, one after the other."""
    return slots["v"][..., layout.columns].astype(VALUE).tobytes()  # swaps bytes, and so keeps every bit


def _layout(plan: Plan, mask: bytes, bases: Sequence[int], stamps: NDArray[Any]) -> Layout:
    """The layout of a buffer: `mask` tells which slots are fresh in the stretches of less than a lap."""
    runs: list[tuple[Run, ...]] = []
    columns = []
    end = 0
    for stretch, base in zip(plan.stretches, bases, strict=True):
        at, until = stretch.begin // POINT_SIZE, stretch.end // POINT_SIZE
        if stretch.is_lap:
            here, times = _lap(stretch, base, stamps[at:until].astype(np.int64))
        else:
            here = np.flatnonzero(np.frombuffer(mask, np.uint8)[at:until])
            times = stretch.first + here * stretch.step
        if not runs and times.size:
            end = int(times.max()) + stretch.step
        runs.append(_runs(here, times, stretch.step))
        columns.append(at + here)
    all_columns = np.concatenate(columns)
    return Layout(tuple(runs), all_columns, _packed(plan, runs, [0] * len(bases)), len(all_columns), end)


def _lap(stretch: Stretch, base: int, stamps: NDArray[np.int64]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Which of all slots of an archive are fresh, and their times."""
    step = stretch.step
    in_place = ((stamps - base) // step % stretch.points == np.arange(stretch.points)) & (stamps % step == 0)
    here = np.flatnonzero(in_place & (stamps >= stretch.first) & (stamps <= stretch.last) & (base > 0))
    return here, stamps[here]


def _runs(here: NDArray[np.intp], times: NDArray[np.int64], step: int) -> tuple[Run, ...]:
    """Slots, ascending, as runs: neighbours whose times follow one another."""
    if not here.size:
        return ()
    cuts = [0, *(np.flatnonzero((np.diff(here) != 1) | (np.diff(times) != step)) + 1).tolist(), len(here)]
    return tuple([(int(times[begin]), end - begin) for begin, end in itertools.pairwise(cuts)])


def _packed(plan: Plan, runs: Sequence[tuple[Run, ...]], bases: Sequence[int]) -> bytes:
    """What a record has between its key and its values."""
    rings = [(base, len(each)) for base, each in zip(bases, runs, strict=True)]
    return plan.header + pack_pairs(rings) + pack_pairs([run for each in runs for run in each])
