"""Healing beside a carbon that does not lock, and writes between our comparison and our writes."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import whisper
from test_restore import placer, points

SCHEMA = [(1, 3600), (60, 1440)]
HEADER = 16 + 2 * 12
Interfere = Callable[[int, int], None]


@pytest.fixture
def interfering(monkeypatch: pytest.MonkeyPatch) -> Callable[[Interfere], None]:
    """Have a function be called with (number of the write, its offset) after each write of ours."""

    def install(interfere: Interfere) -> None:
        pwrite, count = os.pwrite, 0

        def write(fd: int, content: bytes, offset: int) -> int:
            nonlocal count
            count += 1
            written = pwrite(fd, content, offset)
            interfere(count, offset)
            return written

        monkeypatch.setattr(os, "pwrite", write)

    return install


def make(path: Path, ages: range) -> bytes:
    """A file with a point at each age in seconds."""
    path.unlink(missing_ok=True)
    whisper.create(str(path), SCHEMA, xFilesFactor=0.0)
    now = int(time.time())
    if ages:
        whisper.update_many(str(path), [(now - age, float(age)) for age in ages])
    return path.read_bytes()


def fetched(path: Path) -> dict[int, float]:
    """The finest archive as Graphite reads it."""
    now = int(time.time())
    (start, _, step), values = whisper.fetch(str(path), now - 3590, now)
    return {start + step * place: value for place, value in enumerate(values) if value is not None}


def test_a_point_that_carbon_writes_between_two_of_our_writes_stays(
    tmp_path: Path, interfering: Callable[[Interfere], None]
) -> None:
    path = tmp_path / "a.wsp"
    full = make(path, range(100, 2000))
    make(path, range(100, 2000, 2))  # a gap at every other second: as many writes
    lacking = int(time.time()) - 301
    while lacking in points(path):
        lacking -= 1
    in_finest = 0

    def interfere(_: int, offset: int) -> None:
        nonlocal in_finest
        in_finest += offset < HEADER + 12 * 3600
        if in_finest == 1:
            in_finest += 1
            with path.open("r+b") as file:
                (base,) = struct.unpack_from(">L", path.read_bytes(), HEADER)
                file.seek(HEADER + 12 * ((lacking - base) % 3600))
                file.write(struct.pack(">Ld", lacking, 777.0))

    interfering(interfere)
    placed = placer(tmp_path).place(b"a.wsp", full)
    assert placed.how == "healed"
    assert 900 <= placed.points < 1100
    after = points(path)
    assert after[lacking] == 777.0
    assert len(after) >= 1900


@pytest.mark.parametrize(("archive", "number"), [(0, 1), (0, 2), (0, 10), (0, 15), (1, 1)])
def test_a_base_that_carbon_writes_over_ours_costs_no_point(
    tmp_path: Path, interfering: Callable[[Interfere], None], archive: int, number: int
) -> None:
    """It read the empty slot 0 before we wrote there, and puts its own point, of another time, into it."""
    path = tmp_path / "a.wsp"
    full = make(path, range(100, 3000))
    held = points(path)
    hours = points(path, 1)
    make(path, range(0))
    now = int(time.time())
    begin, end = ((HEADER, HEADER + 12 * 3600), (HEADER + 12 * 3600, HEADER + 12 * 5040))[archive]
    when = (now, now // 60 * 60)[archive]
    seen = 0

    def interfere(_: int, offset: int) -> None:
        nonlocal seen
        seen += begin <= offset < end
        if seen == number:
            seen += 1
            with path.open("r+b") as file:
                file.seek(begin)
                file.write(struct.pack(">Ld", when, 777.0))

    interfering(interfere)
    assert placer(tmp_path).place(b"a.wsp", full).how == "healed"
    assert seen > number
    assert points(path, archive)[when] == 777.0
    assert held.items() <= fetched(path).items()
    assert len(set(hours) & set(points(path, 1))) >= len(hours) - 1
