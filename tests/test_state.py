"""The state file: untouched files are not read, and no changed file is ever taken for untouched."""

from __future__ import annotations

import fcntl
import gzip
import json
import mmap
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import MARKER, Program, add_point, install_driver, wait_for
from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.repository import state
from whisperbackup.repository.catalog import Backup, Payload, mark_md5
from whisperbackup.repository.state import Record, State, fingerprint, is_settled
from whisperbackup.runtime import defaults
from whisperbackup.tree.selection import select

METRICS = ("a.one", "a.two", "b.one", "b.two")


def come_to_rest() -> None:
    """Wait until what was written is old enough to be recorded."""
    time.sleep(2.1)


def keep_young(path: Path) -> None:
    """Let a file be touched within two seconds of its reading, however long a busy machine takes to read it."""
    os.utime(path, (time.time() + 600,) * 2)


@pytest.fixture
def rested(program: Program) -> Program:
    """A tree of four metrics in the store and in the state file."""
    for metric in METRICS:
        program.write(metric)
    come_to_rest()
    assert "4 backed up" in program("backup")
    return program


def path_of(program: Program, metric: str) -> Path:
    return program.prefix / (metric.replace(".", "/") + ".wsp")


def assert_all_is_stored(program: Program) -> None:
    """The newest backup of every metric is what its file holds."""
    for path in program.prefix.rglob("*.wsp"):
        metric = ".".join(path.relative_to(program.prefix).with_suffix("").parts)
        newest = program.store / metric / f"{program.stamps(metric)[-1]}.wsp.gz"
        assert gzip.decompress(newest.read_bytes()) == path.read_bytes(), metric


def lines(program: Program) -> list[str]:
    """The names in the state file."""
    return [line.split("/")[0] for line in gzip.decompress(program.state.read_bytes()).decode().splitlines()[1:]]


def test_an_untouched_file_is_not_even_opened(rested: Program) -> None:
    held = [path.open("rb") for path in rested.prefix.rglob("*.wsp")]
    for file in held:
        fcntl.flock(file, fcntl.LOCK_EX)  # reading would wait for it, and fail
    said = rested("backup")
    assert "4 examined, 4 unchanged, 0 backed up, 0 bytes read" in said
    for file in held:
        file.close()


def test_nostate_reads_every_file_and_leaves_the_state_alone(rested: Program) -> None:
    before = rested.state.read_bytes()
    assert "0 bytes read" not in rested("backup", "--nostate", "disk")
    assert rested.state.read_bytes() == before


def test_a_file_touched_within_two_seconds_is_not_recorded(program: Program) -> None:
    keep_young(program.write("a"))
    program("backup")
    assert lines(program) == []
    assert "0 bytes read" not in program("backup")


def rewrite(path: Path) -> None:
    """Other content of the same size, the old times."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap_files(path: Path) -> None:
    other = path.with_name("two.wsp")
    rewrite(other)
    os.rename(path, path.with_name("x"))
    os.rename(other, path)
    os.rename(path.with_name("x"), other)


def swap_folders(path: Path) -> None:
    a, b = path.parent, path.parent.with_name("b")
    os.rename(a, a.with_name("x"))
    os.rename(b, a)
    os.rename(a.with_name("x"), b)


def copy_with_times(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    rewrite(copy)
    os.rename(copy, path)


def link_elsewhere(path: Path) -> None:
    path.unlink()
    os.link(path.parent.with_name("b") / "one.wsp", path)


def write_through_a_mapping(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[-1] ^= 1
        mapped.flush()


def set_into_the_future(path: Path) -> None:
    rewrite(path)
    os.utime(path, (time.time() + 86400,) * 2)


CHANGES: list[Callable[[Path], None]] = [
    add_point,
    rewrite,
    swap_files,
    swap_folders,
    copy_with_times,
    link_elsewhere,
    write_through_a_mapping,
    set_into_the_future,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.slow
def test_no_changed_file_is_taken_for_unchanged(rested: Program, change: Callable[[Path], None]) -> None:
    change(path_of(rested, "a.one"))
    rested("backup")
    assert_all_is_stored(rested)
    time.sleep(1.1)  # a file with a time ahead of the clock is not known the next time either
    rewrite(path_of(rested, "a.one"))
    rested("backup")
    assert_all_is_stored(rested)


def test_a_file_that_is_touched_but_equal_is_read_and_known_again(rested: Program) -> None:
    os.utime(path_of(rested, "a.one"))
    come_to_rest()
    assert "4 unchanged, 0 backed up, 0 bytes read" not in rested("backup")
    assert "4 unchanged, 0 backed up, 0 bytes read" in rested("backup")


def test_a_backup_that_went_from_the_store_is_made_again(rested: Program) -> None:
    shutil.rmtree(rested.store / "a.one")
    (mark,) = (rested.store / "a.two").glob("*.sha1")
    mark.unlink()
    assert "2 unchanged, 2 backed up" in rested("backup")
    assert_all_is_stored(rested)


def test_an_older_backup_that_became_the_newest_is_not_taken_for_it(rested: Program) -> None:
    add_point(path_of(rested, "a.one"))
    come_to_rest()
    rested("backup")
    newest = rested.stamps("a.one")[-1]
    for path in (rested.store / "a.one").glob(newest + "*"):
        path.unlink()
    assert "1 backed up" in rested("backup")
    assert_all_is_stored(rested)


def test_another_store_is_not_believed_to_hold_what_this_one_does(rested: Program) -> None:
    rested.store = rested.home / "another"
    assert "4 backed up" in rested("backup", "disk", "--new-store")
    assert "is of another prefix or store" in (rested.home / "log").read_text()
    assert_all_is_stored(rested)


def test_another_prefix_is_not_believed_to_hold_the_same_files(rested: Program) -> None:
    os.rename(rested.prefix, rested.home / "moved")
    rested.prefix = rested.home / "moved"
    assert "0 bytes read" not in rested("backup")


@pytest.mark.parametrize("spoil", ["garbage", "cut", "empty", "flip", "plain", "header without end"])
@pytest.mark.slow
def test_a_corrupt_state_file_costs_time_only(rested: Program, spoil: str) -> None:
    whole = rested.state.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0x55
    spoiled = {
        "garbage": os.urandom(300),
        "cut": whole[: len(whole) * 2 // 3],
        "empty": b"",
        "flip": bytes(flipped),
        "header without end": b"\x1f\x8b\x08\x08" + bytes(6) + b"x" * 1_000_000,
        "plain": gzip.compress(gzip.decompress(whole)[:60] + b"a.one/\tx\n\xff\xfe\n"),
    }
    rested.state.write_bytes(spoiled[spoil])
    rewrite(path_of(rested, "a.one"))
    assert "3 unchanged, 1 backed up" in rested("backup")
    assert_all_is_stored(rested)
    assert set(lines(rested)) >= set(METRICS) - {"a.one"}


def test_a_run_over_a_part_keeps_what_is_known_of_the_rest(rested: Program) -> None:
    rewrite(path_of(rested, "b.one"))
    keep_young(path_of(rested, "b.one"))
    rested("backup", "-m", "a.*", "disk")
    assert lines(rested) == list(METRICS)
    path_of(rested, "a.two").unlink()
    rested("backup", "-x", "-1", "disk")
    assert lines(rested) == ["a.one", "b.two"]  # b.one is young, a.two gone
    assert_all_is_stored(rested)


def test_noop_leaves_the_state_file_alone(rested: Program) -> None:
    before = rested.state.stat()
    rewrite(path_of(rested, "a.one"))
    rested("backup", "--noop", "disk")
    after = rested.state.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_retention_is_applied_to_untouched_files_too(rested: Program) -> None:
    for _ in range(2):
        time.sleep(1)
        rewrite(path_of(rested, "a.one"))
        rested("backup", "-r", "5", "disk")
    come_to_rest()
    rested("backup")
    assert len(rested.stamps("a.one")) == 3
    assert "0 bytes read" in rested("backup", "-r", "1", "disk")
    assert len(rested.stamps("a.one")) == 1


def test_a_metric_that_came_back_untouched_loses_its_tombstone(rested: Program) -> None:
    os.rename(rested.prefix / "a", rested.home / "away")
    rested("backup")
    os.rename(rested.home / "away", rested.prefix / "a")
    assert "2 came back" in rested("backup")
    assert not list(rested.store.rglob("*.missing"))


def test_a_planted_link_is_not_followed_but_replaced(rested: Program) -> None:
    victim = rested.home / "victim"
    rested.state.rename(victim)
    rested.state.symlink_to(victim)
    before = victim.read_bytes()
    assert "0 bytes read" not in rested("backup")
    assert victim.read_bytes() == before
    assert not rested.state.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_state_file_is_not_believed(rested: Program) -> None:
    os.chown(rested.state, 12345, -1)
    assert "0 bytes read" not in rested("backup")
    assert rested.state.stat().st_uid == 0


def test_a_state_file_that_cannot_be_written_is_a_warning(rested: Program) -> None:
    rested.state.unlink()
    rested.state.mkdir()
    said = rested("backup")
    assert f"WARNING: cannot write the state file {rested.state}" in said
    assert "backup complete" in said
    assert [path.name for path in rested.home.iterdir() if "state" in path.name] == ["state"]


def test_what_a_killed_run_left_is_swept_after_a_day(rested: Program) -> None:
    old, young = rested.home / ".state.old", rested.home / ".state.young"
    for path in (old, young):
        path.touch()
    os.utime(old, (time.time() - 90000,) * 2)
    rested("backup")
    assert not old.exists()
    assert young.exists()


def test_the_default_place_needs_no_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, machine: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for store in ("x", "y"):
        State("", ("prefix", store), select(["*"])).write()
    assert len(list((tmp_path / "cache/whisper-backup").glob("*.state"))) == 2
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert defaults.state_folder() == f"{machine}/var/cache/whisper-backup"
    monkeypatch.delenv(defaults.TEST_ROOT)
    assert defaults.state_folder() == "/var/cache/whisper-backup"


def test_the_file_in_the_default_place_is_read_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    first = State("", ("prefix", "x"), select(["*"]))
    first.note(Record("a/", "1 2 3 4", "0" * 40, "stamp", ""))
    first.write()
    again = State("", ("prefix", "x"), select(["*"]))
    assert again.recall("a/") == Record("a/", "1 2 3 4", "0" * 40, "stamp", "")


SHELF = '''
import io, os
from whisperbackup.storage import disk
from whisperbackup.storage.base import StoredObject

class Shelf(disk.Disk):
    """Lists MD5s that are none, as an SSE-KMS bucket does; notes what it is asked for."""

    def list(self, prefix):
        for listed in super().list(prefix):
            yield StoredObject(listed.key, listed.size, f"{abs(hash(listed.key)) % 16**32:032x}")

    def get(self, key):
        with io.open(os.environ["GETS"], "a") as file:
            file.write(key + "\\n")
        return super().get(key)

def open(bucket, create, arguments):
    os.makedirs(bucket, exist_ok=True)
    return Shelf(os.fsencode(bucket))
'''


def test_where_listings_prove_nothing_each_mark_is_asked_for_once(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_driver(program, monkeypatch, SHELF)
    gets = program.home / "gets"
    monkeypatch.setenv("GETS", str(gets))
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    for metric in METRICS:
        program.write(metric)
    come_to_rest()
    program("backup", "shelf")
    assert not gets.exists()
    for _ in range(2):
        assert "4 unchanged, 0 backed up, 0 bytes read" in program("backup", "shelf")
        assert gets.read_text().count(".sha1\n") == 4


# -- a run that does not come to its end -------------------------------------------------------------

SLOW = """
import os, time
import whisperbackup.repository.state
from whisperbackup.storage import disk

whisperbackup.repository.state.SAVE_INTERVAL = float(os.environ["SAVE_INTERVAL"])

class Slow(disk.Disk):
    def create_all(self, objects):
        time.sleep(0.05)
        if any("m" + os.environ["BREAKS_AT"] + "/" in key for key, _ in objects):
            os.kill(os.getpid(), 9)
        return super().create_all(objects)

def open(bucket, create, arguments):
    if create:
        os.makedirs(bucket, exist_ok=True)
    return Slow(os.fsencode(bucket))
"""
FILES = 60


@pytest.fixture
def slow(program: Program, monkeypatch: pytest.MonkeyPatch) -> Program:
    """Sixty files at rest, and a store that takes its time."""
    install_driver(program, monkeypatch, SLOW)
    monkeypatch.setenv("SAVE_INTERVAL", "600")
    monkeypatch.setenv("BREAKS_AT", "none")
    for number in range(FILES):
        program.write(f"m{number:02}")
    program.store.mkdir()
    (program.store / MARKER).touch()
    come_to_rest()
    return program


def read_again(program: Program) -> int:
    """How many files the next run reads."""
    said = program("backup", "shelf", "--json", "-q")
    return int(json.loads(said.splitlines()[-1])["read_bytes"] // path_of(program, "m00").stat().st_size)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_a_stopped_run_did_is_not_read_again(slow: Program, number: int) -> None:
    run = slow.start("backup", "shelf", "-f", "1", "--threads", "2")
    wait_for(lambda: len(list(slow.store.rglob("*.sha1"))) > 10)
    run.send_signal(number)
    run.communicate(timeout=60)
    assert run.returncode == 128 + number
    done = sorted(path.parent.name for path in slow.store.rglob("*.sha1"))
    assert 10 < len(done) < FILES
    assert lines(slow) == done
    assert read_again(slow) == FILES - len(done)
    assert_all_is_stored(slow)


def test_what_a_run_that_ended_early_did_is_not_read_again(slow: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BREAKS_AT", "30")
    slow("backup", "shelf", "-f", "1", "--threads", "2", status=1)
    noted = lines(slow)
    assert noted
    assert set(noted) <= {path.parent.name for path in slow.store.rglob("*.sha1")}
    monkeypatch.setenv("BREAKS_AT", "none")
    assert read_again(slow) == FILES - len(noted)
    assert_all_is_stored(slow)


def test_what_a_killed_run_had_done_by_its_last_saving_is_not_read_again(
    slow: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAVE_INTERVAL", "0")
    run = slow.start("backup", "shelf", "-f", "1", "--threads", "2")
    wait_for(lambda: slow.state.exists() and len(lines(slow)) >= 10)
    run.kill()
    run.communicate()
    noted = lines(slow)
    assert 10 <= len(noted) < FILES
    monkeypatch.setenv("SAVE_INTERVAL", "600")
    assert read_again(slow) == FILES - len(noted)
    assert_all_is_stored(slow)


def test_a_dry_run_that_is_stopped_notes_nothing(slow: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAVE_INTERVAL", "0")
    slow("backup", "shelf", "-n")
    assert not slow.state.exists()


# -- without a run -----------------------------------------------------------------------------------


def test_a_time_that_a_write_might_leave_again_is_not_settled(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    status = (tmp_path / "a").stat()
    assert not is_settled(status, status.st_mtime_ns + 1_999_999_999)
    assert is_settled(status, status.st_ctime_ns + 2_000_000_000)
    assert not is_settled(status, status.st_ctime_ns - 10**12), "the clock was set back"
    os.utime(tmp_path / "a", (0, time.time() + 100))
    assert not is_settled((tmp_path / "a").stat(), time.time_ns() + 10**10)


def test_a_fingerprint_holds_what_a_change_moves(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    first = (tmp_path / "a").stat()
    assert fingerprint(first) == f"{first.st_ino} 1 {first.st_mtime_ns} {first.st_ctime_ns}"


def test_a_record_speaks_of_the_backup_it_was_noted_of() -> None:
    sha1, stamp = "a" * 40, "2026-11-23T00:00:00+00:00"
    payloads = (Payload("gz", 1),)
    noted = Record("a/", "1", sha1, stamp, "")
    assert noted.is_of(Backup("2026-11-24T00:00:00+00:00", payloads, mark_md5(sha1))), "the listing proves it"
    assert noted.is_of(Backup(stamp, payloads, None))
    assert not noted.is_of(Backup(stamp, payloads, "f" * 32)), "listed as it was not when noted"
    assert not noted.is_of(Backup("2026-11-24T00:00:00+00:00", payloads, None))
    assert noted.seen_in(Backup(stamp, payloads, "f" * 32)).is_of(Backup(stamp, payloads, "f" * 32))


names = st.text(st.sampled_from("ab.-%é"), min_size=1, max_size=5)


@given(known=st.sets(names), found=st.sets(names), noted=st.sets(names), globs=st.sampled_from(["*", "a*", "*.b"]))
def test_what_is_noted_or_was_not_looked_for_is_in_the_new_file(
    tmp_path_factory: pytest.TempPathFactory, known: set[str], found: set[str], noted: set[str], globs: str
) -> None:
    path = str(tmp_path_factory.mktemp("state") / "state")
    selection = select([globs])
    found = {name for name in found if name in selection}
    before, state.LINES_IN_MEMORY = state.LINES_IN_MEMORY, 2
    try:
        first = State(path, (), selection)
        for name in known:
            first.note(Record(name + "/", "old", "", "", ""))
        first.write()
        second = State(path, (), selection)
        recalled = {name: second.recall(name + "/") for name in sorted(found, key=lambda name: name + "/")}
        for name in noted & found:
            second.note(Record(name + "/", "new", "", "", ""))
        second.write()
    finally:
        state.LINES_IN_MEMORY = before
    assert {name for name, record in recalled.items() if record} == known & found
    with gzip.open(path, "rt") as file:
        written = dict(line.rstrip("\n").split("\t")[:2] for line in list(file)[1:])
    kept = {name + "/": "old" for name in known if name not in selection}
    assert written == kept | {name + "/": "new" for name in noted & found}
    assert list(written) == sorted(written)


@given(known=st.sets(names), noted=st.lists(names, max_size=8), cut=st.integers(0, 40))
def test_what_is_saved_in_the_middle_is_what_was_noted_and_of_the_rest_what_was_known(
    tmp_path_factory: pytest.TempPathFactory, known: set[str], noted: list[str], cut: int
) -> None:
    path = tmp_path_factory.mktemp("state") / "state"
    first = State(str(path), (), select(["*"]))
    for name in known:
        first.note(Record(name + "/", "old", "", "", ""))
    first.write()
    second = State(str(path), (), select(["*"]))
    expected = {name + "/": "old" for name in known}
    for name in sorted(set(noted), key=lambda name: name + "/"):
        second.recall(name + "/")
        second.note(Record(name + "/", "new", "", "", ""))
        second.save()  # again and again
        expected[name + "/"] = "new"
        with gzip.open(path, "rt") as file:
            written = [line.rstrip("\n").split("\t")[:2] for line in list(file)[1:]]
        assert dict(map(tuple, written)) == expected
        assert [key for key, _ in written] == sorted(expected)
    second.write()
    with gzip.open(path, "rt") as file:
        assert {line.split("\t")[0] for line in list(file)[1:]} == {name + "/" for name in noted}
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - cut)])  # whatever is left of it, saving goes on
    third = State(str(path), (), select(["*"]))
    third.note(Record("a/", "third", "", "", ""))
    third.save()
    assert (recalled := State(str(path), (), select(["*"])).recall("a/"))
    assert recalled.fingerprint == "third"
