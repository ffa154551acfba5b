"""verify: every payload of every backup that is meant, a share a night, and the tree against its newest backups."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest
import whisper
import zstandard
from conftest import Program, add_point, unprivileged
from hypothesis import given
from hypothesis import strategies as st

from whisperbackup.commands.verify_tree import NEW, is_new
from whisperbackup.tree.birth import birth_time
from whisperbackup.tree.selection import is_in_share

METRICS = ("a.one", "a.two", "b.one", "b.two")


@pytest.fixture
def stored(program: Program) -> Program:
    """Four metrics, backed up twice, changed in between."""
    return stored_twice(program)


def stored_twice(program: Program, pause: float = 0) -> Program:
    paths = [program.write(metric) for metric in METRICS]
    program("backup")
    time.sleep(pause)
    for path in paths:
        add_point(path)
    program("backup")
    return program


def spoil(path: Path) -> None:
    """Flip a bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def payload(program: Program, metric: str, number: int = -1) -> Path:
    return program.store / metric / f"{program.stamps(metric)[number]}.wsp.gz"


def mark(program: Program, metric: str, number: int = -1) -> Path:
    return program.store / metric / f"{program.stamps(metric)[number]}.sha1"


def today() -> int:
    return datetime.now(UTC).toordinal()


# -- payloads -------------------------------------------------------------------------------------


def test_the_newest_backups_are_checked_and_no_others(stored: Program) -> None:
    spoil(payload(stored, "a.one", 0))
    assert "4 examined, 4 good" in stored("verify")
    spoil(payload(stored, "a.two"))
    said = stored("verify", status=3)
    assert f"ERROR: a.two: the backup of {stored.stamps('a.two')[-1]} is bad" in said
    assert "4 examined, 3 good" in said


def test_what_restore_would_fill_gaps_from_is_checked_too(program: Program) -> None:
    """An older backup that dwarfs all newer ones holds the history from before carbon made its file anew."""
    path = program.write("a.b")
    content = path.read_bytes()
    path.write_bytes(content[:28] + os.urandom(len(content) - 28))
    program("backup")
    path.unlink()
    for value in (1.0, 2.0):
        if not path.exists():
            whisper.create(str(path), [(60, 60)])
        add_point(path, value)
        program("backup")
    history, smaller, _ = program.stamps("a.b")
    assert "2 examined, 2 good" in program("verify")
    assert "1 examined, 1 good" in program("verify", "disk", "-c", history)
    spoil(payload(program, "a.b", 1))
    assert "2 examined, 2 good" in program("verify"), f"restore has no use for {smaller}"
    spoil(payload(program, "a.b", 0))
    said = program("verify", status=3)
    assert f"ERROR: a.b: the backup of {history} is bad" in said
    assert "2 examined, 1 good" in said


def test_with_a_date_those_of_that_time_are_checked(stored: Program) -> None:
    older, _ = stored.stamps("a.one")
    spoil(payload(stored, "a.one"))
    assert "1 examined, 1 good" in stored("verify", "disk", "-m", "a.one", "-c", older)
    spoil(payload(stored, "a.one", 0))
    assert f"the backup of {older} is bad" in stored("verify", "disk", "-m", "a.one", "-c", older, status=3)


def test_all_counts_every_backup_and_names_each_bad_one_by_its_stamp(program: Program) -> None:
    stored = stored_twice(program, 1)
    assert "8 examined, 8 good" in stored("verify", "disk", "--all")
    spoil(payload(stored, "a.one", 0))
    spoil(payload(stored, "b.two", 0))
    spoil(payload(stored, "b.two", 1))
    said = stored("verify", "disk", "--all", status=3)
    assert "8 examined, 5 good" in said
    assert ", 3 failed" in said
    bad = re.findall(r"ERROR: (\S+): the backup of (\S+) is bad", said)
    assert sorted(bad) == [("a.one", stored.stamps("a.one")[0]), *(("b.two", s) for s in stored.stamps("b.two"))]
    older = max(stored.stamps(metric)[0] for metric in METRICS)
    assert "4 examined, 2 good" in stored("verify", "disk", "--all", "-c", older, status=3)


@pytest.mark.parametrize("bad", ["gz", "zst"])
def test_a_good_payload_does_not_excuse_a_bad_one_beside_it(stored: Program, bad: str) -> None:
    gz = payload(stored, "a.one")
    zst = gz.with_suffix(".zst")
    zst.write_bytes(zstandard.compress((stored.prefix / "a/one.wsp").read_bytes()))
    assert "4 good" in stored("verify")
    spoil({"gz": gz, "zst": zst}[bad])
    said = stored("verify", status=3)
    assert f"its {bad} payload is damaged" in said
    assert "3 good" in said


def test_a_bad_mark_is_one_fault_of_a_backup_with_two_payloads(stored: Program) -> None:
    gz = payload(stored, "a.one")
    gz.with_suffix(".zst").write_bytes(b"")
    mark(stored, "a.one").write_text("no digest")
    said = stored("verify", status=3)
    assert said.count("instead of a SHA-1") == 1


# -- a share a night --------------------------------------------------------------------------------


@given(st.text(min_size=1), st.integers(1, 40), st.integers(700_000, 800_000))
def test_as_many_days_in_a_row_as_there_are_shares_take_each_metric_exactly_once(
    name: str, shares: int, day: int
) -> None:
    name = name.encode("utf-8", "replace").decode()
    assert sum(is_in_share(name, shares, day + number) for number in range(shares)) == 1


def test_shares_are_about_even() -> None:
    names = [
        f"servers.web{host:03}.disk.sd{disk}.{figure}" for host in range(500) for disk in "abcd" for figure in "rw"
    ]
    sizes = Counter(next(day for day in range(20) if is_in_share(name, 20, day)) for name in names)
    assert len(sizes) == 20
    assert min(sizes.values()) > 140  # of 200 on average
    assert max(sizes.values()) < 260


def test_a_sample_is_todays_share_of_the_metrics(program: Program) -> None:
    names = [f"m{number}" for number in range(30)]
    for name in names:
        program.write(name)
    program("backup")
    before = today()
    said = program("verify", "disk", "-d", "--sample", "1/3")
    expected = {sum(is_in_share(name, 3, day) for name in names) for day in (before, today())}
    found = re.search(r"(\d+) examined, (\d+) good, .*, (\d+) left to other days", said)
    assert found, said
    assert found[1] == found[2]
    assert int(found[1]) in expected
    assert int(found[1]) + int(found[3]) == 30


def test_a_night_on_which_no_metric_is_due_is_no_failure(program: Program) -> None:
    name = next(name for name in map(str, range(100)) if not any(is_in_share(name, 1000, today() + n) for n in (0, 1)))
    program.write(name)
    program("backup")
    assert "0 examined, 0 good, 0 bytes read, 1 left to other days, 0 failed" in program(
        "verify", "disk", "--sample", "1/1000"
    )
    assert "0 examined" in program("verify", "disk", "--tree", "--sample", "1/1000")
    assert "no metric" in program("verify", "disk", "--sample", "1/1000", "-m", "no.such.*", status=1)


# -- the tree ------------------------------------------------------------------------------------


def age(path: Path, seconds: float = NEW + 60) -> None:
    """Let a file look as if it had been written last that long ago."""
    os.utime(path, (time.time() - seconds,) * 2)


def test_a_tree_is_compared_without_reading_a_payload(stored: Program) -> None:
    for path in stored.store.rglob("*.wsp.gz"):
        path.write_bytes(b"not read")
    assert "4 examined, 4 same, 0 differ, 0 not backed up, 0 new, 0 gone" in stored("verify", "disk", "--tree")


def test_files_that_changed_and_metrics_that_went_are_counted_and_no_failure(stored: Program) -> None:
    add_point(stored.prefix / "a/one.wsp", 2.0)
    (stored.prefix / "b/two.wsp").unlink()
    said = stored("verify", "disk", "--tree")
    assert "3 examined, 2 same, 1 differ, 0 not backed up, 0 new, 1 gone" in said
    assert "a.one" not in said
    said = stored("verify", "disk", "--tree", "-d")
    assert f"a.one: differs, its newest backup is of {stored.stamps('a.one')[-1]}" in said
    assert f"b.two: gone, its newest backup is of {stored.stamps('b.two')[-1]}" in said


def test_a_file_without_a_backup_is_a_failure_once_it_is_a_day_old(stored: Program) -> None:
    path = stored.write("c")
    assert "4 same, 0 differ, 0 not backed up, 1 new" in stored("verify", "disk", "--tree")
    age(path)
    said = stored("verify", "disk", "--tree", status=3)
    assert "ERROR: c: is in the tree, but has no backup; run backup" in said
    assert "4 same, 0 differ, 1 not backed up, 0 new" in said


def test_half_a_backup_is_none(stored: Program) -> None:
    for number in (1, 0):
        mark(stored, "a.one", number).unlink()
        said = stored("verify", "disk", "--tree", status=0 if number else 3)
    assert "ERROR: a.one: has no complete backup" in said


@pytest.mark.parametrize("content", ["no digest", "a" * 4000])
def test_a_bad_mark_is_a_failure_and_not_taken_for_a_change(stored: Program, content: str) -> None:
    mark(stored, "a.one").write_text(content)
    said = stored("verify", "disk", "--tree", status=3)
    assert f"ERROR: a.one: the backup of {stored.stamps('a.one')[-1]} is bad" in said
    assert "3 same, 0 differ" in said


def test_what_cannot_be_read_is_a_failure(stored: Program) -> None:
    (stored.prefix / "a").chmod(0)
    (stored.prefix / "b/one.wsp").chmod(0)
    (stored.prefix / "b/two.wsp").write_bytes(b"short")
    ran = subprocess.run([*unprivileged(), *stored.words("verify", "disk", "--tree")], capture_output=True, text=True)
    (stored.prefix / "a").chmod(0o755)
    assert ran.returncode == 3, ran.stderr
    assert f"ERROR: {stored.prefix}/a: Permission denied" in ran.stderr
    assert re.search(r"ERROR: b\.one: .*Permission denied", ran.stderr)
    assert "ERROR: b.two: not a whisper file" in ran.stderr
    assert "2 examined, 0 same, 0 differ" in ran.stderr
    assert "2 unseen" in ran.stderr
    assert "0 gone" in ran.stderr


def test_a_tree_that_is_not_there_is_no_tree_without_metrics(stored: Program) -> None:
    assert "does not exist" in stored("verify", "disk", "--tree", "-p", "/nowhere", status=1)


def test_comparing_changes_nothing(stored: Program) -> None:
    add_point(stored.prefix / "a/one.wsp", 2.0)
    before, tree = stored.objects(), {path: path.read_bytes() for path in stored.prefix.rglob("*.wsp")}
    stored("verify", "disk", "--tree")
    assert stored.objects() == before
    assert {path: path.read_bytes() for path in stored.prefix.rglob("*.wsp")} == tree


def test_a_files_birth_is_known_whatever_is_done_to_its_times(tmp_path: Path) -> None:
    path = tmp_path / "a"
    before = time.time()
    path.touch()
    born = birth_time(os.fsencode(path))
    assert born is not None
    assert before - 1 < born < time.time() + 1
    age(path)
    assert birth_time(os.fsencode(path)) == born
    assert birth_time(b"/proc/self/stat") is None, "a file system that does not tell"


def test_new_is_what_was_made_and_written_within_a_day(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.touch()
    name, now = os.fsencode(path), time.time()
    assert is_new(name, now)
    assert not is_new(name, now + NEW + 60)
    os.utime(path, (now + 2 * NEW,) * 2)
    assert not is_new(name, now + NEW + 60), "carbon writes to old files, too"
    age(path)
    assert not is_new(name, now), "a file that came with its old times"
    assert not is_new(b"/proc/self/stat", now), "nobody knows"
    assert is_new(name + b"x", now), "gone already"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["verify", "--sample", "2/20"], "--sample 2/20"),
        (["verify", "--sample", "1/0"], "--sample 1/0"),
        (["verify", "--sample", "5%"], "--sample 5%"),
        (["verify", "--tree", "--all"], "--tree"),
        (["verify", "--tree", "-c", "2026-11-23"], "--tree"),
        (["restore", "--sample", "1/20"], "--sample is not an option of restore"),
    ],
)
def test_an_invalid_combination_is_refused(program: Program, options: list[str], says: str) -> None:
    command, *rest = options
    assert says in program(command, "disk", *rest, status=2)
