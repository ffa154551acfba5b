"""What verify found damaged is stored anew by the next backup, also where the file did not change."""

from __future__ import annotations

import gzip
import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import servers
from conftest import Program
from test_storage import open_store
from test_stores import connect

from whisperbackup.commands.known_store import known_bad_of
from whisperbackup.options import parse
from whisperbackup.repository.known_bad import KnownBad
from whisperbackup.runtime import defaults

pytestmark = pytest.mark.slow

METRICS = ("a", "b", "c")


@pytest.fixture
def stored(program: Program) -> Program:
    """Three metrics at rest, in the store and in the state file."""
    for metric in METRICS:
        program.write(metric)
    time.sleep(2.1)
    assert "3 backed up" in program("backup")
    assert "0 bytes read" in program("backup")
    return program


def payload(program: Program, metric: str) -> Path:
    (path,) = (program.store / metric).glob(f"{program.stamps(metric)[-1]}.wsp.gz")
    return path


def notes(program: Program) -> Path:
    return program.state.with_name("state.bad")


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, 10)


def swap(path: Path) -> None:
    """Another whisper file, whole."""
    path.write_bytes(gzip.compress(bytes(1000)))


@pytest.mark.parametrize("damage", [flip, cut, swap], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("state", ["there", "lost"])
def test_a_newest_backup_that_verify_calls_bad_is_made_anew(
    stored: Program, damage: Callable[[Path], None], state: str
) -> None:
    damage(payload(stored, "a"))
    assert "a: the backup of" in stored("verify", "disk", status=3)
    if state == "lost":
        stored.state.unlink()
    assert "2 unchanged, 1 backed up" in stored("backup", "disk", "-r", "1")
    assert "3 good" in stored("verify", "disk")
    assert not notes(stored).exists()
    assert "3 unchanged, 0 backed up, 0 bytes read" in stored("backup", "disk", "-r", "1")
    target = stored.home / "target"
    target.mkdir()
    assert "3 created" in stored("restore", "disk", "-p", target)


def test_it_is_noted_in_the_default_place_whatever_the_prefix(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(defaults, "state_folder", lambda: str(tmp_path / "cache"))

    def known(prefix: str, bucket: str) -> KnownBad:
        return known_bad_of(parse(["-p", prefix, "-b", bucket, "verify", "s3"]))

    known("/x", "one").add([("a", "2026")])
    assert known("/y", "one").stamps == {"a": "2026"}
    assert known("/x", "two").stamps == {}


def test_a_bad_mark_that_verify_tree_finds_is_made_anew(stored: Program) -> None:
    (mark,) = (stored.store / "b").glob("*.sha1")
    mark.write_bytes(b"x" * 40)
    assert "0 bytes read" in stored("backup")  # a directory's listing does not tell
    assert "b: the backup of" in stored("--tree", "verify", "disk", status=3)
    assert "2 unchanged, 1 backed up" in stored("backup")
    assert "3 same" in stored("--tree", "verify", "disk")


def test_what_only_this_machine_cannot_check_is_not_noted(stored: Program) -> None:
    assert "more than --max-file-size" in stored("verify", "disk", "--max-file-size", "100", status=3)
    assert not notes(stored).exists()


@pytest.mark.parametrize("command", ["verify", "restore"])
def test_a_backup_above_the_limit_is_not_called_bad(program: Program, command: str) -> None:
    os.utime(program.write("a"), (1_700_000_000,) * 2)
    program("backup")
    (payload,) = program.store.glob("a/*.gz")
    limit = payload.stat().st_size + 1
    said = program(command, "disk", "--max-file-size", limit, status=3)
    assert re.search(
        rf"ERROR: a: the backup of \S+ cannot be read: its gz payload may be good, but its header declares \d+ bytes, "
        rf"more than --max-file-size \({limit}\)",
        said,
    )
    assert "is bad" not in said
    assert "damaged" not in said


def test_a_dry_run_notes_nothing_and_makes_nothing(stored: Program) -> None:
    flip(payload(stored, "a"))
    stored("verify", "disk", "-n", status=3)
    assert not notes(stored).exists()
    stored("verify", "disk", "--nostate", status=3)
    assert not notes(stored).exists()
    stored("verify", "disk", status=3)
    before = stored.objects()
    assert "1 backed up" in stored("backup", "disk", "-n")
    assert stored.objects() == before
    assert notes(stored).exists()


def test_notes_stay_until_they_are_done_with(stored: Program) -> None:
    for metric in METRICS:
        flip(payload(stored, metric))
    stored("verify", "disk", status=3)
    stored("verify", "disk", status=3)
    assert len(notes(stored).read_text().splitlines()) == 3
    (stored.prefix / "c.wsp").unlink()
    assert "1 backed up" in stored("backup", "disk", "-m", "a")
    assert sorted(line[0] for line in notes(stored).read_text().splitlines()) == ["b", "c"]
    assert "1 unchanged, 1 backed up" in stored("backup", "disk")
    assert notes(stored).read_text()[0] == "c"  # it may come back
    assert "1 purged" in stored("backup", "disk", "-x", "0")
    stored("backup")
    assert not notes(stored).exists()


@pytest.mark.parametrize("text", [b"\xff\xfe\n", b"a\n\n\t\n", b"a\t9999\n" * 1000, b""])
def test_rubbish_in_the_notes_costs_nothing(stored: Program, text: bytes) -> None:
    notes(stored).write_bytes(text)
    assert "3 unchanged, 0 backed up" in stored("backup")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_users_notes_and_links_are_not_believed(stored: Program) -> None:
    flip(payload(stored, "a"))
    stored("verify", "disk", status=3)
    os.chown(notes(stored), 12345, -1)
    assert "3 unchanged, 0 backed up" in stored("backup")
    victim = stored.home / "victim"
    shutil.copy(notes(stored), victim)
    notes(stored).unlink()
    notes(stored).symlink_to(victim)
    before = victim.read_bytes()
    assert "WARNING: cannot write the list of damaged backups" in stored("verify", "disk", status=3)
    assert victim.read_bytes() == before


@pytest.mark.servers
def test_where_the_listing_proves_the_mark_a_bad_payload_is_made_anew_all_the_same(program: Program) -> None:
    store = servers.store("s3-rclone")
    run = connect(program, store)
    program.write("a")
    time.sleep(2.1)
    run("backup")
    driver = open_store(store, program.bucket)
    (key,) = [listed.key for listed in driver.list("") if listed.key.endswith(".gz")]
    driver.put(key, b"rubbish")
    driver.close()
    run("verify", status=3)
    assert "1 backed up" in run("backup")
    assert "1 good" in run("verify")
    assert "1 unchanged, 0 backed up, 0 bytes read" in run("backup")


def test_a_name_with_another_end_of_line_is_one_name(program: Program) -> None:
    for metric in ("a", "x\u2028a", "x\u0085a"):
        program.write(metric)
    program("backup")
    for metric in ("x\u2028a", "x\u0085a"):
        (payload,) = (program.store / metric).glob("*.gz")
        payload.write_bytes(b"rubbish")
    program("verify", "disk", status=3)
    assert "2 backed up" in program("backup")
    assert len(program.stamps("a")) == 1
    program("verify", "disk")


def test_a_list_that_does_not_fit_on_the_disk_leaves_nothing_beside_it(tmp_path: Path) -> None:
    """RLIMIT_FSIZE ends a write as a full disk does."""
    path = tmp_path / "state.bad"
    path.write_text("a\t2026-11-24T02:12:00+00:00\n")
    before = path.read_bytes()
    still_bad = {f"metric{number}": "2026-11-25T02:12:00+00:00" for number in range(1000)}
    if (child := os.fork()) == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            KnownBad(str(path)).keep(still_bad)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.listdir(tmp_path) == ["state.bad"]
    assert path.read_bytes() == before


def test_no_list_is_written_beside_a_device(stored: Program) -> None:
    """The folder of a state file like /dev/null is no place for it."""
    flip(payload(stored, "b"))
    device = stored.home / "null"
    device.symlink_to(os.devnull)
    assert "2 good" in stored("verify", "disk", "--statefile", device, status=3)
    assert not device.with_name("null.bad").exists()


@pytest.mark.parametrize("end", ["gz", "sha1"])
def test_a_newest_backup_with_an_empty_object_is_made_anew(program: Program, end: str) -> None:
    os.utime(program.write("a"), (1_700_000_000,) * 2)
    program("backup")
    (emptied,) = program.store.glob(f"a/*.{end}")
    os.truncate(emptied, 0)
    assert "1 backed up" in program("backup")
    assert "1 unchanged" in program("backup")
    assert "1 good" in program("verify")
