"""From the slots that were read to records: many files at a time.

A point counts if its slot is in place (it is where whisper looks for this t, on whatever lap) and t is in the window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
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


class Share(NamedTuple):
    """What is fresh of one file: the values of all runs, little endian."""

    raw: Raw
    layout: Layout
    values: bytes

    def encode(self, key: str) -> bytes:
        """The record of it.  Raises ValueError for one that is too large to be read again."""
        raw, layout = self.raw, self.layout
        packed = layout.packed
        if raw.has_base:
            packed = _packed(raw.plan, layout.runs, raw.told_bases)
        read = raw.began // 1_000_000_000
        return assemble(key, len(raw.plan.stretches), raw.version, read, raw.is_whole, packed, self.values)


def decode(raws: Sequence[Raw]) -> list[Share]:
    """What is fresh of each file; files with the same plan are decoded together."""
    together: dict[int, list[int]] = {}
    for number, raw in enumerate(raws):
        together.setdefault(id(raw.plan), []).append(number)
    shares: dict[int, Share] = {}
    for numbers in together.values():
        for place, share in _decode_alike([raws[number] for number in numbers]):
            shares[numbers[place]] = share
    return [shares[number] for number in range(len(raws))]


def _decode_alike(raws: list[Raw]) -> Iterator[tuple[int, Share]]:
    """`decode` for files with the same plan: the place of each file, in any order, and its share."""
    plan = raws[0].plan
    expected = plan.expected
    width = plan.size // POINT_SIZE
    content = b"".join([raw.content for raw in raws])
    slots = np.frombuffer(content, SLOT).reshape(len(raws), width)
    stamps = np.frombuffer(content, "=u4").reshape(len(raws), 3 * width)[:, : 3 * len(expected) : 3]
    fresh = (stamps == expected).tobytes()
    has_laps = len(expected) < width
    alike: dict[bytes, list[int]] = {}
    for place, raw in enumerate(raws):
        mask = fresh[place * len(expected) : (place + 1) * len(expected)]
        if has_laps:
            layout = _layout(plan, mask, raw.bases, slots["t"][place])
            yield place, Share(raw, layout, _values(slots[place], layout))
        else:
            alike.setdefault(mask, []).append(place)
    for mask, places in alike.items():
        found = plan.layouts.get(mask)
        if found is None:
            if len(plan.layouts) >= MAX_LAYOUTS:
                plan.layouts.clear()
            found = plan.layouts[mask] = _layout(plan, mask, raws[places[0]].bases, slots["t"][places[0]])
        values = _values(slots if len(places) == len(raws) else slots[places], found)
        size = found.points * VALUE.itemsize
        for number, place in enumerate(places):
            yield place, Share(raws[place], found, values[number * size : (number + 1) * size])


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
    return Layout(tuple(runs), np.concatenate(columns), _packed(plan, runs, [0] * len(bases)), end)


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
