"""Reading one whisper file beside those who write to it."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from pathlib import Path

import pytest
import whisper
from conftest import wait_for

from whisperbackup.whisper import cwhisper, format, reader
from whisperbackup.whisper.throttle import Throttle

CEILING = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.wsp"
    whisper.create(str(path), [(10, 100), (60, 100)])
    whisper.update(str(path), 1.0, int(time.time()))
    os.utime(path, (time.time() - 3600,) * 2)
    return path


def read(path: Path) -> reader.Reading:
    return reader.read(os.fsencode(path), CEILING, Throttle())


def test_a_quiet_file_is_read_as_it_is(path: Path) -> None:
    assert read(path)[:2] == (path.read_bytes(), False)


def test_header_is_what_whisper_says(path: Path) -> None:
    header = format.parse_header(path.read_bytes())
    theirs = whisper.info(str(path))
    assert [archive.step for archive in header.archives] == [a["secondsPerPoint"] for a in theirs["archives"]]
    assert [archive.offset for archive in header.archives] == [a["offset"] for a in theirs["archives"]]
    assert header.max_retention == theirs["maxRetention"]
    assert header.file_size == path.stat().st_size


@pytest.mark.parametrize(
    "damage", ["empty", "header cut", "truncated", "random", "too long", "offsets", "xff", "count"]
)
def test_what_is_no_whisper_file_is_refused_with_a_reason(path: Path, damage: str) -> None:
    good = path.read_bytes()
    bad = {
        "empty": b"",
        "header cut": good[:20],
        "truncated": good[:-1],
        "random": os.urandom(len(good)),
        "too long": good + b"x",
        "offsets": good[:16] + struct.pack(">L", 41) + good[20:],
        "xff": good[:8] + struct.pack(">f", 7.0) + good[12:],
        "count": good[:12] + struct.pack(">L", 0xFFFFFFFF) + good[16:],
    }[damage]
    path.write_bytes(bad)
    os.utime(path, (time.time() - 3600,) * 2)
    with pytest.raises(format.CorruptFile):
        read(path)


def test_a_short_young_file_is_too_new(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40].ljust(100, b"\0"))
    with pytest.raises(reader.TooNew):
        read(path)


def test_a_file_being_created_is_read_again(path: Path) -> None:
    good = path.read_bytes()
    path.write_bytes(good[:40].ljust(100, b"\0"))
    threading.Timer(0.1, path.write_bytes, [good]).start()
    assert read(path).content == good


def test_random_content_is_not_excused_by_its_youth(path: Path) -> None:
    path.write_bytes(b"\xff" * 5000)
    with pytest.raises(format.CorruptFile):
        read(path)


def test_a_compressed_file_passes_as_opaque(path: Path) -> None:
    path.write_bytes(cwhisper.MAGIC + b"anything at all")
    os.utime(path, (time.time() - 3600,) * 2)
    assert read(path).content == cwhisper.MAGIC + b"anything at all"


def test_a_locked_file_is_waited_for(path: Path) -> None:
    with path.open("r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        began = time.monotonic()
        threading.Timer(0.3, fcntl.flock, [holder, fcntl.LOCK_UN]).start()
        read(path)
        assert time.monotonic() - began > 0.25


def test_a_file_that_stays_locked_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with path.open("r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(reader.Locked, match="locked"):
            reader.acquire(fd, fcntl.LOCK_SH, timeout=0.2)
        os.close(fd)


def test_a_file_that_keeps_changing_is_taken_and_told(path: Path) -> None:
    stop, started = threading.Event(), threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(-8, os.SEEK_END)
                file.write(struct.pack(">d", time.time()))
                started.set()

    writer = threading.Thread(target=write)
    writer.start()
    started.wait()
    try:
        wait_for(lambda: read(path).is_torn)  # on a busy machine the writer may not have its turn while it is read
    finally:
        stop.set()
        writer.join()


def test_a_reading_in_the_tick_of_a_write_is_not_believed(path: Path) -> None:
    """Another write in that tick would leave no trace in the file's times."""
    for number in range(5):  # the first reading may be late on a busy machine
        whisper.update(str(path), float(number), int(time.time()))
        reading = read(path)
        assert reading.is_torn or reading.began - reading.status.st_mtime_ns >= reader.TICK


def test_a_file_that_came_to_rest_is_not_called_torn(path: Path) -> None:
    whisper.update(str(path), 2.0, int(time.time()))
    assert not read(path).is_torn


def test_links_fifos_and_oversized_files_are_refused(path: Path, tmp_path: Path) -> None:
    (tmp_path / "link.wsp").symlink_to(path)
    os.mkfifo(tmp_path / "fifo.wsp")
    for name in ("link.wsp", "fifo.wsp"):
        with pytest.raises(OSError):
            read(tmp_path / name)
    with pytest.raises(format.CorruptFile, match="max-file-size"):
        reader.read(os.fsencode(path), 100, Throttle())
