"""restore into a tree that lives: under carbon's hands, under kill -9, beside broken and foreign files."""

from __future__ import annotations

import fcntl
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import whisper
from conftest import Program, budget, contents, wait_for
from test_carbon import Carbon

from whisperbackup.tree import restore_file
from whisperbackup.whisper import cwhisper, format

PROCESSES = 2
LIVE_SECONDS = max(5, budget(12))
KILLS = budget(20)


def points(path: Path, archive: int = 0) -> dict[int, float]:
    """What a file holds in one archive, by timestamp, as it stands in the ring."""
    content = path.read_bytes()
    offset, _, count = format.parse_header(content).archives[archive]
    records = struct.iter_unpack(">Ld", content[offset : offset + 12 * count])
    return {stamp: value for stamp, value in records if stamp}


def placer(prefix: Path) -> restore_file.Placer:
    return restore_file.Placer(os.fsencode(prefix), overwrite=False, noop=False, max_file_size=1 << 30)


@pytest.fixture
def healed(program: Program) -> tuple[Program, Path, bytes]:
    """A backed-up file that since then has lost points and got newer ones, and what was backed up."""
    path = program.write("servers.web1.cpu", 1)
    full = path.read_bytes()
    program("backup")
    path.unlink()
    whisper.create(str(path), [(1, 120), (60, 120)], xFilesFactor=0.0)
    now = int(time.time())
    whisper.update_many(str(path), [(now - age, 5000.0 + age) for age in (0, 1, 2, 40, 60)])
    return program, path, full


def test_gaps_are_filled_and_nothing_is_overwritten(healed: tuple[Program, Path, bytes]) -> None:
    program, path, _ = healed
    before = [points(path, archive) for archive in (0, 1)]
    inode, mode = path.stat().st_ino, path.stat().st_mode
    said = program("restore")
    assert re.search(r"1 examined, 0 created, 1 healed, \d\d points filled, 0 already whole", said)
    assert before[0].items() <= points(path).items()
    assert len(points(path, 1)) >= 48
    assert (path.stat().st_ino, path.stat().st_mode) == (inode, mode)
    after = path.read_bytes()
    assert "1 already whole" in program("restore")
    assert path.read_bytes() == after


def test_noop_reports_the_same_and_writes_nothing(healed: tuple[Program, Path, bytes]) -> None:
    program, path, _ = healed
    before = path.read_bytes(), path.stat().st_mtime_ns
    figures = re.compile(r"complete: (.*), [0-9.]+ s")
    would = figures.search(program("restore", "disk", "-n"))
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    did = figures.search(program("restore"))
    assert would and did
    assert would[1].replace("would be ", "") == did[1]


def test_a_dry_run_names_what_it_would_do(healed: tuple[Program, Path, bytes]) -> None:
    program, path, _ = healed
    (stamp,) = program.stamps("servers.web1.cpu")
    said = program("restore", "disk", "-n")
    assert re.search(rf"noop: servers.web1.cpu: would be healed, \d+ points, from {re.escape(stamp)}\n", said)
    assert re.search(r"0 would be created, 1 would be healed, \d+ points would be filled", said)
    said = program("restore", "disk", "-n", "--overwrite")
    assert f"noop: servers.web1.cpu: would be replaced, from {stamp}\n" in said
    assert "1 would be replaced" in said
    path.unlink()
    said = program("restore", "disk", "-n")
    assert f"noop: servers.web1.cpu: would be created, from {stamp}\n" in said
    assert "1 would be created" in said
    program("restore")
    assert "servers.web1.cpu" not in program("restore", "disk", "-n")  # nothing would be done


def test_overwrite_replaces_and_keeps_owner_and_mode_but_never_setuid(healed: tuple[Program, Path, bytes]) -> None:
    program, path, full = healed
    path.chmod(0o4640)
    if os.geteuid() == 0:
        os.chown(path, 1234, 1234)
    assert "1 replaced" in program("restore", "disk", "--overwrite")
    assert path.read_bytes() == full
    assert path.stat().st_mode & 0o7777 == 0o640
    if os.geteuid() == 0:
        assert path.stat().st_uid == 1234


@pytest.mark.parametrize("broken", [b"", b"garbage " * 100])
def test_a_broken_live_file_is_moved_aside(healed: tuple[Program, Path, bytes], broken: bytes) -> None:
    program, path, full = healed
    path.write_bytes(broken)
    os.utime(path, (time.time() - 60,) * 2)
    would = program("restore", "disk", "-n")
    assert "the file there is no whisper file" in would
    assert "it would be moved aside" in would
    assert ".broken-" not in would
    assert "1 would be created" in would
    said = program("restore")
    assert "moved aside as cpu.wsp.broken-" in said
    assert "1 created" in said
    assert path.read_bytes() == full
    (aside,) = path.parent.glob("cpu.wsp.broken-*")
    assert aside.read_bytes() == broken


def test_a_file_that_carbon_is_creating_is_looked_at_again(healed: tuple[Program, Path, bytes]) -> None:
    program, path, _ = healed
    good = path.read_bytes()
    path.write_bytes(good[:10])
    threading.Timer(0.8, path.write_bytes, [good]).start()
    assert "1 healed" in program("restore")
    assert not list(path.parent.glob("*.broken-*"))


def test_a_compressed_file_is_restored_whole_but_never_healed(program: Program) -> None:
    path = program.prefix / "a.wsp"
    path.write_bytes(cwhisper.MAGIC + os.urandom(1000))
    old = path.read_bytes()
    program("backup")
    path.write_bytes(cwhisper.MAGIC + b"newer")
    assert "1 skipped" in program("restore", status=3)
    assert path.read_bytes() == cwhisper.MAGIC + b"newer"
    assert "1 replaced" in program("restore", "disk", "--overwrite")
    assert path.read_bytes() == old
    path.unlink()
    assert "1 created" in program("restore")
    assert path.read_bytes() == old


@pytest.mark.slow
def test_something_else_in_the_files_place_is_an_error(healed: tuple[Program, Path, bytes]) -> None:
    program, path, _ = healed
    path.unlink()
    for make in (path.mkdir, lambda: path.symlink_to("/etc/passwd"), lambda: os.mkfifo(path)):
        make()
        for options in ([], ["--overwrite"]):
            assert "not a regular file" in program("restore", "disk", *options, status=3)
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_what_root_restores_belongs_to_the_owner_of_the_folder(program: Program) -> None:
    program.write("servers.web1.cpu")
    program("backup")
    target = program.home / "target"
    target.mkdir()
    os.chown(target, 1234, 2345)
    program("restore", "disk", "-p", target)
    made = list(target.rglob("*"))
    assert len(made) == 3
    assert {(path.stat().st_uid, path.stat().st_gid) for path in made} == {(1234, 2345)}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
@pytest.mark.slow
def test_folders_made_by_many_workers_at_once_have_the_right_owner(program: Program) -> None:
    first = program.write("a.b.c.m0")
    for number in range(1, 300):
        path = program.prefix / f"a/b{number % 7}/c{number % 3}/d{number % 2}/m{number}.wsp"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(first, path)
    program("backup")
    for _ in range(3):
        target = program.home / "target"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        os.chown(target, 1234, 2345)
        assert "300 created" in program("restore", "disk", "-p", target, "--threads", "8")
        assert {(path.stat().st_uid, path.stat().st_gid) for path in target.rglob("*")} == {(1234, 2345)}


def test_a_good_file_that_takes_a_broken_ones_place_meanwhile_is_healed_not_moved(
    healed: tuple[Program, Path, bytes],
) -> None:
    """As carbon or whisper-resize do it, by renaming."""
    program, path, full = healed
    good = path.with_name("good")
    path.rename(good)
    path.write_bytes(b"")
    threading.Timer(0.7, good.rename, [path]).start()
    assert placer(program.prefix).place(b"servers/web1/cpu.wsp", full).how == "healed"
    assert 5000.0 in points(path).values()
    assert not list(path.parent.glob("*.broken-*"))


def test_a_file_replaced_while_it_is_healed_is_healed_in_its_new_place(
    healed: tuple[Program, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    program, path, full = healed
    heal, calls = restore_file.heal, []

    def resized(live: bytes, backup: bytes, now: int, *_: object):  # type: ignore[no-untyped-def]
        calls.append(now)
        if len(calls) == 1:
            shutil.copy(path, path.with_name("new"))
            path.with_name("new").rename(path)
        return heal(live, backup, now)

    monkeypatch.setattr(restore_file, "heal", resized)
    placed = placer(program.prefix).place(b"servers/web1/cpu.wsp", full)
    assert (placed.how, len(calls)) == ("healed", 2)
    assert len(points(path, 1)) >= 48


def test_a_file_that_carbon_empties_in_the_instant_of_its_creation_is_healed(
    healed: tuple[Program, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """whisper.create looks whether there is a file, then opens it for writing; our link may come in between."""
    program, path, full = healed
    fresh = path.read_bytes()
    path.unlink()
    link = os.link

    def link_then_create(*names: object, **settings: object) -> None:
        link(*names, **settings)  # type: ignore[arg-type]
        path.write_bytes(fresh)

    monkeypatch.setattr(os, "link", link_then_create)
    assert placer(program.prefix).place(b"servers/web1/cpu.wsp", full).how == "healed"
    assert 5000.0 in points(path).values()
    assert len(points(path, 1)) >= 48


@pytest.mark.parametrize("command", ["verify", "restore"])
@pytest.mark.soak
def test_memory_does_not_follow_the_number_of_threads(program: Program, command: str) -> None:
    """Eight empty files of 36 MB, stored in some kB each, at once in one process."""
    first = program.prefix / "m0.wsp"
    whisper.create(str(first), [(1, 3_000_000)])
    for number in range(1, 8):
        shutil.copy(first, program.prefix / f"m{number}.wsp")
    program("backup")
    target = program.home / "target"
    target.mkdir()
    words = program.words(command, "disk", "-p", target, "-f", "1", "--threads", "8")
    # by way of a small process: what a child of this big one has at its birth would count
    ran = subprocess.run([sys.executable, "-c", MEASURED, *words], capture_output=True, text=True, check=True)
    assert int(ran.stdout) < 180_000  # kB; 64 MiB in flight, or one file alone, beside the libraries


MEASURED = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def test_nothing_behind_a_link_is_tidied(program: Program) -> None:
    program.write("a.b")
    program("backup")
    target, outside = program.home / "target", program.home / "outside"
    target.mkdir()
    outside.mkdir()
    (outside / f".whisper-restore-{1:016x}").touch()
    (target / "a").symlink_to(outside)
    program("restore", "disk", "-p", target, status=3)
    assert list(outside.iterdir())


def test_a_broken_file_makes_room_for_a_compressed_one(program: Program) -> None:
    path = program.prefix / "a.wsp"
    path.write_bytes(cwhisper.MAGIC + b"x" * 100)
    program("backup")
    path.write_bytes(b"")
    os.utime(path, (1, 1))
    said = program("restore")
    assert "1 created" in said
    assert "WARNING: a: the file there was no whisper file" in said


def test_a_mark_of_any_size_is_refused_unread(program: Program) -> None:
    path = program.write("a.b")
    program("backup")
    older = contents(program.prefix)
    whisper.update(str(path), 2.0, int(time.time()))
    program("backup")
    newest = program.stamps("a.b")[-1]
    with (program.store / f"a.b/{newest}.sha1").open("wb") as mark:
        mark.truncate(1 << 40)
    target = program.home / "target"
    target.mkdir()
    assert "its mark has 1099511627776 bytes" in program("restore", "disk", "-p", target, status=3)
    assert contents(target) == older


def test_a_locked_file_is_waited_for_and_healed(healed: tuple[Program, Path, bytes]) -> None:
    program, path, _ = healed
    with path.open("r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        run = program.start("restore")
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(1.5)
    assert run.wait(60) == 0


def test_a_file_that_changes_unlocked_just_before_writing_is_worked_out_anew(
    healed: tuple[Program, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """carbon writes, without a lock, the very points that we were about to fill."""
    program, path, full = healed
    heal, calls = restore_file.heal, []

    def interfered(live: bytes, backup: bytes, now: int, *_: object):  # type: ignore[no-untyped-def]
        calls.append(now)
        healing = heal(live, backup, now)
        if len(calls) == 1:
            whisper.update(str(path), 777.0, now - 20)
        return healing

    monkeypatch.setattr(restore_file, "heal", interfered)
    placed = placer(program.prefix).place(b"servers/web1/cpu.wsp", full)
    assert placed.how == "healed"
    assert len(calls) == 2
    assert points(path)[calls[0] - 20] == 777.0


def test_temporary_files_of_a_killed_restore_are_removed_those_of_a_living_one_not(program: Program) -> None:
    path = program.write("a.b")
    program("backup")
    orphan, folder, living = (path.parent / f".whisper-restore-{number:016x}" for number in range(3))
    orphan.write_bytes(b"half")
    folder.mkdir()
    (path.parent / ".whisper-restore-x.wsp").write_bytes(b"somebody's")
    with living.open("wb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        program("restore")
        assert living.exists()
    assert not orphan.exists()
    assert not folder.exists()
    assert (path.parent / ".whisper-restore-x.wsp").exists()


@pytest.mark.slow
def test_a_file_being_created_is_not_taken_for_a_leftover(tmp_path: Path) -> None:
    stop = threading.Event()

    def tidy() -> None:
        folder = os.open(tmp_path, os.O_RDONLY)
        while not stop.is_set():
            restore_file.remove_leftovers(folder)
        os.close(folder)

    tidying = [threading.Thread(target=tidy) for _ in range(3)]
    for thread in tidying:
        thread.start()
    try:
        for number in range(300):
            assert placer(tmp_path).place(b"m%d.wsp" % number, b"x" * 100).how == "created"
    finally:
        stop.set()
        for thread in tidying:
            thread.join()
    assert len(list(tmp_path.iterdir())) == 300


# -- carbon ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locks", [True, False])
@pytest.mark.servers
@pytest.mark.soak
def test_no_point_that_carbon_writes_meanwhile_is_lost(program: Program, tmp_path: Path, locks: bool) -> None:
    metrics = [f"live.m{number}" for number in range(200)]
    carbon = Carbon(tmp_path / "carbon", locks, "1s:10m,10s:1h")
    sent: dict[int, float] = {}
    try:
        carbon.send(metrics, 1.0)
        wait_for(lambda: len(list(carbon.prefix.rglob("live/*.wsp"))) == len(metrics))
        for metric in metrics:  # a backup that holds a wrong value for every second of the last ten minutes
            path = program.prefix / (metric.replace(".", "/") + ".wsp")
            path.parent.mkdir(exist_ok=True)
            whisper.create(str(path), [(1, 600), (10, 360)], xFilesFactor=0.5)
            now = int(time.time())
            whisper.update_many(str(path), [(now - age, -1.0) for age in range(599)])
        program("backup")
        stop = threading.Event()

        def feed() -> None:
            while not stop.wait(1 - time.time() % 1):
                now = int(time.time())
                sent[now] = now % 1000 + 0.25
                carbon.send(metrics, sent[now], now)

        feeder = threading.Thread(target=feed)
        feeder.start()
        rounds, deadline = 0, time.monotonic() + LIVE_SECONDS
        while time.monotonic() < deadline:
            said = program("restore", "disk", "-p", carbon.prefix, "-f", "2")
            assert "200 examined" in said
            rounds += 1
        stop.set()
        feeder.join()
        time.sleep(1.5)
    finally:
        carbon.stop()
    assert rounds > 2
    assert len(sent) >= LIVE_SECONDS - 3
    for metric in metrics:
        held = points(carbon.prefix / (metric.replace(".", "/") + ".wsp"))
        lost = {when for when, value in sent.items() if held.get(when) != value}
        assert not lost, f"{metric} lost {sorted(lost)}"
        assert list(held.values()).count(-1.0) > 400  # and the gaps were filled
    assert not re.search(r"Traceback|Error|error", carbon.said())


# -- kill -9 -----------------------------------------------------------------------------------------


@pytest.mark.soak
def test_killed_at_any_moment_every_file_is_whole_and_running_again_completes(program: Program) -> None:
    """Steps of days, so that the clock does not move any window while the test runs."""
    steps = [(86400, 2000), (604800, 600), (2419200, 200)]
    now = int(time.time())
    for number in range(150):
        path = program.prefix / f"m{number}.wsp"
        whisper.create(str(path), steps, xFilesFactor=0.0)
        whisper.update_many(str(path), [(now - 86400 * age, float(age)) for age in range(3000)])
    program("backup")
    damaged = program.home / "damaged"
    shutil.copytree(program.prefix, damaged)
    chance = random.Random(7)
    held: dict[str, dict[int, float]] = {}
    for number in range(150):
        path = damaged / f"m{number}.wsp"
        if number % 3 == 0:
            path.unlink()  # to be created
            continue
        content = bytearray(path.read_bytes())
        for offset, _, count in format.parse_header(content).archives:
            for slot in range(1, count):
                if chance.random() < 0.3:
                    content[offset + 12 * slot : offset + 12 * slot + 12] = bytes(12)
        path.write_bytes(content)
        held[path.name] = points(path)
    whole = program.home / "whole"
    shutil.copytree(damaged, whole)
    program("restore", "disk", "-p", whole)
    target, interrupted = program.home / "target", 0
    for _ in range(KILLS):
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(damaged, target)
        run = program.start("restore", "disk", "-p", target, "-f", "2")
        done = 100 + chance.randrange(1, 45)  # of 150: by what it has done, since nobody knows how long it takes
        while run.poll() is None and sum(name.startswith("m") for name in os.listdir(target)) < done:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0, 0.005))
        interrupted += run.poll() is None
        run.kill()
        run.communicate()
        wait_for(lambda: not _writers(target))
        for path in target.glob("*.wsp"):
            format.check(path.read_bytes())
            assert held.get(path.name, {}).items() <= points(path).items()
        program("restore", "disk", "-p", target)
        assert sorted(os.listdir(target)) == sorted(os.listdir(whole))  # no temporary file is left
        for path in target.glob("*.wsp"):
            assert points(path) == points(whole / path.name)
            for archive in (1, 2):  # a coarser value may be another one than that of an uninterrupted run
                assert points(path, archive).keys() == points(whole / path.name, archive).keys()
    assert interrupted  # on a busy machine a run may end before it is looked at again, but not every time


def _writers(folder: Path) -> list[str]:
    """Processes that have a file below `folder` open."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if os.readlink(fd).startswith(str(folder)):
                found.append(str(fd))
        except OSError:
            continue
    return found
