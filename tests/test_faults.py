"""What goes wrong around a run: signals, lost workers, full disks, closed streams, a tree that moves meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import servers
import whisper
from conftest import MARKER, Program, add_point, children, contents, install_driver, unprivileged, wait_for
from servers import TroubleProxy

from whisperbackup.repository import state
from whisperbackup.tree.selection import select
from whisperbackup.whisper import format

PROCESSES = 2
pytestmark = pytest.mark.slow

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")


def said_by(run: subprocess.Popen[str], timeout: float = 20) -> str:
    """Everything that a started program has said, at its end."""
    out, err = run.communicate(timeout=timeout)
    assert "Traceback" not in err, err
    return out + err


def words_of(program: Program, command: str, redirections: str) -> list[str]:
    quoted = " ".join(f"'{word}'" for word in program.words(command))
    return ["bash", "-c", f"{quoted} {redirections}"]


# -- signals -----------------------------------------------------------------------------------------

HANGING = """
import multiprocessing, os, time
from whisperbackup.storage import disk
class Hanging(disk.Disk):
    def hang(self, call):
        if os.environ["HANGS_IN"] == call:
            os.mkdir(os.fsencode(os.environ["HANGS"]))
            time.sleep(1000)
    def list(self, prefix):
        self.hang("list")
        yield from super().list(prefix)
    def create_all(self, objects):
        self.hang("put")
        return super().create_all(objects)
def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    driver = Hanging(os.fsencode(bucket))
    driver.hang("open" if multiprocessing.parent_process() is None else "a worker's open")
    return driver
"""


@pytest.fixture
def hanging(program: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.Popen[str]]:
    """Starts a backup to a store that hangs in the named call, with streams closed; returns when it hangs."""
    install_driver(program, monkeypatch, HANGING)
    for number in range(3):
        program.write(f"m{number}")
    sign = program.home / "hangs"

    def start(call: str, closed: str = "") -> subprocess.Popen[str]:
        program.environment |= {"HANGS_IN": call, "HANGS": str(sign)}
        run = program.start_words(
            ["bash", "-c", f'exec "$@" {closed}', "bash", *program.words("backup", "shelf", "-f", "2")]
        )
        wait_for(sign.exists)
        return run

    return start


@pytest.mark.parametrize(
    ("call", "number"), [("open", signal.SIGTERM), ("list", signal.SIGINT), ("list", signal.SIGHUP)]
)
@pytest.mark.alone
def test_a_run_whose_store_hangs_stops_at_once_while_nothing_is_in_flight(
    program: Program, hanging: Callable[..., subprocess.Popen[str]], call: str, number: signal.Signals
) -> None:
    run = hanging(call)
    workers = list(children(run.pid))
    began = time.monotonic()
    run.send_signal(number)
    said = said_by(run)
    assert time.monotonic() - began < 3
    assert run.returncode == 128 + number, said
    assert f"stopped by {number.name}" in said
    assert not program.stamp.exists()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    assert "complete" in program("backup", "disk", "--locktimeout", "0")


@pytest.mark.parametrize("numbers", [(signal.SIGINT, signal.SIGINT), (signal.SIGTERM, signal.SIGINT)])
@pytest.mark.alone
def test_a_second_signal_ends_the_run_at_once(
    hanging: Callable[..., subprocess.Popen[str]], numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    run = hanging("put")
    workers = list(children(run.pid))
    for number in numbers:
        run.send_signal(number)
        time.sleep(0.5)
    assert run.wait(5) == 128 + numbers[1]  # one signal alone takes nine seconds
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    run.communicate()


@pytest.mark.parametrize("call", ["put", "a worker's open"])
def test_kill_9_of_the_parent_leaves_no_child_in_the_middle_of_a_request(
    program: Program, hanging: Callable[..., subprocess.Popen[str]], call: str
) -> None:
    run = hanging(call)
    workers = list(children(run.pid))
    assert workers
    run.kill()
    wait_for(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
    run.communicate()
    assert "complete" in program("backup", "disk", "--locktimeout", "0")


@pytest.mark.soak
@pytest.mark.servers
def test_a_run_whose_service_does_not_answer_can_be_stopped(tmp_path: Path) -> None:
    """While it lists, and at work; all services at once: what is in flight is given ten seconds."""
    prepared = []
    stores = {kind: servers.store(kind) for kind in ("s3-rclone", "swift-v1", "gcs")}
    for (kind, direct), phase in itertools.product(stores.items(), ("listing", "at work")):
        folder = tmp_path / f"{kind}-{phase.replace(' ', '')}"
        folder.mkdir()
        program = Program(folder)
        program.bucket = f"stopped-{os.getpid()}-{phase.replace(' ', '')}"
        first = program.write("m0")
        for number in range(1, 1000):
            shutil.copy(first, first.with_name(f"m{number}.wsp"))
        proxy = TroubleProxy(direct.port).__enter__()
        proxy.delay = 0.02
        proxy.silent = phase == "listing"
        store = direct.through(proxy.port)
        program.environment = {
            "AWS_EC2_METADATA_DISABLED": "true", "NO_GCE_CHECK": "true", "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull, **store.environment,
        }  # fmt: skip
        prepared.append((program, proxy, store))
    runs = [(program, proxy, program.start("backup", at.driver, *at.arguments)) for program, proxy, at in prepared]
    proxies = [proxy for _, proxy, _ in runs]

    def all_are_silent() -> bool:
        for proxy in proxies:
            proxy.silent |= proxy.requests["PUT"] + proxy.requests["POST"] > 20
        return all(proxy.silent and proxy.requests for proxy in proxies)

    wait_for(all_are_silent)
    workers = [worker for _, _, run in runs for worker in children(run.pid)]
    began = time.monotonic()
    for _, _, run in runs:
        run.terminate()
    for program, proxy, run in runs:
        said = said_by(run)
        assert time.monotonic() - began < 20
        assert run.returncode == 143, said
        assert "stopped by SIGTERM" in said
        assert not program.stamp.exists()
        proxy.__exit__()
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)


@pytest.mark.parametrize("option", ["", "--json"])
def test_a_long_list_into_head_is_silent(program: Program, option: str) -> None:
    for number in range(400):
        folder = program.store / f"{'long.' * 40}m{number}"  # all together more than a pipe holds
        folder.mkdir(parents=True)
        for end in ("sha1", "wsp.gz"):
            (folder / f"2026-01-01T00:00:00+00:00.{end}").touch()
    words = words_of(program, "list", f"{option} | head -1; echo ${{PIPESTATUS[0]}}")
    ran = subprocess.run(words, capture_output=True, text=True)
    assert len(ran.stdout.splitlines()) == 2
    assert ran.stdout.endswith("\n0\n")
    assert ran.stderr == ""


def test_a_stop_that_comes_while_python_ignores_exceptions_is_not_lost(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import os, signal
from whisperbackup.storage import disk
class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(100):
            pass
class Driver(disk.Disk):
    def list(self, prefix):
        Dying()
        return super().list(prefix)
def open(bucket, create, arguments):
    disk.open(bucket, create, arguments)
    return Driver(os.fsencode(bucket))
"""
    install_driver(program, monkeypatch, source)
    program.write("a.b")
    run = program.start("backup", "shelf")
    _, said = run.communicate(timeout=60)
    assert "Exception ignored" in said
    assert run.returncode == 143, said
    assert not program.stamp.exists()


# -- workers -----------------------------------------------------------------------------------------

MISBEHAVING = """
import os, signal, sys, time
from whisperbackup.runtime import pool
from whisperbackup.storage import disk

class Textless(Exception):
    def __str__(self):
        raise RuntimeError("no text")
class Local(Exception):
    def __reduce__(self):
        raise TypeError("cannot be pickled")
class Word(str):
    def __reduce__(self):
        raise TypeError("cannot be pickled")
class Wordy(Exception):
    def __str__(self):
        return Word("a word")

def misbehave(how):
    if how == "hang":
        time.sleep(1000)
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(1000)  # this thread may go on for a moment
    if how == "exit":
        sys.exit(0)
    if how == "interrupt":
        raise KeyboardInterrupt
    raise {"textless": Textless(), "unpicklable": Local(lambda: 0), "wordy": Wordy()}[how]

class Driver(disk.Disk):
    parent = os.getppid()
    def create_all(self, objects):
        if objects[0][0].startswith("m7/"):
            misbehave(os.environ["HOW"])
        return super().create_all(objects)
    def list(self, prefix):
        if os.environ["WHERE"] == "list":
            misbehave(os.environ["HOW"])
        return super().list(prefix)

def open(bucket, create, arguments):
    if os.environ["HOW"] in ("hang", "stop"):
        pool.HANG_LIMIT = 2.0  # an hour for everybody else
    disk.open(bucket, create, arguments)
    if os.environ["WHERE"] == "open":
        misbehave(os.environ["HOW"])
    return Driver(os.fsencode(bucket))
"""


@pytest.mark.parametrize(
    ("how", "status", "says"),
    [
        ("hang", 1, "has not answered for"),
        ("stop", 1, "has not answered for"),
        ("interrupt", 1, "ended with status"),
        ("exit", 3, "ERROR: m7: "),
        ("textless", 3, "ERROR: m7: "),
        ("unpicklable", 3, "ERROR: m7: "),
        ("wordy", 3, "ERROR: m7: "),
    ],
)
def test_a_worker_that_misbehaves_ends_the_run_or_fails_its_metric(
    program: Program, monkeypatch: pytest.MonkeyPatch, how: str, status: int, says: str
) -> None:
    install_driver(program, monkeypatch, MISBEHAVING)
    for number in range(20):
        program.write(f"m{number}")
    program.environment = {"WHERE": "put", "HOW": how}
    run = program.start("backup", "shelf", "-f", "2")
    said = said_by(run)
    assert run.returncode == status, said
    assert says in said
    assert "backup complete" not in said
    assert not program.stamp.exists()
    if status == 3:
        assert "19 backed up" in said


@pytest.mark.parametrize("how", ["exit", "textless", "unpicklable"])
@pytest.mark.parametrize("where", ["open", "list"])
def test_a_driver_that_misbehaves_in_the_parent_is_never_a_success(
    program: Program, monkeypatch: pytest.MonkeyPatch, where: str, how: str
) -> None:
    install_driver(program, monkeypatch, MISBEHAVING)
    program.write("a.b")
    program.environment = {"WHERE": where, "HOW": how}
    assert "ERROR: " in program("backup", "shelf", status=1)
    assert not program.stamp.exists()


# -- space and limits --------------------------------------------------------------------------------


def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mount: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], stderr=subprocess.DEVNULL)  # a test may have done that itself


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    yield from mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=1m", "none")


def fill(disk: Path) -> Path:
    """Leave no page free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def strays(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.is_file()]


def test_a_full_store_fails_what_is_new_and_keeps_what_is_there(program: Program, small_disk: Path) -> None:
    program.store = small_disk / "store"
    paths = [program.write(f"m{number}") for number in range(8)]
    program("backup")
    program.stamp.unlink()
    before = program.objects()
    filler = fill(small_disk)
    for path in paths:
        add_point(path)
    said = program("backup", status=3)
    assert said.count("No space left on device; make room on the disk of the store") == 8 + 1  # with the run record
    assert "9 failed" in said
    assert not program.stamp.exists()
    assert program.objects() == before
    assert "8 good" in program("verify")
    filler.unlink()
    assert "8 backed up" in program("backup")


def test_a_full_store_ends_a_long_run_early(program: Program, small_disk: Path) -> None:
    program.store = small_disk / "store"
    first = program.write("m0")
    for number in range(1, 200):
        shutil.copy(first, first.with_name(f"m{number}.wsp"))
    program.store.mkdir()
    (program.store / MARKER).touch()
    fill(small_disk)
    said = program("backup", status=1)
    assert 20 <= said.count("No space left") < 60
    assert "the store failed 20 times in a row" in said
    assert not list(program.store.rglob("*.sha1"))


def test_a_restore_onto_a_full_disk_leaves_files_whole_or_absent(program: Program, small_disk: Path) -> None:
    for number in range(8):
        program.write(f"a.m{number}", 1)
    program("backup")
    program.stamp.unlink()
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(1024 * 1024 - 5 * 4096))
    target = small_disk / "tree"
    target.mkdir()
    said = program("restore", "disk", "-p", target, status=3)
    assert "No space left on device" in said
    assert not program.stamp.exists()
    assert not strays(target)
    there = contents(target)
    assert len(there) < 8
    assert there.items() <= contents(program.prefix).items()
    (small_disk / "filler").unlink()
    program("restore", "disk", "-p", target)
    assert contents(target) == contents(program.prefix)


def test_healing_a_sparse_file_on_a_full_disk_leaves_it_valid_and_is_completed_later(
    program: Program, small_disk: Path
) -> None:
    path = program.prefix / "a.wsp"
    now = int(time.time())
    whisper.create(str(path), [(86400, 2000), (604800, 600)])
    whisper.update_many(str(path), [(now - 86400 * age, float(age)) for age in range(1500)])
    program("backup")
    program.stamp.unlink()
    live = small_disk / "a.wsp"
    whisper.create(str(live), [(86400, 2000), (604800, 600)], sparse=True)
    whisper.update(str(live), 7.0, now)
    filler = fill(small_disk)
    said = program("restore", "disk", "-p", small_disk, status=3)
    assert re.search("ERROR: a: .*No space left on device", said)
    assert not program.stamp.exists()
    format.check(live.read_bytes())
    assert whisper.fetch(str(live), now - 86400, now)[1][-1] == 7.0
    filler.unlink()
    assert "1 healed" in program("restore", "disk", "-p", small_disk)
    assert sum(value is not None for value in whisper.fetch(str(live), now - 86400 * 1400, now)[1]) > 1395


def test_a_full_disk_under_the_log_is_one_warning(program: Program, small_disk: Path) -> None:
    program.write("a.b")
    program.log = small_disk / "log"
    program.log.touch()
    fill(small_disk)
    said = program("backup", "disk", "-d")
    assert said.count("WARNING: cannot write or rotate the log file") == 1
    assert "No space left on device" in said
    program.log = Path("/dev/full")
    assert "WARNING: cannot write or rotate the log file" in program("backup")


def test_a_full_disk_under_what_purge_notes_ends_the_run_before_anything_is_deleted(
    program: Program, small_disk: Path, tmp_path: Path
) -> None:
    first = program.write("m0")
    for number in range(1, 300):
        shutil.copy(first, first.with_name(f"m{number}.wsp"))
    program("backup")
    program.stamp.unlink()
    before = program.objects()
    for number in range(1, 300):
        (program.prefix / f"m{number}.wsp").unlink()
    with (small_disk / "filler").open("wb") as file:
        file.write(bytes(1024 * 1024 - 4096))
    program.environment = {"TMPDIR": str(small_disk)}
    for command in ("purge", "backup"):
        said = program(command, "disk", "-x", "0", "--purge-anyway", status=1)
        assert "No space left on device" in said
        assert "TMPDIR" in said
        assert not program.stamp.exists()
        assert program.objects() == before


def test_a_full_disk_under_the_state_file_is_a_warning(
    program: Program, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = program.write("a.b")
    program.state = small_disk / "state"
    time.sleep(2.1)  # or nothing would be recorded
    program("backup")
    before = program.state.read_bytes()
    filler = fill(small_disk)
    add_point(path)
    program.stamp.unlink()
    said = program("backup")
    assert said.count(f"WARNING: cannot write the state file {program.state}: No space left on device") == 1
    assert program.stamp.exists()
    assert program.state.read_bytes() == before
    assert sorted(small_disk.iterdir()) == [filler, program.state]
    assert "1 unchanged" in program("backup")


def test_a_full_disk_under_what_the_state_file_is_made_of_is_a_warning(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(state, "LINES_IN_MEMORY", 1000)
    monkeypatch.setattr(tempfile, "tempdir", str(small_disk))
    fill(small_disk)
    made = state.State(str(tmp_path / "state"), ["store"], select(["*"]))
    for number in range(3000):
        made.note(state.Record(f"m{number:04}/", "1 2 3 4", os.urandom(20).hex(), "stamp", ""))
    made.write()
    assert caplog.text.count("cannot write the state file") == 1
    assert str(small_disk) in caplog.text
    assert not (tmp_path / "state").exists()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a folder a read-only file system."""
    done: list[Path] = []

    def make(folder: Path) -> None:
        for options in (["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
            tried = subprocess.run(["mount", *options], capture_output=True, text=True)
            if tried.returncode:
                pytest.skip(f"mount: {tried.stderr.strip()}")
            done[:] = [*{*done, folder}]

    yield make
    for folder in done:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_read_only_file_systems_are_named(program: Program, read_only: Callable[[Path], None]) -> None:
    program.write("a.b")
    frozen = program.home / "frozen"
    (frozen / "tree").mkdir(parents=True)
    program("backup")
    program.stamp.unlink()
    shutil.copytree(program.store, frozen / "store")
    shutil.copytree(program.prefix, frozen / "live")
    live = frozen / "live/a/b.wsp"
    live.unlink()
    whisper.create(str(live), [(60, 60)])
    read_only(frozen)
    before = live.read_bytes()
    program("backup", "disk", "-p", frozen / "live")  # the tree may well be
    program.stamp.unlink()
    assert "1 good" in program("verify", "disk", "-b", frozen / "store")
    assert "cannot write to" in program("backup", "disk", "-b", frozen / "store", status=1)
    for tree in ("tree", "live"):
        said = program("restore", "disk", "-p", frozen / tree, status=3)
        assert re.search(r"ERROR: a\.b: .*Read-only file system", said)
    assert live.read_bytes() == before
    for option in ("--lockfile", "--logfile"):
        assert "Read-only file system; name another" in program("backup", "disk", option, frozen / "x", status=1)
    said = program("backup", "disk", "--statefile", frozen / "x")
    assert "WARNING: cannot write the state file" in said
    program.stamp.unlink()
    said = program("backup", "disk", "--stampfile", frozen / "x", status=1)
    assert "cannot touch the stamp file" in said
    assert not program.stamp.exists()


def test_files_larger_than_the_limit_fail_and_leave_nothing(program: Program) -> None:
    program.write("small")
    big = program.prefix / "big.wsp"
    whisper.create(str(big), [(60, 10000)])
    content = big.read_bytes()
    big.write_bytes(content[:28] + os.urandom(len(content) - 28))

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    run = program.start("backup", preexec_fn=limit)
    said = said_by(run)
    assert run.returncode == 3
    assert "ERROR: big: 'big/" in said
    assert "File too large" in said
    assert {key.split("/")[0] for key in program.objects()} == {"small"}
    assert not program.stamp.exists()
    program("backup")
    target = program.home / "target"
    target.mkdir()
    run = program.start("restore", "disk", "-p", target, preexec_fn=limit)
    assert re.search("ERROR: big: .*File too large", said_by(run))
    assert run.returncode == 3
    assert set(contents(target)) == {"small.wsp"}


def test_too_few_file_descriptors_are_an_error_never_a_hang_or_a_purge(program: Program) -> None:
    for number in range(8):
        program.write(f"m{number % 2}.m{number}")
    program("backup")
    before = program.objects()
    statuses = set()
    for number in range(6, 30, 4):
        program.stamp.unlink(missing_ok=True)
        run = program.start(
            "backup", "disk", "-x", "0",
            preexec_fn=lambda limit=number: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        )  # fmt: skip
        _, said = run.communicate(timeout=60)
        assert run.returncode in (0, 1, 3), said
        assert (run.returncode == 0) == ("backup complete" in said) == program.stamp.exists(), said
        assert program.objects() == before
        statuses.add(run.returncode)
    assert statuses >= {0, 1}
    program.processes = 4
    run = program.start("backup", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16)))
    assert "cannot start worker 3 of 4: Too many open files; try a smaller -f" in said_by(run)


# -- closed and full streams -------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_closed_streams_break_nothing_and_no_file_of_ours_takes_their_place(program: Program, closed: str) -> None:
    for number in range(5):
        program.write(f"a.m{number}")
    for command in ("backup", "restore", "verify", "purge"):
        if command == "restore":
            (program.prefix / "a/m1.wsp").unlink()
        ran = subprocess.run(words_of(program, command, f"-d {closed}"), timeout=60)
        assert ran.returncode == 0
        assert program.stamp.exists()
    assert b"DEBUG" not in b"".join([*program.objects().values(), program.lock.read_bytes()])
    assert "5 good" in program("verify")
    assert len(program.lock.read_text().splitlines()) == 1
    format.check((program.prefix / "a/m1.wsp").read_bytes())


def test_no_file_of_ours_is_the_standard_error_of_a_run_that_has_none(
    program: Program, hanging: Callable[..., subprocess.Popen[str]]
) -> None:
    run = hanging("list", "<&- >&- 2>&-")
    for pid in (run.pid, *children(run.pid)):
        assert [os.readlink(f"/proc/{pid}/fd/{number}") for number in range(3)] == ["/dev/null"] * 3
    run.kill()
    run.communicate()


@pytest.mark.parametrize("redirection", [">/dev/full", ">&-"])
@pytest.mark.parametrize("option", ["", "--json"])
def test_a_list_that_cannot_be_written_is_an_error(program: Program, redirection: str, option: str) -> None:
    program.write("a.b")
    program("backup")
    ran = subprocess.run(words_of(program, "list", f"{option} {redirection}"), capture_output=True, text=True)
    assert ran.returncode == 1
    assert "standard output" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_a_full_stderr_fails_no_run(program: Program) -> None:
    program.write("a.b")
    assert subprocess.run(words_of(program, "backup", "--logfile /dev/full 2>/dev/full")).returncode == 0
    assert program.stamps("a.b")


# -- a tree that moves under the run -----------------------------------------------------------------


def test_files_that_change_between_walk_and_reading_fail_alone(program: Program) -> None:
    names = ["appended", "denied", "device", "fifo", "folder", "good", "link", "replaced", "short", "vanished"]
    paths = {name: program.write(name, 1) for name in [*names, "gone.with.its.folder"]}
    first = program.write("a")  # which the only worker will have to wait for
    other = program.home / "other.wsp"
    whisper.create(str(other), [(60, 10)])
    with first.open("r+b") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        words = [*unprivileged(), *program.words("backup", "disk", "-f", "1", "--threads", "1", "-x", "0")]
        run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        wait_for(lambda: [child for child in children(run.pid) if str(first) in opened_by(child)])
        with paths["appended"].open("ab") as file:
            file.write(b"more")
        paths["denied"].chmod(0)
        os.utime(paths["short"], (1, 1))
        os.truncate(paths["short"], 1000)
        os.utime(paths["short"], (1, 1))
        other.rename(paths["replaced"])
        shutil.rmtree(program.prefix / "gone")
        for name in ("device", "fifo", "folder", "link", "vanished"):
            paths[name].unlink()
        if os.geteuid() == 0:
            os.mknod(paths["device"], 0o600 | stat.S_IFCHR, os.makedev(1, 5))
        else:
            paths["device"].symlink_to("/dev/zero")
        os.mkfifo(paths["fifo"])
        paths["folder"].mkdir()
        paths["link"].symlink_to(paths["good"])
        program.write("appeared")
    said = said_by(run, 30)
    assert run.returncode == 3, said
    assert "3 backed up" in said  # a, good, replaced
    assert "2 vanished" in said
    assert "7 failed" in said
    for name, reason in {
        "appended": "not a whisper file", "denied": "Permission denied", "device": "not a regular file",
        "fifo": "not a regular file", "folder": "not a regular file", "link": "symbolic link", "short": "not a whisper",
    }.items():  # fmt: skip
        assert [line for line in said.splitlines() if line.startswith(f"ERROR: {name}: ") and reason in line], name
    assert not program.stamp.exists()
    assert not list(program.store.rglob("*.missing"))
    assert len(list(program.store.rglob("*.sha1"))) == 3


def opened_by(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").glob("*"):
        with contextlib.suppress(OSError):  # it is closed already
            found.append(os.readlink(fd))
    return found


def exchange(one: Path, other: Path) -> None:
    """Let the two change places in one instant."""
    done = ctypes.CDLL(None, use_errno=True).renameat2(-100, bytes(one), -100, bytes(other), 2)
    if done != 0:
        pytest.skip(f"renameat2: {os.strerror(ctypes.get_errno())}")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_replaced_by_a_link_during_a_restore_leads_nowhere(program: Program, is_there: bool) -> None:
    first = program.write("a.b.m0")
    for number in range(1, 150):
        shutil.copy(first, first.with_name(f"m{number}.wsp"))
    program("backup")
    target, outside = program.home / "target", program.home / "outside"
    (target / "a/b").mkdir(parents=True)
    (outside / "b").mkdir(parents=True)
    if is_there:
        whisper.create(str(outside / "b/m0.wsp"), [(60, 60)])
        for number in range(1, 150):
            shutil.copy(outside / "b/m0.wsp", outside / f"b/m{number}.wsp")
    before = contents(outside)
    links = [(target / "a", target / "to-a"), (target / "a/b", target / "to-b")]
    links[0][1].symlink_to(outside)
    links[1][1].symlink_to(outside / "b")
    refused = 0
    for _ in range(2):
        run = program.start("restore", "disk", "-p", target, "-f", "2")
        while run.poll() is None:
            for folder, link in links:
                exchange(folder, link)
                time.sleep(0.001)
                exchange(folder, link)
        said = said_by(run)
        assert run.returncode in (0, 3), said
        refused += said.count("symbolic link")
        assert contents(outside) == before
        for path in (target / "a/b").glob("m*.wsp"):
            path.unlink()
    assert refused
    for _, link in links:
        link.unlink()
    program("restore", "disk", "-p", target)
    assert contents(target) == contents(program.prefix)


def test_the_longest_names_and_a_hundred_levels_come_back(program: Program) -> None:
    paths = [
        b"n" * 251 + b".wsp",
        b"d" * 255 + b"/" + b"\xff" * 251 + b".wsp",
        "ü".encode() * 125 + b".wsp",
        b"level/" * 100 + b"x.wsp",
        b"l.%/" * 100 + b"x.wsp",
    ]
    source = program.write("top")
    for path in paths:
        full = os.path.join(os.fsencode(program.prefix), path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        shutil.copy(source, full)
    assert "6 backed up" in program("backup")
    assert "6 unchanged" in program("backup", "disk", "-x", "0")
    assert "6 good" in program("verify")
    target = program.home / "target"
    target.mkdir()
    assert "6 created" in program("restore", "disk", "-p", target)
    assert contents(target) == contents(program.prefix)
    assert "6 already whole" in program("restore", "disk", "-p", target)


# -- a sick disk -------------------------------------------------------------------------------------

SICK = """
import errno, os
from whisperbackup.storage import disk
def fail(*_, **__):
    number = getattr(errno, os.environ["SICKNESS"])
    raise OSError(number, os.strerror(number))
def open(bucket, create, arguments):
    driver = disk.open(bucket, create, arguments)
    setattr(os, os.environ["CALL"], fail)  # in the run's own processes, at the edge to the kernel
    return driver
"""


BAD_BLOCKS = """
import errno, os
from whisperbackup.storage import disk
real = os.open
def open_or_fail(path, *rest, **named):
    if os.fsdecode(path).endswith(tuple(os.environ["BAD"].split())):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return real(path, *rest, **named)
def open(bucket, create, arguments):
    os.open = open_or_fail
    return disk.open(bucket, create, arguments)
"""


@pytest.mark.parametrize("end", [".wsp.gz", ".sha1"])
def test_a_bad_block_of_the_store_costs_one_backup_and_no_run(
    program: Program, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    names = [f"a.m{number:02}" for number in range(25)]  # so many failures in a row end a run if the store is to blame
    for name in names:
        program.write(name)
    program("backup")
    older = contents(program.prefix)
    time.sleep(1.1)
    for name in names:
        add_point(program.prefix / (name.replace(".", "/") + ".wsp"))
    program("backup")
    bad = {program.stamps(name)[-1] for name in names}
    install_driver(program, monkeypatch, BAD_BLOCKS)
    monkeypatch.setenv("BAD", " ".join(stamp + end for stamp in bad))
    said = program("verify", "shelf", status=3)
    assert len(re.findall("is bad: its [a-z ]* cannot be read: ", said)) == 25
    assert "25 backed up" in program("backup", "shelf"), "what verify found is stored again"
    for name in names:
        for newer in program.store.glob(f"{name}/{program.stamps(name)[-1]}.*"):
            newer.unlink()
    shutil.rmtree(program.prefix / "a")
    said = program("restore", "shelf", status=3)
    assert "25 created" in said
    assert "25 needed an older backup" in said
    assert contents(program.prefix) == older


@pytest.mark.parametrize("bad", [".json", ".wbi"])
def test_bad_blocks_in_increments_and_records_end_no_run(
    program: Program, monkeypatch: pytest.MonkeyPatch, bad: str
) -> None:
    path = program.write("a.b")
    program("backup")
    time.sleep(1.1)
    add_point(path)
    program("increment")
    install_driver(program, monkeypatch, BAD_BLOCKS)
    monkeypatch.setenv("BAD", bad)
    path.unlink()
    said = program("restore", "shelf", status=3)
    assert "1 created" in said
    assert "cannot be read: '" in said
    program("verify", "shelf", status=3)
    program("list", "shelf", "--runs")
    add_point(path)
    assert "1 backed up" in program("backup", "shelf")


@pytest.mark.parametrize("sickness", ["EIO", "EDQUOT", "ENOSPC"])
@pytest.mark.parametrize("call", ["preadv", "fdatasync", "link", "fsync"])
def test_a_sick_disk_fails_the_metric_and_leaves_nothing_half_written(
    program: Program, monkeypatch: pytest.MonkeyPatch, call: str, sickness: str
) -> None:
    path = program.write("a.b")
    program("backup")
    program.stamp.unlink()
    before = program.objects()
    add_point(path)
    install_driver(program, monkeypatch, SICK)
    monkeypatch.setenv("SICKNESS", sickness)
    monkeypatch.setenv("CALL", call)
    said = program("backup", "shelf", "--nostate", status=3)
    assert re.search(f"ERROR: a.b: .*{os.strerror(getattr(errno, sickness))}", said)
    assert not program.stamp.exists()
    after = program.objects()
    assert before.items() <= after.items()
    if call != "fsync":  # which says only that what is there may not last
        assert after == before
    program("backup")
    assert "1 good" in program("verify")
