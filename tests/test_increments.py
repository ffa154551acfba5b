"""The core of increments: reading fresh slots, the format, the image, the window, retention."""

from __future__ import annotations

import fcntl
import json
import math
import mmap
import os
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import whisper
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from increments_world import record_of

from whisperbackup.increments import (
    expire,
    fresh,
    history,
    image,
    manifest,
    merge,
    order,
    part,
    quick,
    reader,
    record,
    retention,
    slots,
    window,
)
from whisperbackup.increments.names import Names
from whisperbackup.increments.record import CorruptIncrement, Record, Ring
from whisperbackup.report.run_stats import RunStats
from whisperbackup.repository.stamps import stamp_of
from whisperbackup.storage.base import StoredObject
from whisperbackup.storage.noop import Noop
from whisperbackup.tree.places import Place, Places
from whisperbackup.whisper.format import ShortFile, parse_header

NOW = 1_800_000_000
HOUR, DAY = 3600, 86400
EARLIER, UNKNOWN, LATER = order.Order
READ_INCREMENT = Path(__file__).parent.parent / "contrib/read-increment.py"


def make(path: Path, layout: list[tuple[int, int]], times: range | list[int], value: float = 1.0) -> Path:
    whisper.create(str(path), layout, 0.0, "last")
    for time_ in times:
        whisper.update(str(path), value + time_ % 1000, time_, time_)
    os.utime(path, (NOW, NOW))
    return path


def raw(path: Path, since: int, until: int) -> fresh.Raw:
    with path.open("rb") as file:
        return fresh.read_fresh(file.fileno(), since, until)


def read(path: Path, since: int, until: int) -> Record:
    return record_of("m/", raw(path, since, until))


def whole(path: Path) -> Record:
    with path.open("rb") as file:
        return record_of("m/", fresh.read_whole(file.fileno()))


def times_of(found: Record, number: int = 0) -> list[int]:
    step = parse_header(found.header).archives[number].step
    return [first + i * step for first, count in found.rings[number].runs for i in range(count)]


# Reading


def test_only_the_slots_of_the_window_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "m.wsp", [(60, 1440), (300, 2016)], range(NOW - 3 * HOUR, NOW, 60))
    asked: list[tuple[int, int]] = []
    preadv = os.preadv
    monkeypatch.setattr(
        fresh, "preadv", lambda fd, to, at, *flags: asked.append((at, len(to[0]))) or preadv(fd, to, at, *flags)
    )
    found = read(path, NOW - HOUR, NOW)
    monkeypatch.undo()
    begin = (NOW - HOUR) // 60 * 60
    assert times_of(found) == list(range(begin, NOW, 60))
    assert times_of(found, 1) == list(range((NOW - HOUR) // 300 * 300, NOW, 300))
    fresh_slots = (NOW // 60 - begin // 60 + 1) + (NOW // 300 - (NOW - HOUR) // 300 + 1)
    assert sum(size for _, size in asked) == fresh.BEGINNING + 4 + 12 * fresh_slots
    assert len(asked) <= 6


def quickly(path: Path, since: int, until: int, size: int = -1) -> fresh.Raw | None:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        found = quick.Quick(since, until - int(time.time())).read(
            file.fileno(), status.st_size if size < 0 else size, status.st_mtime_ns, []
        )
        if found is None:  # then its lock is free
            with path.open("rb") as carbon:
                fcntl.flock(carbon, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return found


def test_an_ordinary_file_is_read_quickly_with_the_same_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, begin in enumerate((NOW - 3 * HOUR, NOW - 30 * HOUR, NOW - 24 * HOUR - 1200)):  # the last wraps
        path = make(tmp_path / f"m{number}.wsp", [(60, 1440), (300, 2016)], range(begin, NOW - 60, 60))
        asked: list[int] = []

        def preadv(fd: int, to: tuple[memoryview], at: int, flags: int, asked: list[int] = asked) -> int:
            asked.append(len(to[0]))
            return os.preadv(fd, to, at, flags)

        with monkeypatch.context() as patch:
            for module in (quick, fresh):
                patch.setattr(module, "preadv", preadv)
            found = quickly(path, NOW - HOUR, NOW)
        assert found is not None
        expected = raw(path, NOW - HOUR, NOW)
        assert record_of("m/", found)._replace(read=0) == record_of("m/", expected)._replace(read=0)
        assert sum(asked) == fresh.BEGINNING + 4 + 12 * (61 + 13)


def test_what_is_out_of_the_ordinary_is_not_read_quickly(tmp_path: Path) -> None:
    layout = [(60, 1440), (300, 2016)]
    path = make(tmp_path / "m.wsp", layout, range(NOW - 3 * HOUR, NOW, 60))
    assert quickly(path, NOW - HOUR, NOW) is not None
    assert quickly(path, NOW - HOUR, NOW, size=path.stat().st_size - 1) is None, "another file than before"
    assert quickly(path, NOW - 25 * HOUR, NOW) is None, "a lap"
    os.utime(path)
    assert quickly(path, NOW - HOUR, NOW) is None, "written at this moment"
    os.utime(path, (NOW, NOW))
    content = path.read_bytes()
    for damaged in (content[:-1], content[:40], b"", b"whisper_compressed" + bytes(100), b"<html>" + bytes(100)):
        path.write_bytes(damaged)
        os.utime(path, (NOW, NOW))
        assert quickly(path, NOW - HOUR, NOW) is None, damaged[:10]
    make(tmp_path / "empty.wsp", layout, [])
    assert quickly(tmp_path / "empty.wsp", NOW - HOUR, NOW) is None
    make(tmp_path / "four.wsp", [(1, 7200), (60, 1440), (300, 2016), (600, 2016)], [NOW - 60])
    assert quickly(tmp_path / "four.wsp", NOW - HOUR, NOW) is None
    path.write_bytes(content)
    os.utime(path, (NOW, NOW))
    with path.open("rb") as carbon, path.open("rb") as file:
        fcntl.flock(carbon, fcntl.LOCK_EX)
        status = os.fstat(file.fileno())
        assert quick.Quick(NOW - HOUR, 0).read(file.fileno(), status.st_size, status.st_mtime_ns, []) is None


@pytest.mark.parametrize("points", [1, 2])
def test_the_smallest_files_are_read(tmp_path: Path, points: int) -> None:
    path = make(tmp_path / "m.wsp", [(60, points)], [NOW - 60])
    assert times_of(read(path, NOW - HOUR, NOW)) == [NOW - 60]
    path = make(tmp_path / "four.wsp", [(1, 60), (60, 60), (300, 50), (600, 50)], [NOW - 1])
    assert times_of(read(path, NOW - HOUR, NOW)) == [NOW - 1]


def pages_of(ranges: list[tuple[int, int]]) -> set[int]:
    return {page for begin, size in ranges for page in range(begin, begin + size, mmap.PAGESIZE)}


def comes_at_once(fd: int, page: int) -> bool:
    """Whether the disk is so fast with this page that a reader who does not wait gets it, and takes it for cached."""
    os.posix_fadvise(fd, page, mmap.PAGESIZE, os.POSIX_FADV_DONTNEED)
    try:
        return bool(os.preadv(fd, [bytearray(1)], page, os.RWF_NOWAIT))
    except BlockingIOError:
        return False


@pytest.mark.parametrize("is_quick", [False, True])
def test_the_page_cache_is_left_as_it_was(tmp_path: Path, is_quick: bool) -> None:
    from whisperbackup.whisper.page_cache import absent_pages

    path = make(tmp_path / "m.wsp", [(60, 20000), (300, 20000)], range(NOW - HOUR, NOW, 60))
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    os.pread(fd, 1, 0)
    before = absent_pages(fd, size)
    if not before:
        pytest.skip("a file system that keeps its files in memory")
    absent: list[int] = []
    if is_quick:
        taken = quick.Quick(NOW - 2 * HOUR, NOW - int(time.time())).read(fd, size, NOW * 10**9, absent)
        assert (taken is None) == (len(absent) == 1)
    found = record_of("m/", fresh.read_fresh(fd, NOW - 2 * HOUR, NOW, absent=absent))
    assert len(times_of(found)) == 60
    left = pages_of(before) - pages_of(absent_pages(fd, size))
    assert all(comes_at_once(fd, page) for page in left)
    os.close(fd)


def test_a_cold_file_is_read_without_reading_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from whisperbackup.whisper.page_cache import absent_pages

    path = make(tmp_path / "m.wsp", [(60, 20000), (300, 20000)], range(NOW - HOUR, NOW, 60))
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    if len(absent_pages(fd, size)) != 1:
        pytest.skip("a file system that keeps its files in memory")
    monkeypatch.setattr(fresh, "_give_back", lambda fd, absent: None)
    fresh.read_fresh(fd, NOW - HOUR, NOW)
    pages = -(-size // 4096)
    absent = sum(length for _, length in absent_pages(fd, size)) // 4096
    assert 2 <= pages - absent <= 8
    os.close(fd)


def test_the_reading_waits_for_carbons_lock_and_frees_it(tmp_path: Path) -> None:
    path = make(tmp_path / "m.wsp", [(60, 60)], [NOW - 60])
    with path.open("r+b") as carbon:
        fcntl.flock(carbon, fcntl.LOCK_EX)
        release = threading.Timer(0.2, fcntl.flock, (carbon, fcntl.LOCK_UN))
        release.start()
        began = time.monotonic()
        read(path, NOW - HOUR, NOW)
        assert time.monotonic() - began > 0.15
        release.join()
        fcntl.flock(carbon, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_file_written_at_this_moment_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "m.wsp", [(60, 60)], [NOW - 60])
    os.utime(path)
    pauses: list[float] = []
    monkeypatch.setattr(fresh.time, "sleep", lambda pause: (pauses.append(pause), os.utime(path, (NOW, NOW))))
    assert not raw(path, NOW - HOUR, NOW).is_torn
    assert len(pauses) == 1


def test_what_is_no_whisper_file_is_told(tmp_path: Path) -> None:
    path = make(tmp_path / "m.wsp", [(60, 60)], [NOW - 60])
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ShortFile):
        read(path, NOW - HOUR, NOW)
    path.write_bytes(b"whisper_compressed" + bytes(100))
    with pytest.raises(fresh.Compressed):
        read(path, NOW - HOUR, NOW)
    path.write_bytes(b"")
    with pytest.raises(ShortFile):
        read(path, NOW - HOUR, NOW)


def test_a_file_from_the_future_has_the_version_of_its_reading(tmp_path: Path) -> None:
    path = make(tmp_path / "m.wsp", [(60, 60)], [NOW - 60])
    os.utime(path, (2**32, 2**32))
    found = whole(path)
    assert found.version == found.read


# The format

archives = st.lists(st.tuples(st.integers(1, 100), st.integers(1, 40)), min_size=1, max_size=4)


@st.composite
def records(draw: st.DrawFn) -> Record:
    layout, step = [], 0
    for more, points in draw(archives):
        step += more
        layout.append((step, points))
    offset = 16 + 12 * len(layout)
    header = struct.pack(">2LfL", draw(st.integers(0, 8)), 1, 0.5, len(layout))
    rings = []
    for step, points in layout:
        header += struct.pack(">3L", offset, step, points)
        offset += 12 * points
        runs, left = [], points
        while left and draw(st.booleans()):
            count = draw(st.integers(1, left))
            left -= count
            runs.append((step * draw(st.integers(1, 2**31 // step)), count))
        total = 8 * (points - left)
        rings.append(
            Ring(draw(st.integers(0, 2**32 - 1)), tuple(runs), draw(st.binary(min_size=total, max_size=total)))
        )
    key = draw(st.text("abc%", min_size=1)) + "/"
    return Record(
        key, header, draw(st.integers(0, 2**40)), draw(st.integers(0, 2**40)), draw(st.booleans()), tuple(rings)
    )


@given(records())
def test_a_record_is_read_as_it_was_written(one: Record) -> None:
    content = record.encode(one)
    assert record.decode(content) == one
    assert list(record.split(content + content)) == [
        (one.key.encode(), 0, len(content)),
        (one.key.encode(), len(content), 2 * len(content)),
    ]


@given(records(), st.data())
def test_rubbish_in_a_record_is_one_kind_of_error(one: Record, data: st.DataObject) -> None:
    content = bytearray(record.encode(one))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.sampled_from([0, 1, 255, content[place] ^ 1, content[place] ^ 128]))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    try:
        for _, begin, end in record.split(bytes(content)):
            found = record.decode(bytes(content[begin:end]))
            try:
                image.lay(None, order.Sorted((found,)), 10**6)
            except CorruptIncrement:
                pass
    except CorruptIncrement:
        pass


def increment(
    ones: list[Record], stamp: str = "2026-11-24T12:00:00+00:00", **more: object
) -> tuple[manifest.Manifest, dict[str, bytes]]:
    parts = list(part.parts_of(part.frames_of((one.key, one.points, record.encode(one)) for one in ones)))
    made = manifest.Manifest(
        stamp=stamp,
        node="node",
        prefix="/tree",
        begin=NOW,
        end=NOW + 9,
        files=len(ones),
        since=NOW - HOUR,
        lag=900,
        records=len(ones),
        points=sum(one.points for one in ones),
        parts=tuple(each for each, _ in parts),
    )
    return replace(made, **more), {each.name: content for each, content in parts}


def simple(key: str, value: float = 1.0, time_: int = NOW) -> Record:
    header = struct.pack(">2LfL3L", 1, 3600, 0.5, 1, 28, 60, 60)
    time_ = time_ // 60 * 60
    return Record(key, header, NOW, NOW, True, (Ring(time_, ((time_, 1),), struct.pack("<d", value)),))


def fetch_from(store: dict[str, bytes], asked: list[int] | None = None) -> reader.Fetch:
    def fetch(name: str, offset: int, size: int) -> bytes:
        if asked is not None:
            asked.append(size)
        return store[name][offset : offset + size]

    return fetch


def test_parts_roll_and_their_manifest_leads_to_each_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "PART_SIZE", 20_000)
    monkeypatch.setattr(reader, "REQUEST", 8_000)
    ones = [simple(f"servers.web{n:05}.cpu/", math.sqrt(n)) for n in range(5000)]
    made, store = increment(ones)
    assert len(store) > 2
    assert all(len(content) <= 20_000 for content in store.values())
    assert manifest.read_manifest(made.to_json()) == made
    assert [record.decode(found.content) for found in reader.read(made, fetch_from(store))] == ones
    asked: list[int] = []
    found = list(reader.read(made, fetch_from(store, asked), ["servers.web01234.cpu/"]))
    assert ones[1234] in [record.decode(one.content) for one in found]
    assert len(found) <= 256
    assert len(asked) == 1
    for head in ("", "servers.web0", "servers.web01234.", "servers.web04999.cpu/", "a", "z", "servers.web0129"):
        wanted = {one.key.encode() for one in ones if one.key.startswith(head)}
        assert wanted <= {one.key for one in reader.read(made, fetch_from(store), [head])}


def test_a_part_is_one_stream_to_zstd_itself() -> None:
    ones = [simple(f"m{n:04}/") for n in range(600)]
    _, store = increment(ones)
    content = zstandard.ZstdDecompressor().stream_reader(store["000001.wbi"], read_across_frames=True).read()
    assert [record.decode(content[begin:end]) for _, begin, end in record.split(content)] == ones


def test_a_damaged_frame_is_named_and_the_others_are_read() -> None:
    ones = [simple(f"m{n:04}/") for n in range(600)]
    made, store = increment(ones)
    frame = made.parts[0].frames[1]
    content = bytearray(store["000001.wbi"])
    content[frame.offset + frame.length // 2] ^= 1
    store["000001.wbi"] = bytes(content)
    damaged: list[CorruptIncrement] = []
    found = [one.key.decode() for one in reader.read(made, fetch_from(store), on_damage=damaged.append)]
    assert found == [one.key for one in ones if not frame.first <= one.key < made.parts[0].frames[2].first]
    assert len(damaged) == 1
    assert "000001.wbi" in str(damaged[0])
    with pytest.raises(CorruptIncrement):
        reader.check_part(made.parts[0], [store["000001.wbi"]])


def test_check_part_reads_a_part_in_pieces() -> None:
    ones = [simple(f"m{n:04}/") for n in range(600)]
    made, store = increment(ones)
    content = store["000001.wbi"]
    pieces = [content[n : n + 777] for n in range(0, len(content), 777)]
    assert reader.check_part(made.parts[0], pieces) == ("m0599/", 600)
    for wrong in (pieces[:-1], [*pieces, b"x"], []):
        with pytest.raises(CorruptIncrement):
            reader.check_part(made.parts[0], wrong)


def test_a_bomb_costs_no_memory() -> None:
    bomb = zstandard.ZstdCompressor(write_checksum=True).compress(bytes(part.MAX_CONTENT + 1))
    with pytest.raises(CorruptIncrement, match="size"):
        part.unpack(bomb)
    streamed = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(bytes(10**6))
    with pytest.raises(CorruptIncrement, match="size"):
        part.unpack(streamed)


@given(st.data())
def test_rubbish_in_a_frame_is_one_kind_of_error(data: st.DataObject) -> None:
    content = bytearray(next(part.frames_of([("m/", 1, record.encode(simple("m/")))])).content)
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(content)))
    try:
        part.unpack(bytes(content[:cut] if data.draw(st.booleans()) else content))
    except CorruptIncrement:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4),
    max_leaves=5,
)


@given(st.data())
def test_rubbish_in_a_manifest_is_one_kind_of_error(data: st.DataObject) -> None:
    made, _ = increment([simple("m/")])
    run = manifest.Run(stamp="x", node="n", prefix="/", begin=1, end=2, status=0, is_complete=True)
    for one, read_one in ((made, manifest.read_manifest), (run, manifest.read_run)):
        values = json.loads(one.to_json())
        name = data.draw(st.sampled_from(sorted(values)))
        values[name] = data.draw(json_values)
        content = json.dumps(values).encode()
        try:
            read_one(content)
        except CorruptIncrement:
            pass
        with pytest.raises(CorruptIncrement):
            read_one(content[:-1])


def test_no_flipped_bit_makes_another_manifest_or_run() -> None:
    """A run that confirms what it did not store lets retention delete the increments that have it."""
    made, _ = increment([simple("m/")], owed={"a.b/": NOW})
    run = manifest.Run(stamp="x", node="n", prefix="/", begin=1, end=2, status=3, is_complete=True, unconfirmed=("f.",))
    for one, read_one in ((made, manifest.read_manifest), (run, manifest.read_run)):
        content = one.to_json()
        refused = 0
        for bit in range(8 * len(content)):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            try:
                assert read_one(bytes(flipped)) == one
            except CorruptIncrement:
                refused += 1
        assert 8 * len(content) - refused < 8 * len(b',"sha256":"'), "that name alone is not in the sum"


def test_many_increments_are_joined_by_metric() -> None:
    made = []
    for number in range(30):
        keys = [f"m{n:03}/" for n in range(100) if (n + number) % 3]
        made.append(increment([simple(key, number) for key in keys]))
    streams = [reader.read(one, fetch_from(store), request=merge.request_size(30)) for one, store in made]
    joined = list(merge.join(streams, reader.stop))
    assert [metric.key for metric in joined] == [f"m{n:03}/" for n in range(100)]
    for n, metric in enumerate(joined):
        assert [share.number for share in metric.shares] == [number for number in range(30) if (n + number) % 3]


def test_increments_are_read_without_this_package(tmp_path: Path) -> None:
    ones = []
    for number in range(300):
        path = make(tmp_path / "m.wsp", [(60, 60), (300, 50)], range(NOW - 1800, NOW, 60 + number), number + 0.1)
        fd = os.open(path, os.O_RDONLY)
        ones.append(record_of(f"a.m{number:03}/", fresh.read_fresh(fd, NOW - HOUR, NOW)))
        os.close(fd)
        path.unlink()
    made, store = increment(ones)
    (tmp_path / "manifest.json").write_bytes(made.to_json())
    for name, content in store.items():
        (tmp_path / name).write_bytes(content)

    def lines(*words: str) -> list[str]:
        command = [
            sys.executable,
            "-I",
            READ_INCREMENT,
            *words,
            tmp_path / "manifest.json",
            *[tmp_path / n for n in store],
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/").stdout.splitlines()

    def expected(one: Record, numbers: range) -> list[str]:
        found = []
        for number in numbers:
            ring, step = one.rings[number], parse_header(one.header).archives[number].step
            times = [first + step * n for first, count in ring.runs for n in range(count)]
            values = [value for (value,) in struct.iter_unpack("<d", ring.values)]
            found += [f"{one.key[:-1]} {value!r} {time_}" for value, time_ in zip(values, times, strict=True)]
        return found

    assert lines() == [line for one in ones for line in expected(one, range(1))]
    assert lines("--all") == [line for one in ones for line in expected(one, range(2))]
    assert len(READ_INCREMENT.read_text().splitlines()) <= 40
    (tmp_path / "000001.wbi").write_bytes(store["000001.wbi"][:-1])
    with pytest.raises(subprocess.CalledProcessError):
        lines()


# The image


def test_a_disk_that_died_leaves_a_superset(tmp_path: Path) -> None:
    old = make(tmp_path / "old.wsp", [(60, 60)], range(NOW - 3000, NOW - 1500, 60))
    new = make(tmp_path / "new.wsp", [(60, 60)], range(NOW - 900, NOW, 60))
    made = image.lay(old.read_bytes(), order.Sorted((whole(new),)), 10**6)
    assert made is not None
    assert made.is_based
    (tmp_path / "made.wsp").write_bytes(made.content)
    _, values = whisper.fetch(str(tmp_path / "made.wsp"), NOW - 3600, NOW, now=NOW)
    assert sum(value is not None for value in values) == 25 + 15


def test_a_file_made_anew_from_an_old_copy_does_not_push_out_newer_points(tmp_path: Path) -> None:
    old = make(tmp_path / "old.wsp", [(60, 60)], range(NOW - 7200, NOW - 3600, 60))
    backup = make(tmp_path / "backup.wsp", [(60, 60)], range(NOW - 7200, NOW - 60, 60))
    made = image.lay(backup.read_bytes(), order.Sorted((whole(old)._replace(read=NOW),)), 10**6)
    assert made is not None
    assert made.content == backup.read_bytes()


DAYS_OF = [(60, 360), (600, 4320)]  # finest archive of six hours


@pytest.mark.parametrize("archives", [DAYS_OF, [*DAYS_OF, (86400, 400)], [(60, 1440), (86400, 400)], [(60, 360)]])
def test_a_file_made_anew_before_its_backup_leaves_an_image_to_fill_from(
    tmp_path: Path, archives: list[tuple[int, int]]
) -> None:
    old = make(tmp_path / "old.wsp", archives, range(NOW - 5 * HOUR, NOW - 2 * HOUR, 60))
    late = [NOW - 6 * HOUR + 60, NOW - 6 * HOUR + 120]
    new = make(tmp_path / "new.wsp", archives, [*late, *range(NOW - HOUR, NOW, 60)])
    found = read(old, NOW - 5 * HOUR, NOW - 2 * HOUR)
    made = image.lay(new.read_bytes(), order.Sorted((), earlier=(found,)), 10**6)
    assert made is not None
    assert len(made.earlier) == 1


def test_an_archive_of_which_increments_have_nothing_does_not_count(tmp_path: Path) -> None:
    """Fewer points than xFilesFactor asks for are not aggregated."""
    old = make(tmp_path / "old.wsp", DAYS_OF, range(NOW - 5 * HOUR, NOW - 2 * HOUR, 60))
    coarse = parse_header(old.read_bytes()).archives[1]
    with old.open("r+b") as file:
        file.seek(coarse.offset)
        file.write(bytes(12 * coarse.points))
    new = make(tmp_path / "new.wsp", DAYS_OF, range(NOW - HOUR, NOW, 60))
    made = image.lay(new.read_bytes(), order.Sorted((), earlier=(read(old, NOW - 6 * HOUR, NOW - 2 * HOUR),)), 10**6)
    assert made is not None
    assert len(made.earlier) == 1


@pytest.mark.parametrize("written_since", [0, 7 * HOUR])
@pytest.mark.parametrize("removed", [4 * HOUR, 2 * DAY, 4 * DAY])
@pytest.mark.parametrize("is_whole", [False, True])
def test_a_file_that_was_set_back_leaves_none(tmp_path: Path, removed: int, written_since: int, is_whole: bool) -> None:
    now = NOW - written_since
    wrong = make(tmp_path / "wrong.wsp", DAYS_OF, range(NOW - 9 * DAY, now, 60))
    good = make(tmp_path / "good.wsp", DAYS_OF, [*range(NOW - 9 * DAY, now - removed, 60), *range(now, NOW, 60)])
    found = whole(wrong) if is_whole else read(wrong, now - removed - HOUR, now)
    made = image.lay(good.read_bytes(), order.Sorted((), earlier=(found,)), 10**6)
    assert made is not None
    assert made.earlier == ()


def test_another_layout_gets_what_the_older_one_held(tmp_path: Path) -> None:
    old = make(tmp_path / "old.wsp", [(60, 60)], range(NOW - 3000, NOW - 1500, 60))
    new = make(tmp_path / "new.wsp", [(60, 100), (300, 40)], range(NOW - 900, NOW, 60))
    made = image.lay(old.read_bytes(), order.Sorted((whole(new)._replace(read=NOW),)), 10**6)
    assert made is not None
    (tmp_path / "made.wsp").write_bytes(made.content)
    _, values = whisper.fetch(str(tmp_path / "made.wsp"), NOW - 3600, NOW, now=NOW)
    assert sum(value is not None for value in values) == 25 + 15


def test_without_backup_and_whole_record_the_rest_is_restored_and_flagged(tmp_path: Path) -> None:
    path = make(tmp_path / "m.wsp", [(60, 60)], range(NOW - 3000, NOW, 60))
    found = read(path, NOW - 600, NOW)
    made = image.lay(None, order.Sorted((found,)), 10**6)
    assert made is not None
    assert not made.is_based
    (tmp_path / "made.wsp").write_bytes(made.content)
    _, values = whisper.fetch(str(tmp_path / "made.wsp"), NOW - 3600, NOW, now=NOW)
    assert [value is not None for value in values] == [False] * 49 + [True] * 10 + [False]
    assert image.lay(None, order.Sorted(), 10**6) is None


def test_a_record_of_a_huge_file_is_refused() -> None:
    with pytest.raises(CorruptIncrement):
        image.lay(None, order.Sorted((simple("m/"),)), 100)


# Where the window begins


def stamp(moment: int) -> str:
    return stamp_of(datetime.fromtimestamp(moment, UTC))


def run_at(begin: int, **more: object) -> manifest.Run:
    values = {"stamp": stamp(begin), "node": "n", "prefix": "/", "begin": begin, "end": begin + 100, "files": 100}
    return manifest.Run(**{"status": 0, "is_complete": True, **values, **more})  # type: ignore[arg-type]


def increment_at(begin: int, **more: object) -> manifest.Manifest:
    values = {"stamp": stamp(begin), "node": "n", "prefix": "/", "begin": begin, "end": begin + 10, "files": 100}
    made = {"since": begin - HOUR, "lag": 900, "reference_files": 100, "records": 10, "all_records": 10}
    return manifest.Manifest(**{**made, **values, **more})  # type: ignore[arg-type]


def choose(increments: list[manifest.Manifest], runs: list[manifest.Run], **more: object) -> window.Window | None:
    values = {"now": window.Now(NOW), "node": "n", "prefix": "/", "exclude": (), "lag": 900}
    return window.choose(increments, runs, **{**values, **more})  # type: ignore[arg-type]


def test_the_window_begins_at_the_newest_reference() -> None:
    day, runs = 86400, [run_at(NOW - 2 * 86400), run_at(NOW - 86400)]
    one, two = increment_at(NOW - 2 * HOUR), increment_at(NOW - HOUR)

    def since(*increments: manifest.Manifest, of: list[manifest.Run] = runs) -> int | None:
        chosen = choose(list(increments), of)
        return chosen.since + 900 - NOW if chosen else None

    assert since(one, two) == -HOUR
    assert since() == -day
    assert since(of=[]) is None
    assert since(increment_at(NOW - HOUR, node="other")) == -day
    assert since(increment_at(NOW - HOUR, prefix="/other")) == -day
    assert since(increment_at(NOW - HOUR, exclude=("x.*",))) == -day
    assert since(one, increment_at(NOW - HOUR, files=49)) == -2 * HOUR  # a disk that was not mounted
    assert since(one, increment_at(NOW - HOUR, owed=None)) == -2 * HOUR
    assert since(one, increment_at(NOW + 60)) == -2 * HOUR  # a clock that was ahead
    assert since(increment_at(NOW - 8 * day), of=[run_at(NOW - 9 * day)]) == -9 * day
    for more in ({"is_complete": False}, {"is_partial": True}, {"exclude": ("x.*",)}, {"unconfirmed": None}):
        assert since(of=[run_at(NOW - 2 * day), run_at(NOW - day, **more)]) == -2 * day


def test_a_clock_that_was_set_is_noticed_while_the_kernel_runs() -> None:
    now = window.Now(NOW, "boot", 10_000)
    right = increment_at(NOW - 2 * HOUR, boot="boot", uptime=10_000 - 2 * HOUR)
    ahead = increment_at(NOW - 60, boot="boot", uptime=10_000 - HOUR)  # an hour ago by the kernel
    assert choose([right, ahead], [], now=now).since == NOW - 2 * HOUR - 900  # type: ignore[union-attr]
    run = run_at(NOW - 60, boot="boot", uptime=10_000 - HOUR)
    assert choose([], [run], now=now).since == NOW - HOUR - 900  # type: ignore[union-attr]
    rebooted = window.Now(NOW, "next boot", 600)
    assert choose([right, ahead], [], now=rebooted).since == NOW - 2 * HOUR - 900  # type: ignore[union-attr]
    late_run, run = run_at(NOW - 60, boot="boot", uptime=9_000), run_at(NOW - 2 * DAY)
    assert choose([], [run, late_run], now=rebooted).reference == run.stamp  # type: ignore[union-attr]
    assert choose([], [late_run], now=rebooted) is None
    before = increment_at(NOW - 600, boot="boot", uptime=10_000)
    assert choose([right, before], [], now=rebooted).since == NOW - 600 - 900  # type: ignore[union-attr]
    # A run whose stamp can be true is not to be trusted if one after it, under the same clock, was ahead.
    early = increment_at(NOW - HOUR, boot="boot", uptime=5_000)
    late = increment_at(NOW + HOUR, boot="boot", uptime=5_000 + 2 * HOUR)
    assert choose([right, early, late], [], now=rebooted).since == NOW - 2 * HOUR - 900  # type: ignore[union-attr]
    assert choose([early], [run, late_run], now=rebooted).reference == early.stamp  # type: ignore[union-attr]
    early_run = run_at(NOW - HOUR, boot="boot", uptime=5_000)
    assert choose([late], [run, early_run], now=rebooted).reference == run.stamp  # type: ignore[union-attr]


def test_what_is_owed_has_a_window_of_its_own() -> None:
    chosen = choose([increment_at(NOW - HOUR, owed={"a.b/": 5005, "c.": 7005})], [])
    assert chosen is not None
    assert [chosen.since_of(key) for key in ("a.b/", "c.d.e/", "x/", "c/")] == [4105, 6105, chosen.since, chosen.since]

    def still_owed(failed: Iterable[str], unseen: Iterable[str], served: Sequence[str]) -> dict[str, int] | None:
        return window.still_owed(chosen, failed, unseen, served, 9).window

    both = ["a.b/", "c."]
    assert still_owed(["a.b/", "x/"], [], both) == {"a.b/": 5005, "x/": chosen.begin}
    assert still_owed(["c.d/"], [], both) == {"c.d/": 7005}
    assert still_owed([], ["a."], both) == {"a.": 5005}
    assert still_owed([], [""], both) == {"": 5005}
    assert still_owed([], [], both) == {}
    assert still_owed((f"m{n}/" for n in range(20_000)), [], both) is None


def test_what_is_owed_and_not_there_stays_owed_for_a_week() -> None:
    chosen = choose([increment_at(NOW - HOUR, owed={"a.b/": NOW - 9, "c.": NOW - 8 * DAY, "d.": NOW - DAY})], [])
    assert chosen is not None
    assert window.still_owed(chosen, [], [], ["d."], NOW).window == {"a.b/": chosen.begin}
    assert window.still_owed(chosen, [], [], [], NOW).window == {"a.b/": chosen.begin, "d.": NOW - DAY}
    assert window.still_owed(chosen, [], [], [], NOW + 8 * DAY).window == {}
    many = [f"m{n}/" for n in range(10_000)]
    assert window.still_owed(chosen, many, [], [], NOW) == (dict.fromkeys(many, chosen.begin), 2)


def test_a_file_is_new_if_the_reference_cannot_have_read_it() -> None:
    """A resized file holds old points, too: its birth tells, not what it holds."""
    chosen = choose([increment_at(NOW - HOUR, lag=1800, owed={"a/": NOW - 2 * HOUR})], [])
    assert chosen is not None
    assert (chosen.since_of("a/"), chosen.since) == (NOW - 2 * HOUR - 1800, NOW - HOUR - 900), "what was promised"
    chosen = choose([increment_at(NOW - HOUR, lag=0, owed={"a/": NOW - 2 * HOUR})], [])
    assert chosen is not None
    assert (chosen.begin_of("a/"), chosen.since_of("a/")) == (NOW - 2 * HOUR, NOW - 2 * HOUR - 900)
    assert (chosen.begin_of("x/"), chosen.since_of("x/")) == (NOW - HOUR, NOW - HOUR - 900)


def order_of(found: Record, increment: manifest.Manifest, backup: str, runs: list[manifest.Run]) -> order.Order:
    (made,) = order.orders([(found, increment)], backup, runs)
    return made


def test_what_was_in_the_store_when_the_other_began_is_earlier_whatever_the_clocks() -> None:
    early, late = increment_at(NOW - HOUR), increment_at(NOW + HOUR, after_run=stamp(NOW))
    run = run_at(NOW, end=NOW + 60, after_increment=early.stamp)
    backup = stamp(NOW + 30)
    old, new = simple("m/")._replace(version=NOW - HOUR), simple("m/")._replace(version=NOW + HOUR)
    assert order_of(new, early, backup, [run]) is EARLIER  # written by a clock that was ahead
    assert order_of(old, late, backup, [run]) is LATER  # after a backup by a clock that was ahead
    between = increment_at(NOW + 10)
    assert order_of(simple("m/")._replace(version=NOW + 30), between, backup, [run]) is LATER
    assert order_of(simple("m/")._replace(version=NOW + 29), between, backup, [run]) is EARLIER
    assert order_of(new, early, backup, [replace(run, node="a new name")]) is EARLIER
    assert order_of(new, early, backup, [replace(run, unconfirmed=("m/",))]) is EARLIER  # who else made that backup?
    for other in (
        replace(run, end=NOW + 29),
        replace(run, is_partial=True, metrics=("x.*",)),
        replace(run, exclude=("m*",)),
    ):
        assert order_of(new, early, backup, [other]) is LATER
        assert order_of(old, late, backup, [other]) is UNKNOWN


def test_where_stamps_follow_a_fast_clock_only_what_all_possible_runs_agree_on_is_known() -> None:
    ahead = run_at(NOW - 9 * HOUR, end=NOW - 9 * HOUR + 60, last_stamp=NOW + HOUR)
    run = run_at(NOW, end=NOW + 60, last_stamp=NOW + HOUR, after_increment=stamp(NOW - HOUR))
    killed = replace(run, is_complete=False, end=NOW, last_stamp=0)
    killed_before = replace(killed, stamp=stamp(NOW - DAY), begin=NOW - DAY, end=NOW - DAY, after_increment="")
    set_back = run_at(NOW, end=NOW - 500, first_stamp=NOW - 590, last_stamp=NOW + HOUR)
    found = simple("m/")
    early, between = increment_at(NOW - HOUR, after_run=ahead.stamp), increment_at(NOW + 10, after_run=ahead.stamp)
    late = increment_at(NOW + HOUR, after_run=run.stamp)
    for runs, increment, version, expected in (
        ([ahead, run], early, NOW - HOUR, UNKNOWN),
        ([ahead, run], between, NOW + 30, UNKNOWN),
        ([ahead, run], late, NOW - HOUR, LATER),
        ([run], early, NOW - HOUR, EARLIER),
        ([run], between, NOW - 1, EARLIER),
        ([run], between, NOW + 59, UNKNOWN),
        ([run], between, NOW + 60, LATER),
        ([killed], early, NOW - 1, EARLIER),
        ([killed], between, NOW - 1, UNKNOWN),  # the clock may have been set back
        ([killed], between, NOW + HOUR - 2, UNKNOWN),
        ([killed], between, NOW + HOUR - 1, LATER),
        ([killed_before, run], early, NOW - HOUR, EARLIER),  # that one gave no stamp after the next began
        ([killed_before, replace(run, unconfirmed=("m/",))], early, NOW - HOUR, EARLIER),
        ([set_back], between, NOW + 2 * HOUR, UNKNOWN),
        ([set_back], increment_at(NOW + 10, after_run=set_back.stamp), NOW - HOUR, LATER),
    ):
        assert order_of(found._replace(version=version), increment, stamp(NOW + HOUR - 1), runs) is expected
    early = increment_at(NOW - 2 * DAY, after_run=killed_before.stamp)
    assert order_of(found, early, stamp(NOW + 30), [killed_before, run]) is EARLIER  # that one did not make it
    assert order_of(found, early, stamp(NOW - 590), [set_back]) is UNKNOWN
    assert order_of(found, early, stamp(NOW - 591), [set_back]) is LATER  # by the clock


def test_the_last_run_that_found_nothing_new_tells_the_order() -> None:
    maker = run_at(NOW - 2 * DAY, end=NOW - 2 * DAY + 60, after_increment=stamp(NOW - 3 * DAY))
    last = run_at(NOW, end=NOW + 60, after_increment=stamp(NOW - HOUR))
    backup, found = stamp(NOW - 2 * DAY + 9), simple("m/")._replace(version=NOW - HOUR)
    between = increment_at(NOW - HOUR, after_run=maker.stamp)
    killed = replace(last, stamp=stamp(NOW + DAY), begin=NOW + DAY, end=NOW + DAY, is_complete=False)

    def order_now(runs: list[manifest.Run], until: float = math.inf) -> order.Order:
        return order.orders([(found, between)], backup, runs, until)[0]

    assert order_now([maker, last]) is order_now([maker, last, killed]) is EARLIER
    assert order_now([maker, last], -1) is order_now([maker, last], NOW) is LATER  # then there may be a newer backup
    assert order_now([replace(maker, end=maker.begin + 8), last], NOW - DAY) is LATER  # that one ended before
    assert order_now([maker, replace(last, unconfirmed=("m/",))]) is LATER
    assert order_now([maker, replace(last, is_complete=False)]) is LATER
    assert order_now([replace(last, begin=NOW - 4 * DAY, end=NOW - 4 * DAY + 60)]) is LATER  # by the clock


def test_records_are_as_late_as_those_before_them_and_as_early_as_those_behind() -> None:
    killed = replace(run_at(NOW), is_complete=False)
    before, after = simple("m/")._replace(version=NOW - 9), simple("m/")._replace(version=NOW + 9)
    unsure = (before, increment_at(NOW + 1))
    later, earlier = (after, increment_at(NOW + 2)), (before, increment_at(NOW - 3 * HOUR))
    run = replace(killed, after_increment=stamp(NOW - 2 * HOUR))
    for found, expected in (
        ([unsure], [UNKNOWN]),
        ([earlier, unsure, later], [EARLIER, UNKNOWN, LATER]),
        ([unsure, later, unsure], [UNKNOWN, LATER, LATER]),
        ([unsure, earlier, unsure], [EARLIER, EARLIER, UNKNOWN]),
        ([later, unsure, earlier, unsure], [UNKNOWN, UNKNOWN, UNKNOWN, LATER]),  # that cannot be
    ):
        assert order.orders(found, stamp(NOW), [run]) == expected
    assert order.orders([unsure, later], "", [run]) == [LATER, LATER]


def test_a_record_that_may_be_earlier_only_fills(tmp_path: Path) -> None:
    def file_of(name: str, points: dict[int, float], layout: list[tuple[int, int]]) -> Path:
        path = tmp_path / name
        whisper.create(str(path), layout, xFilesFactor=0.0)
        whisper.update_many(str(path), [(NOW - 60 * age, value) for age, value in points.items()], NOW)
        return path

    layout = [(60, 10)]
    backup = file_of("backup", {1: 1.0, 2: 2.0}, layout).read_bytes()
    unsure = whole(file_of("unsure", {1: 9.0, 3: 3.0}, layout))
    made = image.lay(backup, order.Sorted((), (unsure,)), 10**6)
    assert made is not None
    (tmp_path / "made").write_bytes(made.content)
    _, values = whisper.fetch(str(tmp_path / "made"), NOW - 240, NOW, NOW)
    assert [value for value in values if value is not None] == [3.0, 2.0, 1.0]
    ahead = whole(file_of("ahead", {-68: 9.0, -64: 7.0}, layout))._replace(read=NOW)  # in the slots of 2 and 6
    made = image.lay(backup, order.Sorted((), (ahead,)), 10**6)
    assert made is not None
    (tmp_path / "made").write_bytes(made.content)
    _, values = whisper.fetch(str(tmp_path / "made"), NOW - 600, NOW, NOW)
    assert [value for value in values if value is not None] == [2.0, 1.0]
    other = whole(file_of("other", {1: 9.0, 8: 8.0}, [(60, 20)]))._replace(read=NOW)
    made = image.lay(backup, order.Sorted((), (other,)), 10**6)
    assert made is not None
    assert parse_header(made.content).archives == parse_header(backup).archives
    (tmp_path / "made").write_bytes(made.content)
    _, values = whisper.fetch(str(tmp_path / "made"), NOW - 600, NOW, NOW)
    assert [value for value in values if value is not None] == [8.0, 2.0, 1.0]


def test_what_the_reference_run_did_not_confirm_is_owed_from_one_that_did() -> None:
    older, newer = run_at(NOW - 7200, unconfirmed=("x/",)), run_at(NOW - HOUR, unconfirmed=("a/", "f.", "x/"))
    chosen = choose([], [older, newer])
    assert chosen is not None
    assert dict(chosen.owed) == {"a/": NOW - 7200, "f.": NOW - 7200, "x/": 0}


# Places

TREE, DISK, OTHER, EMPTY = Place("", "1-1"), Place("d.", "2-1"), Place("d.", "2-2"), Place("e.", "2-3")


def seen(*used: Place, bare: Iterable[Place] = ()) -> Places:
    places = Places()
    places.used, places.found = set(used), {*used, *bare}
    return places


def look(
    chosen: window.Window,
    places: Places,
    still: Collection[Place] | None = None,
    unseen: Collection[str] = (),
    runs: Sequence[manifest.Run] = (),
) -> tuple[set[Place], set[Place], dict[Place, int], set[str], set[str]]:
    found = window.look_at_places(chosen, places, places.used if still is None else still, unseen, runs, NOW)
    return set(found.places), set(found.away), found.waiting, set(found.missed), set(found.returned)


def chosen_from(*runs: manifest.Run, **more: object) -> window.Window:
    """From an increment an hour ago, with a backup run before it and these after that."""
    values = {"places": (TREE, DISK), "known_run": stamp(NOW - DAY), **more}
    chosen = choose([increment_at(NOW - HOUR, **values)], [])
    assert chosen is not None
    return chosen.after(sorted(runs, key=lambda run: run.stamp, reverse=True), "n", "/", ())


def test_a_place_is_missed_where_another_folder_is_or_was_before_the_end_of_the_walk() -> None:
    chosen = chosen_from()
    waiting = {DISK: NOW - HOUR}
    assert look(chosen, seen(TREE, DISK)) == ({TREE, DISK}, set(), {}, set(), set())
    assert look(chosen, seen(TREE)) == ({TREE, DISK}, set(), waiting, {"d."}, set())
    assert look(chosen, seen(TREE, OTHER)) == ({TREE, DISK}, set(), waiting, {"d."}, set()), "that is not waited for"
    assert look(chosen, seen(TREE, DISK), still={TREE}) == ({TREE, DISK}, set(), waiting, {"d."}, set())
    assert look(chosen, seen(TREE, bare=[DISK, EMPTY])) == ({TREE}, set(), {}, set(), set()), "its metrics are gone"
    for unseen in ("", "d.", "d.a."):
        for came in (seen(TREE, bare=[DISK]), seen(TREE)):
            places, _, _, missed, _ = look(chosen, came, unseen=[unseen])
            assert (places, missed) == ({TREE, DISK}, set()), "unread, so it may be missed the next time"


def test_a_place_that_is_missed_waits_with_all_that_was_owed_below_it() -> None:
    chosen = chosen_from(owed={"d.a/": NOW - DAY, "x/": NOW - 2 * DAY})
    assert look(chosen, seen(TREE))[2] == {DISK: NOW - DAY}
    chosen = chosen_from(waiting=((DISK, NOW - DAY),))
    assert look(chosen, seen(TREE))[2] == {DISK: NOW - DAY}
    assert look(chosen, seen(TREE, DISK))[2] == {}
    assert chosen.where({TREE}).since_of("d.a/") == NOW - HOUR - 900
    assert chosen.where({TREE, DISK}).since_of("d.a/") == NOW - DAY - 900
    assert chosen.where({TREE, DISK}).since_of("x/") == NOW - HOUR - 900


def test_a_place_that_is_not_waited_for_any_longer_is_away_until_a_backup_has_it() -> None:
    expired = NOW - window.MAX_AGE - 1
    chosen = chosen_from(waiting=((DISK, expired),))
    assert look(chosen, seen(TREE))[1:] == ({DISK}, {DISK: NOW - HOUR}, {"d."}, set())
    assert look(chosen, seen(TREE, DISK))[1:] == (set(), {}, set(), set()), "its points are in this increment"
    chosen = chosen_from(away=(DISK,), waiting=((DISK, NOW - HOUR),))
    assert look(chosen, seen(TREE, DISK))[4] == {"d."}


def test_a_place_that_no_backup_has_is_named_until_one_has_it() -> None:
    assert look(chosen_from(), seen(TREE, DISK, EMPTY)) == ({TREE, DISK, EMPTY}, {EMPTY}, {}, set(), {"e."})
    chosen = chosen_from(places=(TREE, DISK, EMPTY), away=(EMPTY,))
    assert look(chosen, seen(TREE, DISK, EMPTY))[4] == {"e."}
    has = run_at(NOW - HOUR // 2, places=(TREE, DISK, EMPTY))
    chosen = chosen_from(has, places=(TREE, DISK, EMPTY), away=(EMPTY,))
    assert (chosen.known_run, look(chosen, seen(TREE, DISK, EMPTY))[4]) == (has.stamp, set())
    assert look(chosen_from(has), seen(TREE, DISK))[3] == {"e."}, "what it had is missed from then on"
    assert not look(chosen_from(places=()), seen(TREE, DISK))[4], "the last version did not know"


@pytest.mark.parametrize("later", ["whole", "for a part", "killed", "with another --exclude"])
def test_a_backup_run_without_a_place_may_have_stored_what_was_there_instead(later: str) -> None:
    settings = {
        "whole": {},
        "for a part": {"is_partial": True, "metrics": ("d.*",)},
        "killed": {"is_complete": False},
        "with another --exclude": {"exclude": ("x.*",)},
    }
    without = run_at(NOW - HOUR // 2, places=(TREE, OTHER), **settings[later])
    chosen = chosen_from(without)
    assert DISK in chosen.away
    *_, missed, returned = look(chosen, seen(TREE, DISK))
    assert (missed, returned) == (({"d."}, set()) if later == "whole" else (set(), {"d."})), "named once"
    assert (DISK in chosen.places) == (later != "whole"), "only after a whole one it is not missed any more"
    if later != "whole":  # also where a whole one before it had the disk again, after it had been away
        had = run_at(NOW - HOUR // 2 - 60, places=(TREE, DISK, EMPTY))
        chosen = chosen_from(had, without, places=(TREE,), away=(DISK,))
        assert chosen.known_run == had.stamp
        assert DISK in chosen.away
    elsewhere = replace(without, is_complete=True, is_partial=True, metrics=("a.*",), exclude=())
    assert not chosen_from(elsewhere).away
    assert not chosen_from(replace(without, node="other")).away


def test_a_backup_run_that_went_on_while_a_place_was_away_is_not_trusted() -> None:
    going_on = run_at(NOW - 2 * HOUR, places=(TREE, DISK), is_complete=False)
    chosen = chosen_from(going_on, waiting=((DISK, NOW - HOUR),))
    assert look(chosen, seen(TREE, DISK), runs=[going_on])[4] == {"d."}
    whole_one = replace(going_on, is_complete=True, end=NOW - 60)
    chosen = chosen_from(whole_one, waiting=((DISK, NOW - HOUR),))
    assert not look(chosen, seen(TREE, DISK), runs=[whole_one])[4], "it had the disk"
    chosen = chosen_from(waiting=((DISK, NOW - HOUR),))
    partial = replace(going_on, is_complete=True, is_partial=True, end=NOW - 60)
    assert look(chosen, seen(TREE, DISK), runs=[partial])[4] == {"d."}


def test_where_increments_begin_anew_they_know_what_was_away() -> None:
    run = run_at(NOW - HOUR, places=(TREE,))
    week_old = run_at(NOW - 2 * DAY, places=(TREE, EMPTY))
    ahead = increment_at(NOW + HOUR, places=(TREE,), away=(DISK,))  # no reference
    chosen = choose([ahead], [week_old, run])
    assert chosen is not None
    assert (chosen.reference, chosen.places, chosen.away) == (run.stamp, {TREE}, {DISK, EMPTY})
    chosen = choose([ahead], [replace(run, places=(TREE, DISK))])
    assert chosen is not None
    assert chosen.away == {DISK}, "the increment is later, and knew that it was not the disk's files"


def test_a_later_run_for_a_part_does_not_hide_the_whole_one_before_it() -> None:
    """It began later and ended first."""
    whole_one = run_at(NOW - HOUR // 2, places=(TREE,))
    part = run_at(NOW - HOUR // 4, is_partial=True, metrics=("a.*",), places=(TREE,))
    chosen = chosen_from(whole_one, part, after_run=part.stamp)
    assert (chosen.known_run, chosen.places) == (whole_one.stamp, {TREE})
    assert chosen_from(after_run=part.stamp).known_run == stamp(NOW - DAY)


def test_more_deleted_metrics_than_can_be_named_end_with_a_backup_that_had_no_failure() -> None:
    run = run_at(NOW - HOUR // 2, files=30, unconfirmed=None)
    assert chosen_from(run).reference_files == 30
    assert chosen_from(replace(run, status=3)).reference_files == 100


# Retention

entries = st.sampled_from(["a/", "b/", "f.a/", "f.b/", "f.g.a/", "f.", "f.g.", ""])
keys = ["a/", "b/", "f.a/", "f.b/", "f.g.a/", "f/", "fa/"]


@given(st.frozensets(entries), st.frozensets(entries))
def test_sets_of_names(one: frozenset[str], other: frozenset[str]) -> None:
    def covers(names: frozenset[str], key: str) -> bool:
        return any(key == name or (not name.endswith("/") and key.startswith(name)) for name in names)

    for key in keys:
        assert Names(one).cover(key) == covers(one, key)
        assert (Names(one) & Names(other)).cover(key) == (covers(one, key) and covers(other, key))
        assert Names(one).touch(key) == covers(one, key)
    for folder in ("", "f.", "f.g."):
        below = [name for name in one if name.startswith(folder)]
        assert Names(one).touch(folder) == (covers(one, folder) or bool(below))


moments = st.integers(0, 10)
a_run = st.builds(
    lambda begin, length, after, unconfirmed, complete, partial, node, exclude: run_at(
        NOW + begin * 10,
        end=NOW + (begin + length) * 10,
        after_increment=stamp(NOW + after * 10) if after >= 0 else "",
        unconfirmed=unconfirmed,
        is_complete=complete,
        is_partial=partial,
        node=node,
        exclude=exclude,
    ),
    moments,
    st.integers(0, 3),
    st.integers(-1, 10),
    st.lists(entries, max_size=3).map(tuple) | st.none(),
    st.sampled_from([True, True, False]),
    st.sampled_from([False, False, True]),
    st.sampled_from(["n", "n", "n", "other"]),
    st.sampled_from([(), (), ("x.*",)]),
)


@given(st.lists(a_run, max_size=4), moments, st.sets(st.sampled_from(keys[:5]), min_size=1), st.integers(0, 20))
def test_no_point_is_deleted_that_no_backup_run_confirmed(
    runs: list[manifest.Run], begin: int, held: set[str], age: int
) -> None:
    """Whatever happened: a key goes only if some run confirmed it that began after it."""
    made = increment_at(NOW + begin * 10, records=len(held), all_records=len(held))
    confirmed = {
        key
        for key in held
        for run in runs
        if run.node == "n"
        and run.is_complete
        and not run.is_partial
        and not run.exclude
        and run.unconfirmed is not None
        and run.begin >= made.end
        and run.after_increment >= made.stamp
        and not any(key == entry or (not entry.endswith("/") and key.startswith(entry)) for entry in run.unconfirmed)
    }
    now = NOW + 200 + age * 50
    judged = retention.judge([made], runs, now, 300)
    if made.end > now - 300:
        assert judged == []
        return
    [judgement] = judged
    doubtful = set() if judgement.doubtful is None else {key for key in held if judgement.doubtful.cover(key)}
    action = retention.settle(judgement, len(doubtful), now, 300, 500)
    left = {
        retention.Action.KEEP: held,
        retention.Action.REWRITE: doubtful,
        retention.Action.DELETE: set(),
        retention.Action.GIVE_UP: doubtful,  # named
    }[action]
    assert held - left <= confirmed
    if action is retention.Action.GIVE_UP:
        assert made.end <= now - 800
        assert 2 * len(doubtful) <= len(held)
    if judgement.doubtful is not None and not doubtful:
        assert action is retention.Action.DELETE


def test_an_increment_is_rewritten_under_new_names() -> None:
    made, store = increment([simple(f"m{n}/") for n in range(5)])
    held = [(one.key.decode(), 1, one.content) for one in reader.read(made, fetch_from(store)) if one.key == b"m3/"]
    parts = list(retention.rewritten_parts(made, held))
    rewritten = retention.rewritten(made, [each for each, _ in parts], 1)
    assert len(parts) == 1
    assert not {each.name for each, _ in parts} & {each.name for each in made.parts}
    assert (rewritten.records, rewritten.all_records, rewritten.points) == (1, 5, 1)
    assert manifest.read_manifest(rewritten.to_json()) == rewritten
    assert retention.settle(retention.Judgement(rewritten, Names(["m3/"])), 1, NOW, 0, 10**9) is retention.Action.KEEP


@pytest.mark.parametrize("last", [0, 1])
def test_two_that_rewrite_an_increment_at_once_leave_a_whole_one(last: int) -> None:
    """A prune and a backup share no lock, and one knew of a run that the other did not."""
    made, store = increment([simple(f"m{n}/") for n in range(5)])
    records = [(one.key.decode(), 1, one.content) for one in reader.read(made, fetch_from(store))]
    both = [list(retention.rewritten_parts(made, held)) for held in (records[3:4], records[2:4])]
    for parts in both:
        store |= {part.name: content for part, content in parts}
    whole = retention.rewritten(made, [each for each, _ in both[last]], 1)
    kept = [one.key for one in reader.read(whole, fetch_from(store))]
    assert kept == [[b"m3/"], [b"m2/", b"m3/"]][last]


class Shelf(Noop):
    """A store in memory."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self.objects = objects

    def list(self, prefix: str) -> Iterator[StoredObject]:
        return iter([StoredObject(key, len(self.objects[key]), None) for key in sorted(self.objects)])

    def get(self, key: str) -> bytes:
        return self.objects[key]


@pytest.mark.slow
def test_what_is_unconfirmed_of_an_increment_is_never_all_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part, "PART_SIZE", 20_000)
    stamped = "2026-11-24T12:00:00+00:00"

    def expiry(records: int) -> tuple[Shelf, retention.Judgement, expire._Expiry]:
        made, store = increment([simple(f"{'ab'[n * 5 >= records * 2]}.m{n:06}/", n / 7) for n in range(records)])
        shelf = Shelf({manifest.increment_key(stamped, name): content for name, content in store.items()})
        shelf.objects[manifest.increment_key(stamped)] = made.to_json()
        rules = expire.Rules("", 0, None, noop=False)
        work = expire._Expiry(shelf, rules, NOW, history.look_at_all(shelf, ""), RunStats("backup"))
        return shelf, retention.Judgement(made, Names(["a."])), work

    def peak(records: int) -> int:
        _, judgement, work = expiry(records)
        tracemalloc.start()
        held = work._count(judgement)
        work._rewrite(judgement, held)
        (_, highest), _ = tracemalloc.get_traced_memory(), tracemalloc.stop()
        assert (held.records, held.points, len(held.names)) == (records * 2 // 5, records * 2 // 5, expire.FEW)
        return highest

    peak(500)
    assert peak(10_000) < 2 * peak(1_000) + 200_000
    _, judgement, work = expiry(1000)
    assert work._count(judgement._replace(doubtful=Names([""]))).records == 501  # it stays: the rest is not read


def test_orphans_are_parts_a_day_old_without_a_manifest() -> None:
    old, young, whole = stamp(NOW - 90000), stamp(NOW - 80000), stamp(NOW - 95000)
    listing = [
        (manifest.increment_key(whole, "000001.wbi"), 5),
        (manifest.increment_key(whole), 5),
        (manifest.increment_key(old, "000001.wbi"), 5),
        (manifest.increment_key(young, "000001.wbi"), 5),
    ]
    assert [one.key for one in retention.orphans(listing, [whole], NOW)] == [listing[2][0]]


def test_files_decoded_together_are_what_each_is_alone(tmp_path: Path) -> None:
    archives = [[(60, 1440), (300, 2016)], [(60, 1440), (300, 2016)], [(10, 60), (60, 1440)]]  # the last has a lap
    times = [range(NOW - 3 * HOUR, NOW, 60), [*range(NOW - HOUR, NOW - 600, 60), NOW - 60], range(NOW - 600, NOW, 10)]
    raws = []
    alone = []
    for place, number in enumerate((0, 2, 1, 0)):
        path = make(tmp_path / f"m{place}.wsp", archives[number], times[number])
        with path.open("rb") as file:
            raws.append(fresh.read_fresh(file.fileno(), NOW - HOUR, NOW))
        alone.append(record.encode(read(path, NOW - HOUR, NOW)))
    for made, expected in zip(slots.encode([("m/", each) for each in raws]), alone, strict=True):
        assert made.content is not None
        one, other = record.decode(made.content), record.decode(expected)
        assert one._replace(read=0) == other._replace(read=0)
        assert made.layout.points == one.points > 0
