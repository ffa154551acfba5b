"""Live files that are too short, or broken, while carbon writes to them at any rate."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import whisper
from conftest import Program, wait_for
from test_carbon import Carbon
from test_restore import placer, points

from whisperbackup.whisper import format

PROCESSES = 2
pytestmark = pytest.mark.slow

SCHEMA = [(1, 3600), (60, 1440)]
HEADER = 16 + 2 * 12
OLD = range(600, 1200, 5)  # seconds before now of the points that only the backup has


@pytest.fixture
def backed_up(program: Program) -> tuple[Program, Path]:
    """A file of about 60 kB, and its backup."""
    path = program.prefix / "a.wsp"
    whisper.create(str(path), SCHEMA, xFilesFactor=0.0)
    now = int(time.time())
    whisper.update_many(str(path), [(now - age, float(age)) for age in OLD])
    program("backup")
    return program, path


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def slot_of(path: Path, when: int) -> int:
    """The offset of a point's record in the finest archive."""
    (base,) = struct.unpack_from(">L", path.read_bytes(), HEADER)
    return HEADER + 12 * ((when - base) % 3600)


@contextmanager
def writing(path: Path, locks: bool) -> Iterator[Callable[[], dict[int, float]]]:
    """Another process that writes the present second's point five times a second; yields what it has written."""
    log = path.with_name("written")
    script = (
        "import sys, time, whisper\n"
        f"whisper.LOCK = {locks}\n"
        f"log = open({str(log)!r}, 'w', 1)\n"
        "while True:\n"
        "    now = int(time.time())\n"
        "    try:\n"
        f"        whisper.update({str(path)!r}, now % 1000 + 0.5, now)\n"
        "        print(now, file=log)\n"
        "    except Exception as error:\n"  # of a short file: carbon logs it and goes on
        "        print('#', error, file=log)\n"
        "    time.sleep(0.2)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])

    def written() -> dict[int, float]:
        lines = log.read_text().split("\n")[:-1] if log.exists() else []
        return {int(line): int(line) % 1000 + 0.5 for line in lines if not line.startswith("#")}

    try:
        wait_for(lambda: log.exists() and log.read_text())
        yield written
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.alone
@pytest.mark.parametrize("locks", [True, False])
def test_a_cut_file_that_carbon_keeps_writing_to_is_extended_and_healed(
    backed_up: tuple[Program, Path], locks: bool
) -> None:
    program, path = backed_up
    held = points(path)
    inode = path.stat().st_ino
    now = int(time.time())
    whisper.update_many(str(path), [(now - age, -1.0) for age in range(20, 30)])
    newer = {when: value for when, value in points(path).items() if value == -1.0}
    behind = slot_of(path, now + 60)  # where the writer will not come soon; or behind the ring, if that ends in between
    size = behind + 5 if behind > slot_of(path, now - 30) else HEADER + 12 * 3600 + 50
    cut(path, size)
    with writing(path, locks) as written:
        began = time.monotonic()
        said = program("restore")
        assert time.monotonic() - began < 4
        assert "1 healed" in said
        assert "WARNING: a: the file was cut off" in said
        wait_for(lambda: len(written()) > 2)
    after = points(path)
    format.check(path.read_bytes())
    assert path.stat().st_ino == inode
    assert not list(path.parent.glob("*broken*"))
    assert held.items() <= after.items()
    assert newer.items() <= after.items()
    assert written().items() <= after.items()


@pytest.mark.parametrize("size", [HEADER, HEADER + 1, HEADER + 12, HEADER + 12 * 1000 + 7, HEADER + 12 * 3600 + 4])
def test_a_cut_at_any_place_leaves_no_half_record(backed_up: tuple[Program, Path], size: int) -> None:
    program, path = backed_up
    whole = [points(path, archive) for archive in (0, 1)]
    cut(path, size)
    os.utime(path, (time.time() - 60,) * 2)
    would = program("restore", "disk", "-n")
    assert path.stat().st_size == size
    assert "the file was cut off" in would
    assert "the file was cut off" in program("restore")
    assert [_without_base_marks(points(path, archive)) for archive in (0, 1)] == whole
    format.check(path.read_bytes())


def _without_base_marks(found: dict[int, float]) -> dict[int, float]:
    """What is no mark in an empty slot 0, which only tells where the ring begins."""
    return {when: value for when, value in found.items() if when > time.time() - 60 * 1440}


def test_half_a_point_at_the_cut_is_none(program: Program) -> None:
    """Its first bytes with zeros behind them would be a point that nobody measured."""
    path = program.prefix / "a.wsp"
    now = int(time.time())
    whisper.create(str(path), SCHEMA, xFilesFactor=0.0)
    whisper.update(str(path), 5.0, now - 100)
    program("backup")
    whisper.update(str(path), 123.456, now - 90)
    cut(path, slot_of(path, now - 90) + 6)
    program("restore")
    assert now - 90 not in points(path)
    assert points(path)[now - 100] == 5.0


def test_a_full_disk_leaves_a_cut_file_as_long_as_it_was(
    backed_up: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, path = backed_up
    full = path.read_bytes()
    cut(path, HEADER + 12 * 1000)
    monkeypatch.setattr(os, "posix_fallocate", _no_room)
    with pytest.raises(OSError, match="No space"):
        placer(program.prefix).place(b"a.wsp", full)
    assert path.read_bytes() == full[: HEADER + 12 * 1000]


def _no_room(*_: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_cut_file_is_extended_where_the_file_system_cannot_allocate(
    backed_up: tuple[Program, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, path = backed_up
    full = path.read_bytes()
    cut(path, HEADER + 12 * 1000)

    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unsupported)
    assert placer(program.prefix).place(b"a.wsp", full).how == "healed"
    assert _without_base_marks(points(path)) == _points_of(full)
    assert path.stat().st_size == len(full)


def test_a_broken_header_is_moved_aside_at_once(backed_up: tuple[Program, Path]) -> None:
    """No beginning of a file that is being created looks like that, so nothing is waited for."""
    program, path = backed_up
    full = path.read_bytes()
    path.write_bytes(b"garbage " * 100)
    began = time.monotonic()
    assert "moved aside" in placer(program.prefix).place(b"a.wsp", full).warning
    assert time.monotonic() - began < 4  # five seconds is what a file that might be growing gets
    assert path.read_bytes() == full


def test_a_header_that_declares_more_than_is_allowed_is_broken(backed_up: tuple[Program, Path]) -> None:
    program, path = backed_up
    full = path.read_bytes()
    path.write_bytes(struct.pack(">LLfL", 1, 2**31, 0.5, 1) + struct.pack(">3L", 28, 1, 2**31) + b"\1" * 100)
    assert "more than --max-file-size" in placer(program.prefix).place(b"a.wsp", full).warning
    assert path.read_bytes() == full


@pytest.mark.parametrize("bit", [1, 1 << 26])
def test_a_short_file_whose_header_is_not_its_backups_is_not_extended(
    backed_up: tuple[Program, Path], bit: int
) -> None:
    """One flipped bit of its last archive's length, in the second case of 800 MB, and of five times that in memory."""
    program, path = backed_up
    full = path.read_bytes()
    live = bytearray(full)
    struct.pack_into(">L", live, HEADER - 4, SCHEMA[-1][1] | bit)
    path.write_bytes(live)
    placed = placer(program.prefix).place(b"a.wsp", full)
    assert placed.how == "created"
    assert "its header declares" in placed.warning
    assert "moved aside" in placed.warning
    assert path.read_bytes() == full
    (aside,) = program.prefix.glob("a.wsp.broken-*")
    assert aside.read_bytes() == live


@pytest.mark.parametrize("beginning", [0, 10, HEADER, HEADER + 12 * 100])
def test_a_file_that_carbon_without_locks_is_creating_is_waited_for(
    backed_up: tuple[Program, Path], beginning: int
) -> None:
    """whisper.create writes the header, then zeros over whatever is there: points written meanwhile would be lost."""
    program, path = backed_up
    full = path.read_bytes()
    path.unlink()
    whisper.create(str(path), SCHEMA, xFilesFactor=0.0)
    fresh = path.read_bytes()
    (program.home / "fresh").write_bytes(fresh)
    script = (
        "import time\n"
        f"rest = open({str(program.home / 'fresh')!r}, 'rb').read()[{beginning}:]\n"
        f"file = open({str(path)!r}, 'r+b', 0)\n"
        f"file.seek({beginning})\n"
        "time.sleep(1.2)\n"
        "file.write(rest)\n"
    )
    path.write_bytes(fresh[:beginning])
    creator = subprocess.Popen([sys.executable, "-c", script])
    placed = placer(program.prefix).place(b"a.wsp", full)
    assert creator.wait(60) == 0
    assert (placed.how, placed.warning) == ("healed", "")
    assert _points_of(full).items() <= points(path).items()
    assert not list(path.parent.glob("*broken*"))


def _points_of(content: bytes) -> dict[int, float]:
    offset, _, count = format.parse_header(content).archives[0]
    return {when: value for when, value in struct.iter_unpack(">Ld", content[offset : offset + 12 * count]) if when}


@pytest.mark.servers
@pytest.mark.parametrize("locks", [True, False])
def test_cut_files_under_a_real_carbon_are_repaired_in_one_restore(
    program: Program, tmp_path: Path, locks: bool
) -> None:
    metrics = [f"live.m{number}" for number in range(20)]
    carbon = Carbon(tmp_path / "carbon", locks, "1s:10m,10s:1h")
    try:
        now = int(time.time())
        for age in (300, 200, 100):
            carbon.send(metrics, float(age), now - age)
        paths = [carbon.prefix / f"{metric.replace('.', '/')}.wsp" for metric in sorted(metrics)]
        wait_for(lambda: all(path.exists() and path.stat().st_size > 12 * 600 for path in paths))
        wait_for(lambda: all({300.0, 200.0, 100.0} <= set(points(path).values()) for path in paths))
        program("backup", "disk", "-p", carbon.prefix)
        for number, path in enumerate(paths):
            cut(path, 40 + 12 * 30 * number + 5)
        feeder = subprocess.Popen([sys.executable, "-c", FEEDER, str(carbon.port), *metrics])
        time.sleep(1)
        began = time.monotonic()
        said = program("restore", "disk", "-p", carbon.prefix, "-m", "live.*")
        assert time.monotonic() - began < 30  # and not ten seconds for each of them
        feeder.terminate()
        feeder.wait()
    finally:
        carbon.stop()
    assert "20 healed" in said, said
    for path in paths:
        format.check(path.read_bytes())
        assert {300.0, 200.0, 100.0} <= set(points(path).values())


FEEDER = """
import socket, sys, time
while True:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as client:
        for number in range(50):
            now = time.time()
            client.sendall("".join(f"{metric} 1.5 {int(now)}\\n" for metric in sys.argv[2:]).encode())
            time.sleep(0.1)
"""
