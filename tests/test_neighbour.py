"""Reading beside carbon: bandwidth, priorities, and a page cache that is left as it was."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from conftest import Program, children, wait_for

from whisperbackup.whisper import format, reader
from whisperbackup.whisper.page_cache import absent_pages, drop_pages
from whisperbackup.whisper.throttle import Throttle

pytestmark = pytest.mark.alone

SIZE = 28 + 12 * 20476  # of a whisper file that fills 60 pages, the last one not quite
WHOLE = [(0, 60 * mmap.PAGESIZE)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A whisper file of 60 pages, on the disk and not in the page cache."""
    path = tmp_path / "a.wsp"
    path.write_bytes(whole_file(SIZE))
    evict(path)
    if absent(path) != WHOLE:
        pytest.skip("this file system keeps its pages, as tmpfs does")
    return path


def evict(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        drop_pages(file.fileno(), [(0, 0)])


def absent(path: Path) -> list[tuple[int, int]]:
    with path.open("rb") as file:
        return absent_pages(file.fileno(), SIZE)


def touch_pages(path: Path) -> None:
    """Bring some pages into the cache, as carbon's writing and reading of single points does."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for page in (0, 7, 8, 59):
            os.pread(file.fileno(), 1, page * mmap.PAGESIZE)


def read(path: Path, throttle: Throttle | None = None) -> reader.Reading:
    return reader.read(os.fsencode(path), 1 << 30, throttle or Throttle())


def test_a_cold_file_is_cold_again_after_its_reading(path: Path) -> None:
    assert read(path).content == path.read_bytes()
    evict(path)
    read(path)
    assert absent(path) == WHOLE


@pytest.mark.parametrize("bandwidth", [None, 1e9])
def test_pages_that_were_hot_stay_hot(path: Path, bandwidth: float | None) -> None:
    touch_pages(path)
    before = absent(path)
    assert before
    assert before != WHOLE
    read(path, Throttle(bandwidth))
    assert absent(path) == before


def test_a_hot_file_stays_hot(path: Path) -> None:
    path.read_bytes()
    read(path)
    assert absent(path) == []


def test_a_backup_leaves_the_page_cache_as_it_was(program: Program, path: Path) -> None:
    for attempt in range(3):  # where memory is short, the kernel itself takes pages
        hot, cold = program.prefix / f"hot{attempt}.wsp", program.prefix / f"cold{attempt}.wsp"
        for copy in (hot, cold):
            copy.write_bytes(path.read_bytes())
            evict(copy)
        hot.read_bytes()
        program("backup")
        if not absent(hot):
            break
    assert (absent(hot), absent(cold)) == ([], WHOLE)
    for stored in program.store.rglob("*.wsp.gz"):
        with stored.open("rb") as file:
            size = stored.stat().st_size
            assert sum(length for _, length in absent_pages(file.fileno(), size)) >= size, "the store's files, too"


def test_bandwidth_is_kept_for_files_hot_and_cold(path: Path) -> None:
    began = time.monotonic()
    throttle = Throttle(SIZE / 0.2)  # 0.2 s a reading
    for _ in range(3):
        read(path, throttle)
    assert 0.55 < time.monotonic() - began < 5


def test_bandwidth_is_shared_by_the_threads_of_a_worker(path: Path) -> None:
    throttle = Throttle(SIZE / 0.2)
    threads = [threading.Thread(target=read, args=(path, throttle)) for _ in range(3)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began > 0.55


def test_no_lock_is_held_while_reading_slowly(path: Path) -> None:
    reader = threading.Thread(target=read, args=(path, Throttle(SIZE / 1.0)))
    reader.start()
    tries = 0
    with path.open("r+b") as file:
        while reader.is_alive():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(file, fcntl.LOCK_UN)
                tries += 1
            except BlockingIOError:
                tries -= 20
            time.sleep(0.01)
    assert tries > 30


def test_bwlimit_holds_for_all_processes_together(program: Program) -> None:
    for number in range(8):
        (program.prefix / f"{number}.wsp").write_bytes(whole_file(100_000))
    began = time.monotonic()
    program("backup", "-f", "2", "--bwlimit", "0.4", "disk")
    assert 1.8 < time.monotonic() - began < 30  # 0.8 MB at 0.4 MB/s


def whole_file(size: int) -> bytes:
    """A whisper file of about `size` bytes, without points."""
    points = (size - 28) // 12
    head = format.METADATA.pack(1, points, 0.5, 1) + format.ARCHIVE_INFO.pack(28, 1, points)
    return head + bytes(12 * points)


@pytest.mark.parametrize("words", [["--bwlimit", "0"], ["--bwlimit", "-1"], ["--bwlimit", "nan"], ["--bwlimit", "x"]])
def test_a_bandwidth_that_cannot_be_meant_is_refused(program: Program, words: list[str]) -> None:
    assert "--bwlimit" in program("backup", *words, "disk", status=2)


def priorities(pid: int) -> set[tuple[int, str]]:
    """Niceness and I/O class of a process' threads; empty if one has just ended."""
    try:
        threads = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
        nices = [os.getpriority(os.PRIO_PROCESS, thread) for thread in threads]
    except (ProcessLookupError, FileNotFoundError):
        return set()
    classes = [subprocess.run(["ionice", "-p", str(t)], capture_output=True, text=True).stdout for t in threads]
    return {(nice, kind.split(":")[0].strip()) for nice, kind in zip(nices, classes, strict=True)}


def test_workers_are_nice_and_the_parent_is_not(program: Program) -> None:
    (program.prefix / "a.wsp").write_bytes(whole_file(1_000_000))
    words = ["-f", "1", "--nice", "--bwlimit", "0.5", "disk"]
    run = program.start("backup", *words)
    wait_for(lambda: any(priorities(child) == {(19, "idle")} for child in children(run.pid)))
    assert os.getpriority(os.PRIO_PROCESS, run.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    assert run.wait(60) == 0


def test_the_holder_of_a_lock_is_not_nice() -> None:
    seen: list[int] = []

    def attempt() -> None:
        throttle = Throttle(is_nice=True)
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        with throttle.normal_priority():
            seen.append(os.getpriority(os.PRIO_PROCESS, 0))
        seen.append(os.getpriority(os.PRIO_PROCESS, 0))

    thread = threading.Thread(target=attempt)  # a priority is a thread's
    thread.start()
    thread.join()
    assert seen == [19, os.getpriority(os.PRIO_PROCESS, 0), 19]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop root's rights")
def test_who_may_not_raise_a_priority_again_does_not_lower_it(program: Program) -> None:
    (program.prefix / "a.wsp").write_bytes(whole_file(1_000_000))
    words = program.words("backup", "-f", "1", "--nice", "--bwlimit", "0.5", "disk")
    run = subprocess.Popen(["setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice", "--", *words])
    wait_for(lambda: any(priorities(child) == {(0, "idle")} for child in children(run.pid)))
    assert run.wait(60) == 0


@pytest.mark.parametrize("rest", [0, 10, 100])
def test_a_file_that_shrinks_while_it_is_looked_at_is_being_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rest: int
) -> None:
    """whisper.create opens an existing file for writing, which empties it, at the very moment of our look."""
    path = tmp_path / "a.wsp"
    whole = whole_file(SIZE)
    path.write_bytes(whole)

    def shrink_then_look(fd: int, size: int) -> list[tuple[int, int]]:
        path.write_bytes(whole[:rest])
        return absent_pages(fd, size)

    monkeypatch.setattr(reader, "absent_pages", shrink_then_look)
    with pytest.raises(reader.TooNew):
        read(path)

    def shrink_once(fd: int, size: int) -> list[tuple[int, int]]:
        monkeypatch.setattr(reader, "absent_pages", absent_pages)
        path.write_bytes(whole[:rest])
        threading.Timer(0.1, path.write_bytes, [whole]).start()
        return absent_pages(fd, size)

    path.write_bytes(whole)
    monkeypatch.setattr(reader, "absent_pages", shrink_once)
    assert read(path).content == whole
