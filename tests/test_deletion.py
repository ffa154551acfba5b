"""What is deleted in which order, and what is counted when a deletion is cut short."""

from __future__ import annotations

import re
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Program, children, install_driver, wait_for

from whisperbackup.repository.deleter import KEYS_AT_ONCE, Deleter, PendingDelete

pytestmark = pytest.mark.slow

METRICS = 800  # gone from the tree; each has a mark, a payload and a tombstone, so that 1,000 keys end amid a metric
STAMP, GONE_SINCE = "2026-01-01T00:00:00+00:00", "2026-01-02T00:00:00+00:00"

DRIVER = """
import io, os, threading, time
from whisperbackup.runtime import pool
from whisperbackup.storage import disk
from whisperbackup.storage.base import StorageError

class Driver(disk.Disk):
    threads = 16  # so that each job is given out alone
    def delete(self, keys):
        keys = sorted(keys, reverse=True)  # no service promises an order: here payloads precede marks
        with io.open(os.environ["CALLS"], "a") as file:
            file.write(f"{threading.get_ident()} {' '.join(keys)}\\n")
        half = len(keys) // 2
        super().delete(keys[:half])
        if os.environ["HOW"]:
            try:
                os.mkdir(os.environ["CALLS"] + ".first")
            except FileExistsError:
                pass
            else:
                if os.environ["HOW"] == "fail":
                    raise StorageError("the first deletion fails halfway")
                time.sleep(1000)
        super().delete(keys[half:])
        with io.open(os.environ["CALLS"] + ".ended", "a") as file:
            file.write("one\\n")

def open(bucket, create, arguments):
    pool.GRACE = 1.0
    return Driver(os.fsencode(bucket))
"""


@pytest.fixture
def calls(program: Program, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose driver notes every deletion in the file that this returns, and of which most is due."""
    install_driver(program, monkeypatch, DRIVER)
    program.write("a.b")
    for number in range(METRICS):
        folder = program.store / f"m{number}"
        folder.mkdir(parents=True)
        for end in (f"{STAMP}.sha1", f"{STAMP}.wsp.gz", f"{GONE_SINCE}.missing"):
            (folder / end).touch()
    program.environment |= {"CALLS": str(program.home / "calls"), "HOW": ""}
    return program.home / "calls"


PURGE = ("shelf", "-x", "1", "--purge-anyway", "-f", "1")


def left(program: Program) -> dict[str, set[str]]:
    """The metrics of the store that are due, with what is left of them."""
    ends: dict[str, set[str]] = defaultdict(set)
    for path in program.store.rglob("*"):
        if path.is_file():
            ends[path.parent.name].add(path.name)
    return ends


def check_tombstones(program: Program) -> None:
    for name, ends in left(program).items():
        assert f"{GONE_SINCE}.missing" in ends, f"{name} lost its tombstone before {ends}"


def test_a_tombstone_is_deleted_when_the_backups_of_its_metric_are_gone(program: Program, calls: Path) -> None:
    assert f"{METRICS} purged" in program("purge", *PURGE)
    assert not left(program)
    found: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
    requests = calls.read_text().splitlines()
    for request, line in enumerate(requests):
        worker, *keys = line.split()
        assert len(keys) <= KEYS_AT_ONCE
        for key in keys:
            metric, _, end = key.partition("/")
            found[metric].append((request, worker, end))
    for name, deletions in found.items():
        *others, (last, worker, end) = sorted(deletions)
        assert end.endswith(".missing"), name
        assert all(request < last and by == worker for request, by, _ in others), name
    assert len(requests) == 2 * 3


def test_what_a_failed_deletion_left_is_neither_counted_nor_without_its_tombstone(
    program: Program, calls: Path
) -> None:
    program.environment["HOW"] = "fail"
    said = program("purge", *PURGE, status=3)
    (purged,) = re.findall(r"(\d+) purged", said)
    assert int(purged) == METRICS - len(left(program)) > 0
    check_tombstones(program)
    program.environment["HOW"] = ""
    assert f"{len(left(program))} purged" in program("purge", *PURGE)
    assert not left(program)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_purge_that_ends_halfway_leaves_no_backup_without_its_tombstone(
    program: Program, calls: Path, number: signal.Signals
) -> None:
    program.environment["HOW"] = "hang"
    run = program.start("purge", *PURGE)
    ended = Path(f"{calls}.ended")
    wait_for(lambda: ended.exists() and len(ended.read_text().splitlines()) == 2)  # the job beside it
    workers = list(children(run.pid))
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    check_tombstones(program)
    remains = len(left(program))
    assert 0 < remains < METRICS
    if number == signal.SIGTERM:
        (purged,) = re.findall(r"stopped by SIGTERM: .*?(\d+) purged", said)
        assert int(purged) == METRICS - remains, said
    program.environment["HOW"] = ""
    assert f"{remains} purged" in program("purge", *PURGE)
    assert not left(program)


def jobs(sizes: list[int], at_end: bool) -> Iterator[list[int]]:
    deleter = Deleter()
    for size in sizes:
        deleter.add(PendingDelete("x", ("key",) * size))
    for job in deleter.flush() if at_end else deleter.full_jobs():
        yield [len(one.keys) for one in job.pending]


@pytest.mark.parametrize(
    ("sizes", "full", "all_of_it"),
    [
        ([], [], []),
        ([0, 0], [], []),
        ([600, 399], [], [[600, 399]]),
        ([600, 400], [[600, 400]], [[600, 400]]),
        ([600, 500, 3], [[600]], [[600], [500, 3]]),
        ([2500, 1], [[2500]], [[2500], [1]]),  # a metric with more keys than a request takes: the driver divides them
    ],
)
def test_no_job_divides_what_is_counted_as_one(
    sizes: list[int], full: list[list[int]], all_of_it: list[list[int]]
) -> None:
    assert list(jobs(sizes, at_end=False)) == full
    assert list(jobs(sizes, at_end=True)) == all_of_it
