"""Runs beside one another, stopped, and killed: the lock, the workers, the signals."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import whisper
from conftest import Program, children, contents, wait_for

from whisperbackup.repository.outcome import Outcome, failed
from whisperbackup.runtime.budget import Budget
from whisperbackup.runtime.pool import Pool, WorkerLost

PROCESSES = 2
pytestmark = pytest.mark.slow


@pytest.fixture
def big(program: Program) -> Program:
    """A tree whose backup takes a few seconds."""
    first = program.prefix / "m0.wsp"
    whisper.create(str(first), [(1, 86400 * 2)])
    noise = os.urandom(first.stat().st_size)
    with first.open("r+b") as file:
        file.seek(28)
        file.write(noise[28:])
    for number in range(1, 150):
        (program.prefix / f"m{number}.wsp").write_bytes(first.read_bytes())
    return program


def begun(program: Program) -> bool:
    return any(program.store.rglob("*.sha1"))


def test_a_second_run_waits_says_who_holds_the_lock_and_gives_up(big: Program) -> None:
    first = big.start("backup", "disk", "--bwlimit", "30")
    wait_for(lambda: begun(big))
    began = time.monotonic()
    said = big("backup", "disk", "--locktimeout", "1", status=1)
    assert 0.9 < time.monotonic() - began < 60
    assert re.search(rf"process {first.pid} since \d{{4}}-\d\d-\d\dT", said), said
    first.kill()
    first.communicate()


def test_a_planted_pipe_in_the_locks_place_does_not_hang_a_waiting_run(program: Program) -> None:
    program.write("a.b")
    os.mkfifo(program.lock)
    holder = os.open(program.lock, os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    assert "lock" in program("backup", "disk", "--locktimeout", "1", status=1)
    os.close(holder)


def test_a_killed_run_frees_the_lock_and_leaves_nobody(big: Program) -> None:
    first = big.start("backup", "disk")
    wait_for(lambda: begun(big))
    workers = list(children(first.pid))
    assert len(workers) == big.processes
    first.kill()
    began = time.monotonic()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    first.communicate()
    second = big.start("backup", "disk", "--locktimeout", "1")
    _, said = second.communicate()
    assert second.returncode == 0, said
    assert "150 examined" in said
    assert not re.search(r", 0 unchanged", said)  # what was complete when the first one died is not done again
    assert time.monotonic() - began < 60
    assert len(list(big.store.rglob("*.sha1"))) == 150


@pytest.mark.parametrize(("files", "options"), [(150, []), (8, ["-f", "1", "--bwlimit", "8"])])
def test_a_killed_worker_ends_the_run_with_an_error(big: Program, files: int, options: list[str]) -> None:
    """Also when all jobs were sent, so that nothing more is written to the dead worker's pipe."""
    for path in sorted(big.prefix.iterdir())[files:]:
        path.unlink()
    run = big.start("backup", "disk", *options)
    wait_for(lambda: begun(big))
    os.kill(next(children(run.pid)), signal.SIGKILL)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "was killed by signal 9" in said
    assert "backup ended early" in said
    assert not big.stamp.exists()


def test_workers_ignore_stop_signals_that_the_run_does_not_get(big: Program) -> None:
    """What a terminal or a service manager sends to every process is the run's to decide about."""
    run = big.start("backup", "disk", "-f", "2")
    wait_for(lambda: begun(big))
    workers = list(children(run.pid))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        for worker in workers:
            os.kill(worker, number)
        time.sleep(0.05)  # or the kernel joins two of them
    _, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert "150 backed up" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_far_it_came(big: Program, number: signal.Signals) -> None:
    run = big.start("backup", "disk", "-f", "2")
    wait_for(lambda: begun(big))
    workers = list(children(run.pid))
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 128 + number, said
    counted = re.search(
        rf"backup stopped by {number.name}: (\d+) examined, 0 unchanged, (\d+) backed up.* 0 failed", said
    )
    assert counted, said
    assert int(counted[2]) == len(list(big.store.rglob("*.sha1")))
    assert not big.stamp.exists()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert "complete" in big("backup")


def test_a_stopped_run_purges_nothing(big: Program) -> None:
    gone = big.write("a.gone")
    big("backup", "disk", "-m", "a.*")
    gone.unlink()
    before = big.objects()
    run = big.start("backup", "disk", "--bwlimit", "30", "-x", "0")
    wait_for(lambda: len(list(big.store.rglob("m*/*.sha1"))) > 2)
    run.terminate()
    assert run.wait(60) == 143
    assert before.items() <= big.objects().items()


def test_a_stop_while_waiting_for_the_lock_or_in_splay_is_heard(program: Program) -> None:
    program.write("a.b")
    with program.lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        for options, sign in ((["disk"], "whisper-backup "), (["disk", "--splay", "1000000"], "starting in ")):
            program.log.unlink(missing_ok=True)
            run = program.start("backup", *options)
            wait_for(lambda sign=sign: program.log.exists() and sign in program.log.read_text())  # it hears signals now
            time.sleep(0.2)  # until it waits; if it does not yet, it is heard all the same
            run.terminate()
            _, said = run.communicate(timeout=60)
            assert run.returncode == 143, said
            assert "stopped by SIGTERM" in said


def test_ctrl_c_in_a_terminals_process_group_is_one_stop(big: Program) -> None:
    run = big.start("backup", "disk", start_new_session=True)
    wait_for(lambda: begun(big))
    os.killpg(run.pid, signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "was killed" not in said


@pytest.mark.parametrize(
    ("before", "number"),
    [(["nohup"], signal.SIGHUP), (["sh", "-c", 'trap "" INT; exec "$@"', "sh"], signal.SIGINT)],
    ids=["nohup", "in the background of a script"],
)
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    big: Program, before: list[str], number: signal.Signals
) -> None:
    with big.lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        run = big.start_words([*before, *big.words("backup", "disk", "-f", "2")], start_new_session=True)
        wait_for(big.log.exists)
        os.killpg(run.pid, number)
        time.sleep(0.3)
        assert run.poll() is None  # waits for the lock
    wait_for(lambda: begun(big))
    os.killpg(run.pid, number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert "150 backed up" in said


@pytest.mark.soak
def test_concurrent_restores_without_a_lock_make_one_whole_tree(big: Program) -> None:
    for number in range(50, 150):
        (big.prefix / f"m{number}.wsp").unlink()
    big("backup")
    target = big.home / "target"
    target.mkdir()
    runs = [big.start("restore", "disk", "-p", target, "--nolock") for _ in range(2)]
    for run in runs:
        assert run.wait(60) == 0
    assert contents(target) == contents(big.prefix)


# -- the pool on its own ---------------------------------------------------------------------------


class Echo(NamedTuple):
    name: str
    wish: str = ""
    examines: bool = False

    def run(self, context: dict[str, int]) -> Outcome:
        if self.wish == "raise":
            raise ValueError("no such luck")
        if self.wish == "unpicklable":

            class Local(Exception):
                pass

            raise Local(lambda: None)
        if self.wish == "exit":
            os._exit(7)
        return Outcome(self.name, context)


def prepare_echo() -> dict[str, int]:
    return {"done": 1}


@pytest.mark.parametrize("threads", [1, 8])
def test_every_job_has_one_outcome_and_failures_come_back(threads: int) -> None:
    jobs = [Echo(f"m{number}", {3: "raise", 500: "unpicklable"}.get(number, "")) for number in range(1000)]
    with Pool(3, threads, prepare_echo, failed) as pool:
        outcomes = {done.result.name: done.result for done in pool.run(jobs)}
        again = list(pool.run([Echo("x")]))
    assert len(outcomes) == 1000
    assert {name for name, outcome in outcomes.items() if outcome.errors} == {"m3", "m500"}
    assert outcomes["m3"].errors == ("no such luck",)
    assert len(again) == 1


def test_a_worker_that_exits_is_a_lost_worker_not_a_hang() -> None:
    with Pool(2, 1, prepare_echo, failed) as pool, pytest.raises(WorkerLost, match="status 7"):
        list(pool.run([Echo("a"), Echo("b", "exit")]))


def test_a_worker_that_cannot_prepare_fails_its_jobs() -> None:
    def prepare():  # type: ignore[no-untyped-def]
        raise RuntimeError("no driver today")

    with Pool(1, 1, prepare, failed) as pool:
        assert [done.result.errors for done in pool.run([Echo("a")])] == [("no driver today",)]


def test_the_budget_lets_one_big_file_through_alone() -> None:
    budget = Budget(100)
    with budget.take(500):
        import threading

        entered = threading.Event()

        def other() -> None:
            with budget.take(1):
                entered.set()

        thread = threading.Thread(target=other)
        thread.start()
        assert not entered.wait(0.2)
    assert entered.wait(60)
    thread.join()


def test_no_process_is_left_after_a_run(program: Program) -> None:
    program.write("a.b")
    run = program.start("backup", stderr=subprocess.DEVNULL)
    run.wait(60)
    assert not list(children(run.pid))


@pytest.mark.parametrize(
    "stamp", ["9999-99-99T99:99:99+00:00", "2026-02-31T00:00:00+00:00", "9999-12-31T23:59:59+00:00"]
)
@pytest.mark.parametrize("place", [".runs/{}.json", ".increments/{}/manifest.json"])
def test_a_record_with_an_impossible_stamp_stops_no_run(program: Program, place: str, stamp: str) -> None:
    path = program.write("a.one")
    program("backup", "disk")
    planted = program.store / place.format(stamp)
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text("{}")
    path.unlink()
    program.write("a.one", 1)
    assert "1 backed up" in program("backup", "disk")
    assert "1 recorded" in program("increment", "disk")
    for command in ("prune", "purge", "restore", "verify", "list"):
        program(command, "disk")
    assert stamp in program("list", "disk", "--debris")
    assert planted.exists()
