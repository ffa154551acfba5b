"""A run is stopped while something waits for ever: a worker in the kernel, or a write that nobody reads."""

from __future__ import annotations

import fcntl
import os
import re
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Program, children, install_driver, wait_for

pytestmark = pytest.mark.slow

STALLED = """
import multiprocessing, os, signal, time
from whisperbackup.runtime import signals
from whisperbackup.runtime import pool
from whisperbackup.storage import disk

class Driver(disk.Disk):
    threads = 1
    def create_all(self, objects):
        if os.environ["HOW"] == "unkillable" and objects[0][0].startswith("m1/"):
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().create_all(objects)

def open(bucket, create, arguments):
    how = os.environ["HOW"]
    signals.HARD_LIMIT = float(os.environ["LIMIT"])
    pool.GRACE = 0.5
    in_worker = multiprocessing.parent_process() is not None
    if how == "unkillable" and not in_worker:
        # No test can make a process that SIGKILL does not end; to a run, one that it never reaches looks the same.
        kill = os.kill
        os.kill = lambda pid, number: None if number == signal.SIGKILL else kill(pid, number)
    if how == "stopped" and in_worker:
        os.kill(os.getpid(), signal.SIGSTOP)
    os.makedirs(bucket, exist_ok=True)
    return Driver(os.fsencode(bucket))
"""


def gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids)


def stopped_workers(run: subprocess.Popen[str]) -> list[int]:
    stats = [Path(f"/proc/{pid}/stat") for pid in children(run.pid)]
    return [int(stat.parent.name) for stat in stats if stat.exists() and ") T " in stat.read_text()]


@pytest.mark.alone
def test_a_worker_that_not_even_sigkill_ends_is_named_and_the_run_ends_without_it(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(program, monkeypatch, STALLED)
    program.environment |= {"HOW": "unkillable", "LIMIT": "60"}
    for metric in range(40):
        program.write(f"m{metric}")
    run = program.start("backup", "shelf", "-f", "2")
    wait_for(lambda: stopped_workers(run))
    (stuck,) = stopped_workers(run)
    workers = list(children(run.pid))
    assert str(program.lock) not in [os.readlink(fd) for fd in Path(f"/proc/{stuck}/fd").iterdir()]
    began = time.monotonic()
    run.terminate()
    _, said = run.communicate(timeout=60)
    assert time.monotonic() - began < 8
    assert run.returncode == 143, said
    (named,) = re.findall(rf"ERROR: worker {stuck} was killed but does not exit.* working on (.*)", said)
    assert "m1," in named
    assert "Traceback" not in said
    wait_for(gone(workers))
    assert "complete" in program("backup", "disk", "--locktimeout", "0")


# -- writes that nobody reads ------------------------------------------------------------------------


def unread(fd: int) -> int:
    """Bytes that wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, bytes(4)))[0])


def is_full(fd: int) -> bool:
    """Whether a pipe that nobody reads takes no more: on a busy machine a run may need long to fill it."""
    before = unread(fd)
    time.sleep(1)
    return 40_000 < before == unread(fd)


def blocked_by_json(program: Program) -> Iterator[subprocess.Popen[str]]:
    """Failures by the hundred, printed for somebody who has stopped reading."""
    for number in range(400):
        folder = program.store / f"{'long.' * 40}m{number}"
        folder.mkdir(parents=True)
        (folder / "2026-01-01T00:00:00+00:00.sha1").touch()
    run = program.start("verify", "shelf", "--json", stderr=subprocess.DEVNULL)
    wait_for(lambda: is_full(run.stdout.fileno()))
    yield run


def blocked_by_debug(program: Program) -> Iterator[subprocess.Popen[str]]:
    """All that --debug tells, to a stderr that nobody reads."""
    for number in range(400):
        program.write(f"{'long.' * 40}m{number}")
    run = program.start("backup", "shelf", "-d", "--nolog")
    wait_for(lambda: is_full(run.stderr.fileno()))
    yield run


def blocked_by_worker(program: Program) -> Iterator[subprocess.Popen[str]]:
    """A thousand keys for a worker that was stopped before it read any."""
    program.environment["HOW"] = "stopped"
    program.write("a.b")
    for number in range(600):
        folder = program.store / f"{'long.' * 40}m{number}"
        folder.mkdir(parents=True)
        for end in ("sha1", "wsp.gz"):
            (folder / f"2026-01-01T00:00:00+00:00.{end}").touch()
    run = program.start("purge", "shelf", "-x", "0", "--purge-anyway", "-f", "1", stderr=subprocess.DEVNULL)
    wait_for(lambda: stopped_workers(run))
    yield run


BLOCKED = {"json": blocked_by_json, "debug": blocked_by_debug, "a worker": blocked_by_worker}


@pytest.mark.parametrize("is_repeated", [False, True], ids=["once", "twice"])
@pytest.mark.parametrize("by", list(BLOCKED))
def test_a_stop_is_heard_while_nobody_reads_what_the_run_writes(
    program: Program, monkeypatch: pytest.MonkeyPatch, by: str, is_repeated: bool
) -> None:
    """Ended by the limit after one signal, at once by a second."""
    install_driver(program, monkeypatch, STALLED)
    program.environment |= {"HOW": "", "LIMIT": "60" if is_repeated else "1.5"}
    (run,) = BLOCKED[by](program)
    time.sleep(0.5)  # until the parent waits for the stopped worker
    workers = list(children(run.pid))
    run.terminate()
    if is_repeated:
        time.sleep(0.5)
        assert run.poll() is None
        run.terminate()
    assert run.wait(30) == 143  # after half the limit for two signals
    wait_for(gone(workers))
    run.communicate()
    with program.lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
